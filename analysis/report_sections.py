"""The sections of a report, each HTML from what was read: trained on what, sound or not, how well, reused where."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from math import isfinite, isnan
from typing import Any

import cv2
import numpy as np

from analysis.charts import NUM_SERIES, Panel, Series, legend, lines, number
from analysis.cka import maps
from analysis.report_data import Entry
from analysis.report_style import chart, details, heading, html_table
from shards.shardset import ShardSet, Split
from shards.sheet import choose_examples, tile

EXAMPLES = 9
TILE_PIXELS = 112
METRIC_NAMES = {
    "roc_auc": "ROC-AUC",
    "quadratic_kappa": "quadratic kappa",
    "kappa": "Cohen's kappa",
    "f1": "F1",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
}
MEASURES = (
    ("cka", "Alike before and after", "linear CKA, end with start; 1 = kept, 0 = new"),
    ("knn", "Known at this depth", ""),
    ("probe", "Linearly readable at this depth", ""),
    ("l2", "Moved", "|end - start| / |start| of the weights"),
    ("reinit", "Lost when put back", ""),
)


def metric_name(name: str | None) -> str:
    """A metric's name for reading."""
    return METRIC_NAMES.get(name or "", (name or "").replace("_", " "))


def head(entries: Sequence[Entry]) -> str:
    """Title, the result in one sentence, one tile a run; and loudly whether the images are phantoms."""
    sets = sorted({entry.results.get("shards") or _set_name(entry) for entry in entries})
    target = entries[0].target
    tiles = "".join(
        f'<div class="tile" style="--tone:var(--s{entry.place % NUM_SERIES})"><div class="what">{escape(entry.name)} '
        f'{pill(entry)}</div><div class="value">{_rounded(entry.test_value())}</div>'
        f'<div class="note">{escape(metric_name(entry.target))}, test split</div></div>'
        for entry in entries
    )
    warning = ""
    if any(entry.phantom for entry in entries):
        warning = (
            '<p class="warning" role="note"><strong>Phantoms, not patients.</strong> These images are drawn '
            "by a program in a real dataset's layout. The numbers show that the machinery works, and nothing "
            "about medicine.</p>"
        )
    return (
        f'<p class="eyebrow">medshard · {escape(", ".join(sets))}</p>'
        "<h1>What did transfer bring, and where is it reused?</h1>"
        f'<p class="lead">{_verdict(entries, target)}</p>{warning}<div class="tiles">{tiles}</div>'
    )


def _verdict(entries: Sequence[Entry], target: str | None) -> str:
    known = [(entry, entry.test_value()) for entry in entries if isfinite(entry.test_value())]
    if not known:
        return "No run of this report has a test result yet."
    name = escape(metric_name(target))
    best, value = max(known, key=lambda pair: pair[1])
    if len(known) == 1:
        return (
            f"<strong>{escape(best.name)}</strong> reaches a {name} of <strong>{value:.3f}</strong> on the test split."
        )
    worst, low = min(known, key=lambda pair: pair[1])
    return (
        f"<strong>{escape(_who(best))}</strong> reaches a {name} of <strong>{value:.3f}</strong> on the test split, "
        f"<strong>{value - low:.3f}</strong> above {escape(_who(worst))}."
    )


def _who(entry: Entry) -> str:
    words = {"WT": "pretrained weights", "ST": "pretrained statistics alone", "RI": "a random start"}
    return f"{entry.name} ({words[entry.start]})" if entry.start in words else entry.name


def pill(entry: Entry) -> str:
    """The start of a run as a small label in the run's colour."""
    return f'<span class="pill" style="--tone:var(--s{entry.place % NUM_SERIES})">{escape(entry.start)}</span>'


def trained(entries: Sequence[Entry]) -> str:
    """What was trained on what."""
    about = "WT starts from pretrained weights, ST from their mean and spread alone, RI from a random initialisation."
    names = (
        "run",
        "start",
        "model",
        "images",
        "pixels",
        "epochs",
        "steps",
        "batch",
        "optimizer",
        "rate",
        "seed",
        "best at",
    )
    rows = []
    for entry in entries:
        config, results, info = entry.run.config, entry.results, entry.run.info
        batch = (entry.run.record.get("deepspeed") or {}).get("train_batch_size", "–")
        best = results.get("best") or {}
        cells: list[Any] = [escape(entry.name), pill(entry), f"<code>{escape(info.model)}</code>"]
        cells += [escape(str(results.get("shards") or _set_name(entry))), info.img_size]
        if config is None:
            cells += ["–"] * 6
        else:
            made, train = config.optimizer, config.training
            epochs = train.model_dump().get("epochs", "–")
            cells += [epochs, results.get("steps", "–"), batch, escape(made.optimizer), f"{made.lr:g}", train.seed]
        cells.append(f"epoch {best['epoch']:.1f}" if best else "–")
        rows.append([str(cell) for cell in cells])
    return heading("trained", "What was trained on what", about) + _card(html_table(names, rows, text_columns=4))


def data(entries: Sequence[Entry]) -> str:
    """Is the data sound? One card a shard set."""
    about = "Read from the shard set itself: its manifest says how patients were kept apart, and what was left out."
    sets = {entry.shards.digest: (entry.shards, entry) for entry in entries if entry.shards is not None}
    if not sets:
        cards = _card("<p>The shard set is not where it was when the runs were trained.</p>")
    else:
        cards = "".join(_set_card(shards) for shards, _ in sets.values())
    return heading("data", "Is the data sound?", about) + cards


def _set_card(shards: ShardSet) -> str:
    manifest = shards.manifest
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
        "normalised with": f"mean {_vector(manifest.mean)}, std {_vector(manifest.std)}",
        "digest": f"<code>{manifest.digest[:24]}…</code>",
    }
    if manifest.warnings:
        facts["warnings"] = escape("; ".join(manifest.warnings))
    listed = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())
    key = legend([(name, i, 0) for i, name in enumerate(shards.manifest.classes[:NUM_SERIES])])
    table = html_table(names, rows)
    left = f"<h3>Splits</h3>{key if len(manifest.classes) <= NUM_SERIES else ''}{table}"
    return (
        f'<div class="grid2">{_card(left)}{_card(f"<h3>Provenance</h3><dl class=facts>{listed}</dl>")}</div>'
        f"{_card(f'<h3>Samples of the training split</h3>{_samples(shards)}')}"
    )


def _balance(counts: dict[str, int]) -> str:
    total = sum(counts.values()) or 1
    parts = "".join(
        f'<i style="flex:{count};background:var(--s{i % NUM_SERIES})" title="{escape(name, quote=True)}: {count}"></i>'
        for i, (name, count) in enumerate(counts.items())
        if count
    )
    told = ", ".join(f"{name} {count / total:.0%}" for name, count in counts.items())
    return f'<div class="bar" role="img" aria-label="{escape(told, quote=True)}">{parts}</div>'


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
        tiles = [_square(split, int(position)) for position in positions]
        blank = np.full_like(tiles[0], 255)
        strip = np.concatenate([*tiles, *[blank] * (EXAMPLES - len(tiles))], axis=1)
        done, encoded = cv2.imencode(".jpg", strip[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])
        assert done
        source = base64.b64encode(encoded.tobytes()).decode()
        rows.append(
            f'<div>{escape(name)}</div><img alt="{len(tiles)} samples of class {escape(name, quote=True)}" '
            f'width="{strip.shape[1]}" height="{TILE_PIXELS}" src="data:image/jpeg;base64,{source}">'
        )
    return f'<div class="samples">{"".join(rows)}</div>'


def _square(split: Split, position: int) -> np.ndarray:
    """The middle of one image, uint8 [TILE_PIXELS, TILE_PIXELS, 3]."""
    page, rows = tile(split, position), split.rows(np.array([position]))
    side = round(len(page) * int(min(rows.heights[0], rows.widths[0])) / int(max(rows.heights[0], rows.widths[0])))
    first = (len(page) - side) // 2
    middle = page[first : first + side, first : first + side]
    return cv2.resize(middle, (TILE_PIXELS, TILE_PIXELS), interpolation=cv2.INTER_AREA)


def scores(entries: Sequence[Entry]) -> str:
    """How well: test metrics and learning curves."""
    about = "Metrics on the test split, of the weights that were best on the validation split by the target metric."
    tested = [entry for entry in entries if entry.results.get("test")]
    cards = ""
    if tested:
        names = [name for name in tested[0].results["test"] if name != "samples"]
        rows = [
            [escape(metric_name(name)), *(_rounded(_float(entry.results["test"].get(name))) for entry in tested)]
            for name in names
        ]
        target = names.index(tested[0].target) if tested[0].target in names else None
        titles = ["metric", *(f"{escape(entry.name)} {pill(entry)}" for entry in tested)]
        images = int(_float(tested[0].results["test"].get("samples")))
        note = f"<p class=eyebrow>{images} test images</p>" if images else ""
        cards += _card(f"<h3>Test metrics</h3>{note}{html_table(titles, rows, marked=target)}")
    curves = learning_curves(entries)
    if curves:
        cards += _card(f"<h3>Learning curves</h3>{curves}")
    return heading("scores", "How well?", about) + (
        f'<div class="grid2">{cards}</div>' if cards else _card("<p>No results yet.</p>")
    )


def learning_curves(entries: Sequence[Entry]) -> str:
    """Training loss, validation loss and target metric over epochs; empty without records."""
    target = entries[0].target or ""
    panels = []
    for kind, field, title in (
        ("train", "loss", "Training loss"),
        ("val", "loss", "Validation loss"),
        ("val", target, f"Validation {metric_name(target)}"),
    ):
        series = []
        for entry in entries:
            records = [record for record in entry.metrics if record["kind"] == kind and field in record]
            if records:
                x, y = [record["epoch"] for record in records], [_float(record[field]) for record in records]
                series.append(Series(entry.name, x, y, colour=entry.place, marks=kind == "val"))
        if series:
            panels.append(Panel(title, series, zero=field == "loss", height=120))
    if not panels:
        return ""
    key = legend([(entry.name, entry.place, 0) for entry in entries])
    return key + chart(lines(panels, x_title="epoch", width=520))


def reuse(entries: Sequence[Entry]) -> str:
    """Where reuse happens: all measures over one axis of layer groups, one figure a kind of model."""
    about = (
        "Every measure over the same layers. Reuse shows where features stay alike (high CKA), move little and are "
        "informative from the start; a layer that training made matters most when it is put back."
    )
    families: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        if entry.layers:
            families.setdefault(tuple(entry.layers), []).append(entry)
    html = heading("reuse", "Where does reuse happen?", about)
    if not families:
        return html + _card("<p>No analysis has been run: python analysis/knn.py RUN, cka.py, l2.py, reinit.py.</p>")
    for layers, members in families.items():
        html += _card(_by_layer(layers, members))
    compared = [entry for entry in entries if "cka" in entry.analyses]
    return html + "".join(_heat_maps(entry) for entry in compared)


def _by_layer(layers: Sequence[str], entries: Sequence[Entry]) -> str:
    target = metric_name(entries[0].target)
    units = {
        "knn": f"k-NN {target}; dashed: at the start",
        "probe": f"{target} of a linear probe; dashed: at the start",
    }
    units["reinit"] = f"{target} lost when a group goes back to its start"
    panels, columns = [], []
    for measure, title, unit in MEASURES:
        series = []
        for entry in entries:
            for name, dash in ((measure, 0), (f"{measure}-start", 1)):
                values = entry.by_layer(name) if name in KNOWN else []
                if values and not all(isnan(value) for value in values):
                    told = entry.name + (" at the start" if dash else "")
                    series.append(
                        Series(told, range(len(layers)), values, colour=entry.place, dash=dash, marks=not dash)
                    )
                    columns.append((f"{title}: {told}", values))
        if series:
            zero = measure in ("l2", "cka", "reinit")
            panels.append(Panel(title, series, units.get(measure, unit), zero=zero, height=118))
    key = legend([(f"{entry.name} ({entry.start})", entry.place, 0) for entry in entries])
    svg = lines(panels, categories=layers, x_title="layer group, from input to head", width=1080)
    rows = [[escape(layer), *(number(values[i]) for _, values in columns)] for i, layer in enumerate(layers)]
    folded = html_table(["layer group", *(escape(title) for title, _ in columns)], rows)
    return key + chart(svg, _features_told(entries)) + details("The values", folded)


def _heat_maps(entry: Entry) -> str:
    found = entry.analyses["cka"]
    kind = "whole" if "whole" in found else "minibatch"
    svgs = "".join(maps(found, kind))
    request = found["request"]
    about = (
        f"{escape(found['about'])}. {request['images']} images of the {escape(request['split'])} split, "
        f"{escape(found['features'])} features, {'whole split' if kind == 'whole' else 'mini-batches'}."
    )
    return _card(
        f"<h3>{escape(entry.name)} {pill(entry)} · all layers with all</h3>"
        '<figure><div class="maps" tabindex="0" role="region" '
        f'aria-label="heat maps of {escape(entry.name, quote=True)}">{svgs}</div>'
        f"<figcaption>{about}</figcaption></figure>{details('What frames the values', _frame(found))}"
    )


def _frame(found: Any) -> str:
    """Null level, ceiling and second opinions of each layer with itself."""
    same = found.get("same_layer")
    if not same:
        return "<p>One state alone: nothing to compare a layer with.</p>"
    names = (
        "layer",
        "CKA, whole split",
        "CKA, mini-batches",
        "null, largest",
        "ceiling",
        "half the images",
        "Procrustes",
        "CCA R²",
    )
    rows = []
    for i, (layer, row) in enumerate(same.items()):
        matrices = (found[kind]["end-start"][i][i] for kind in ("whole", "minibatch"))
        halves = " / ".join(number(_float(value)) for value in row["image_halves"])
        rest = (row["null"]["largest"], row["ceiling"])
        cells = [*(number(_float(v)) for v in (*matrices, *rest)), halves]
        rows.append([escape(layer), *cells, *(number(_float(row[name])) for name in ("procrustes", "cca_r2"))])
    about = (
        "<p>Null: the largest CKA over 20 shufflings of the images. Ceiling: one layer's own features cut in two "
        "halves. CCA is undefined with fewer images than features.</p>"
    )
    return about + html_table(names, rows)


def _features_told(entries: Sequence[Entry]) -> str:
    parts = []
    for name in ("cka", "knn", "reinit"):
        found = next((entry.analyses[name] for entry in entries if name in entry.analyses), None)
        if found is not None:
            request = found["request"]
            bank = f", {found['k_used']} neighbours of a bank of {found['bank_images']}" if name == "knn" else ""
            parts.append(f"{name}: {request['images']} images of {escape(request['split'])}{bank}")
    return "Pooled features (class token and mean over positions). " + "; ".join(parts) + "." if parts else ""


def provenance(entries: Sequence[Entry]) -> str:
    """Digests and versions, to find the same numbers again."""
    about = "The same digests give the same numbers."
    rows = []
    for entry in entries:
        for name, found in entry.analyses.items():
            weights = found["request"].get("weights", {})
            digests = "<br>".join(f"{escape(which)} <code>{digest[:16]}</code>" for which, digest in weights.items())
            options = {
                k: v
                for k, v in found["request"].items()
                if isinstance(v, (int, float, str)) and k not in ("transform", "shards")
            }
            told = escape(", ".join(f"{key} {value}" for key, value in options.items()))
            rows.append([escape(entry.name), escape(name), digests, told])
    head_cells = ("run", "analysis", "weights", "asked")
    versions = entries[0].run.record.get("versions") or {}
    told = escape(", ".join(f"{name} {version}" for name, version in versions.items())) or "not recorded"
    body = html_table(head_cells, rows, text_columns=4) if rows else "<p>No analyses.</p>"
    return heading("provenance", "Provenance", about) + _card(f"{body}<p>Trained with {told}.</p>")


SECTIONS: tuple[tuple[str, str, Callable[[Sequence[Entry]], str]], ...] = (
    ("trained", "Training", trained),
    ("data", "Data", data),
    ("scores", "Scores", scores),
    ("reuse", "Reuse", reuse),
    ("provenance", "Provenance", provenance),
)
KNOWN = ("cka", "knn", "knn-start", "probe", "probe-start", "l2", "reinit")


def _card(html: str) -> str:
    return f'<div class="card">{html}</div>'


def _set_name(entry: Entry) -> str:
    asked = [found["request"].get("set") for found in entry.analyses.values()]
    return next((name for name in asked if name), entry.shards.manifest.name if entry.shards else "–")


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _rounded(value: float) -> str:
    return f"{value:.3f}" if isfinite(value) else "–"


def _vector(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
