"""A shard set on one picture: example images by class and split, histograms, class balance, the proof of the splits.

python -m shards sheet data/shards/DDSM --out DDSM.png
"""

import textwrap
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure

from shards.aside import aside
from shards.command_line import Parser, add_output_flags, called, tell
from shards.decoding import stored_image
from shards.histograms import (
    MAX_IMAGES,
    MAX_PIXELS,
    draw_intensities,
    draw_sides,
    intensity_shares,
    sample_positions,
)
from shards.manifest import Manifest
from shards.shardset import ShardSet, Split

MAX_CLASSES = 14
MAX_EXAMPLES = 9  # in a row, over all splits
TILE_PIXELS = 160
COLOURS = {"train": "#4477AA", "val": "#EE8866", "test": "#228833"}  # distinguishable without colour vision, too
SPARE_COLOUR = "#777777"
CROWDED = 6  # classes above which their names are turned
NOTE_LETTERS, MOST_NOTE_LINES = 165, 12


def choose_examples(split: Split, seed: int, count: int) -> list[np.ndarray]:
    """Positions of up to `count` samples of each class, drawn by `seed`: one array a class.

    Each int64[k], rising.
    """
    labels = split.labels()
    rng = np.random.default_rng(seed)
    chosen = []
    for index in range(len(split.view.classes)):
        members = np.flatnonzero(labels == index if labels.ndim == 1 else labels[:, index] == 1)
        chosen.append(np.sort(rng.permutation(members)[:count]))
    return chosen


def tile(split: Split, position: int) -> np.ndarray:
    """One stored image as uint8 RGB [TILE_PIXELS, TILE_PIXELS, 3], scaled to fit, on white; 16 bit is stretched."""
    image = stored_image(split, position)
    if image.dtype == np.uint16:
        low, high = np.percentile(image, [0.5, 99.5])
        image = (np.clip((image - low) / max(high - low, 1), 0, 1) * 255).astype(np.uint8)
    scale = TILE_PIXELS / max(image.shape[:2])
    height, width = (max(round(side * scale), 1) for side in image.shape[:2])
    small = cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
    page = np.full((TILE_PIXELS, TILE_PIXELS, 3), 255, np.uint8)
    top, left = (TILE_PIXELS - height) // 2, (TILE_PIXELS - width) // 2
    page[top : top + height, left : left + width] = small.reshape(height, width, -1)
    return page


def _strip(split: Split, positions: np.ndarray, count: int) -> np.ndarray:
    """`count` tiles side by side, 6 pixels apart; blank where there are fewer examples."""
    blank = np.full((TILE_PIXELS, TILE_PIXELS, 3), 255, np.uint8)
    tiles = [tile(split, int(position)) for position in positions] + [blank] * (count - len(positions))
    gap = np.full((TILE_PIXELS, 6, 3), 255, np.uint8)
    return np.concatenate([part for one in tiles for part in (one, gap)][:-1], axis=1)


def draw(shard_set: ShardSet, *, seed: int = 0) -> Figure:
    """The sheet as a figure: a row of examples for each class, a column for each split; histograms, balance, proof; and
    what the manifest notes.
    """
    splits = [shard_set.split(name) for name in shard_set.split_names]
    shown = min(shard_set.num_classes, MAX_CLASSES)
    count = max(2, MAX_EXAMPLES // len(splits))
    head = 1.0 + shown * 1.05
    notes = note_lines(shard_set)
    heights = [head, 2.5, 3.4 if shown > CROWDED else 2.9, 0.15 + 0.17 * len(notes)]
    figure = Figure(figsize=(12, sum(heights)), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    top, middle, bottom, last = figure.subfigures(4, 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_examples(top, shard_set, splits, shown, count, seed)
    _draw_histograms(middle, splits, seed)
    balance, proof = bottom.subplots(1, 2, width_ratios=[3, 2])
    bottom.subplots_adjust(left=0.13, right=0.98, bottom=0.32 if shown > CROWDED else 0.2, top=0.86, wspace=0.08)
    _draw_balance(balance, shard_set, splits, shown)
    _draw_proof(proof, shard_set.manifest, splits)
    last.text(0.02, 1, "\n".join(notes), fontsize=8, va="top", color="#555555", linespacing=1.3)
    return figure


def note_lines(shard_set: ShardSet) -> list[str]:
    """What the view and the manifest note, in lines; of very many the first ones."""
    notes = [f"view {shard_set.view_name}: {shard_set.view.note}"] if shard_set.view.note else []
    notes += [f"note: {warning}" for warning in shard_set.manifest.warnings]
    lines = [line for note in notes for line in textwrap.wrap(note, NOTE_LETTERS, subsequent_indent="    ")]
    more = ["… all of them: python -m shards info DIR"] if len(lines) > MOST_NOTE_LINES else []
    return lines[:MOST_NOTE_LINES] + more


def _draw_examples(
    figure: SubFigure, shard_set: ShardSet, splits: Sequence[Split], shown: int, count: int, seed: int
) -> None:
    manifest = shard_set.manifest
    phantom = " · PHANTOM images, no medical meaning" if manifest.phantom else ""
    more = f" · first {shown} of {shard_set.num_classes} classes" if shown < shard_set.num_classes else ""
    figure.suptitle(f"{manifest.name}{phantom}", x=0.01, y=0.985, ha="left", va="top", fontsize=14, weight="bold")
    axes = figure.subplots(shown, len(splits), squeeze=False)
    figure.subplots_adjust(
        left=0.13, right=0.99, bottom=0.01, top=1 - 0.75 / (shown * 1.05 + 1.0), wspace=0.04, hspace=0.08
    )
    for column, split in enumerate(splits):
        chosen = choose_examples(split, seed, count)
        for row in range(shown):
            axis: Axes = axes[row][column]
            axis.imshow(_strip(split, chosen[row], count), aspect="equal", interpolation="nearest")
            if not len(chosen[row]):
                axis.text(TILE_PIXELS / 2, TILE_PIXELS / 2, "none", ha="center", va="center", color="#999999")
            axis.set_axis_off()
            if row == 0:
                colour = COLOURS.get(split.name, SPARE_COLOUR)
                axis.set_title(f"{split.name} · {split.num_samples:,} images", fontsize=11, color=colour, weight="bold")
            if column == 0:
                name = _wrap(shard_set.classes[row])
                axis.text(-0.03, 0.5, name, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    depth = f"{manifest.channels} channel{'s' * (manifest.channels > 1)}, {manifest.bits} bit, {manifest.encoding}"
    view = f"{manifest.task} · view {shard_set.view_name}"
    figure.text(0.99, 0.985, f"{view} · {depth}{more}", ha="right", va="top", fontsize=9, color="#555555")


def _draw_histograms(figure: SubFigure, splits: Sequence[Split], seed: int) -> None:
    """Heights and widths of all stored images, and the intensities of some hundred, by split."""
    heights, widths, values = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.22, top=0.87, wspace=0.25)
    colours = {split.name: COLOURS.get(split.name, SPARE_COLOUR) for split in splits}
    sides = {split.name: split.sides() for split in splits}
    draw_sides(heights, {name: each[:, 0] for name, each in sides.items()}, colours, "Heights")
    draw_sides(widths, {name: each[:, 1] for name, each in sides.items()}, colours, "Widths")
    images, pixels = MAX_IMAGES // len(splits), MAX_PIXELS // len(splits)
    drawn = {split.name: sample_positions(split, seed, images, pixels) for split in splits}
    shares = {split.name: intensity_shares(split, drawn[split.name]) for split in splits}
    draw_intensities(values, shares, colours, {name: len(positions) for name, positions in drawn.items()})
    widths.legend(frameon=False, fontsize=8, loc="upper right")


def _wrap(name: str, width: int = 17) -> str:
    words, lines = name.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines[:3])


def _draw_balance(axis: Axes, shard_set: ShardSet, splits: Sequence[Split], shown: int) -> None:
    """Share of each class in each split, so that small splits can be compared with large ones; counts on the bars."""
    width = 0.8 / len(splits)
    for number, split in enumerate(splits):
        counts = list(split.class_counts().values())[:shown]
        shares = [100 * count / max(split.num_samples, 1) for count in counts]
        places = np.arange(shown) + (number - (len(splits) - 1) / 2) * width
        bars = axis.bar(places, shares, width * 0.92, color=COLOURS.get(split.name, SPARE_COLOUR), label=split.name)
        if shown * len(splits) <= 24:
            axis.bar_label(bars, [str(count) for count in counts], fontsize=7, padding=1)
    crowded = shown > CROWDED
    names = shard_set.classes[:shown]
    short = [name if len(name) <= 26 else f"{name[:25]}…" for name in names] if crowded else [*map(_wrap, names)]
    axis.set_xticks(range(shown), short, rotation=30 if crowded else 0, ha="right" if crowded else "center", fontsize=8)
    axis.set_ylabel("% of the split")
    axis.set_title("Class balance", loc="left", fontsize=11, weight="bold")
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, ncols=len(splits), loc="upper right", bbox_to_anchor=(1, 1.18))


def _draw_proof(axis: Axes, manifest: Manifest, splits: Sequence[Split]) -> None:
    """What two splits share, counted from the indices rather than believed of the manifest."""
    axis.set_axis_off()
    axis.set_title("Shared between splits", loc="left", fontsize=11, weight="bold", x=0.06)
    lines: list[tuple[str, ...]] = [("", "samples", "groups", "images")]
    ids = {split.name: split.rows(np.arange(split.num_samples)) for split in splits}
    for first, second in combinations(ids, 2):
        left, right = ids[first], ids[second]
        shared = [
            len(np.intersect1d(getattr(left, name), getattr(right, name)))
            for name in ("sample_ids", "groups", "hashes")
        ]
        lines.append((f"{first}, {second}", *[str(number) for number in shared]))
    for row, line in enumerate(lines):
        for column, text in enumerate(line):
            bad = row > 0 and column > 0 and text != "0"
            place = 0.06 if column == 0 else 0.22 + 0.26 * column
            axis.text(
                place,
                0.9 - 0.14 * row,
                text,
                ha="left" if column == 0 else "right",
                fontsize=9,
                weight="bold" if bad or row == 0 else "normal",
                color="#BB0000" if bad else "black",
                transform=axis.transAxes,
            )
    groups = ", ".join(f"{split.name} {len(np.unique(ids[split.name].groups)):,}" for split in splits)
    note = f"groups ({_wrap(manifest.grouping.by, 40)}): {groups}\nleft out: {len(manifest.left_out):,}"
    axis.text(
        0.06, 0.9 - 0.14 * len(lines) - 0.05, note, fontsize=8, va="top", color="#555555", transform=axis.transAxes
    )


def write_sheet(shard_set: ShardSet, out: Path, *, seed: int = 0) -> Path:
    """Write the sheet to a .png, .svg or .pdf file; the same set and seed give the same picture.

    Raises:
        ValueError: another suffix, no such folder, or an image that does not decode.
    """
    if out.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{out.name}: a sheet is written as .png, .svg or .pdf")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for {out.name}: make it, or choose another --out")
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "svg.hashsalt": "medshard"}):
        figure = draw(shard_set, seed=seed)
        with aside(out, synced=False) as part:
            figure.savefig(part, format=out.suffix.lower()[1:])
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards sheet` and of prep/show_shards.py."""
    parser = Parser(
        prog=called("sheet"),
        description="Draw example images by class and split, sizes, intensities, class balance, what the splits share.",
        epilog=f"example: {called('sheet')} data/shards/DDSM --out DDSM.png",
    )
    parser.add_argument("shards", help="shard set, a folder or a URL")
    parser.add_argument("--out", type=Path, help="where the picture goes (default NAME.png in this folder)")
    parser.add_argument("--view", help="label view of the manifest (default: its own choice)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of examples")
    parser.add_argument("--cache", type=Path, help="folder for what is fetched from a URL, or unpacked of a .tar.zst")
    add_output_flags(parser)
    options = parser.parse_args(argv)
    shard_set = ShardSet(options.shards, view=options.view, cache=options.cache)
    out = write_sheet(shard_set, options.out or Path(f"{shard_set.manifest.name}.png"), seed=options.seed)
    tell(options, {"out": str(out)}, f"wrote {out}")
    return 0
