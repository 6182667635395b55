"""Is the data sound? How patients were kept apart, what was left out, samples of each class."""

from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from analysis.chart_parts import legend
from analysis.chart_style import NUM_SERIES
from analysis.report_data import Entry
from analysis.report_style import heading, html_table
from analysis.report_words import card, vector
from analysis.saliency import jpeg
from shards.shardset import ShardSet, Split
from shards.sheet import choose_examples, tile

EXAMPLES = 9
TILE_PIXELS = 112


def data(entries: Sequence[Entry]) -> str:
    """The whole section: cards of each shard set."""
    about = "Read from the shard set itself: its manifest says how patients were kept apart, and what was left out."
    sets = {entry.shards.digest: entry.shards for entry in entries if entry.shards is not None}
    if not sets:
        cards = card("<p>The shard set is not where it was when the runs were trained.</p>")
    else:
        cards = "".join(set_card(shards, len(sets) > 1) for shards in sets.values())
    return heading("data", "Is the data sound?", about) + cards


def set_card(shards: ShardSet, several: bool) -> str:
    """Splits, provenance and samples of one set; of several, its name in each title."""
    manifest = shards.manifest
    whose = f" · {escape(manifest.name)}" if several else ""
    names = ("split", "samples", "groups", "classes")
    rows = [
        [escape(name), f"{info.samples:,}", f"{info.groups:,}", _balance(info.class_counts)]
        for name, info in manifest.splits.items()
    ]
    shared = manifest.grouping.intersections
    apart = (
        "no pair of splits shares one"
        if not any(shared.values())
        else f"<strong>shared: {escape(str(shared))}</strong>"
    )
    facts = {
        "set": f"{escape(manifest.name)}{' (phantoms)' if manifest.phantom else ''}",
        "kept apart by": f"{escape(manifest.grouping.by)}: {apart}. {escape(manifest.grouping.how)}",
        "left out": _left_out(shards),
        "source": escape(" · ".join(filter(None, (manifest.source.dataset, manifest.source.licence))) or "not said"),
        "normalised with": f"mean {vector(manifest.mean)}, std {vector(manifest.std)}",
        "digest": f"<code>{manifest.digest[:24]}…</code>",
    }
    if manifest.warnings:
        facts["warnings"] = escape("; ".join(manifest.warnings))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    key = legend([(name, i, 0) for i, name in enumerate(shards.manifest.classes[:NUM_SERIES])])
    table = html_table(names, rows)
    left = f"<h3>Splits{whose}</h3>{key if len(manifest.classes) <= NUM_SERIES else ''}{table}"
    return (
        f'<div class="grid2">{card(left)}{card(f"<h3>Provenance{whose}</h3><dl class=facts>{listed}</dl>")}</div>'
        f"{card(f'<h3>Samples of the training split{whose}</h3>{_samples(shards)}')}"
    )


def _balance(counts: dict[str, int]) -> str:
    total = sum(counts.values()) or 1
    parts = "".join(
        f'<i style="flex:{count};background:var(--s{i % NUM_SERIES})" title="{escape(name, quote=True)}: {count}"></i>'
        for i, (name, count) in enumerate(counts.items())
        if count
    )
    told = ", ".join(f"{name} {count / total:.0%}" for name, count in counts.items())
    counted = ", ".join(f"{escape(name)} {count:,}" for name, count in counts.items())
    bar = f'<div class="bar" role="img" aria-label="{escape(told, quote=True)}">{parts}</div>'
    return f'{bar}<div class="counts">{counted}</div>'


def _left_out(shards: ShardSet) -> str:
    left = shards.manifest.left_out
    if not left:
        return "nothing"
    reasons = sorted({item.reason for item in left})
    return f"{len(left)} images: {escape('; '.join(reasons[:3]))}{' …' if len(reasons) > 3 else ''}"


def _samples(shards: ShardSet) -> str:
    split = shards.split("train" if "train" in shards.split_names else shards.split_names[0])
    rows = []
    for name, positions in zip(shards.classes, choose_examples(split, 0, EXAMPLES), strict=True):
        if not len(positions):
            continue
        tiles = [square(split, int(position)) for position in positions]
        blank = np.full_like(tiles[0], 255)
        strip = np.concatenate([*tiles, *[blank] * (EXAMPLES - len(tiles))], axis=1)
        rows.append(
            f'<div>{escape(name)}</div><img alt="{len(tiles)} samples of class {escape(name, quote=True)}" '
            f'width="{strip.shape[1]}" height="{TILE_PIXELS}" src="{jpeg(strip)}">'
        )
    return f'<div class="samples">{"".join(rows)}</div>'


def square(split: Split, position: int) -> np.ndarray:
    """The middle of one image, uint8 [TILE_PIXELS, TILE_PIXELS, 3]."""
    page, rows = tile(split, position), split.rows(np.array([position]))
    side = round(len(page) * int(min(rows.heights[0], rows.widths[0])) / int(max(rows.heights[0], rows.widths[0])))
    first = (len(page) - side) // 2
    middle = page[first : first + side, first : first + side]
    return cv2.resize(middle, (TILE_PIXELS, TILE_PIXELS), interpolation=cv2.INTER_AREA)
