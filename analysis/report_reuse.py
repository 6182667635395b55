"""Where does reuse happen? Every measure over one axis of layers, all layers with all, and what else was asked."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from math import isnan
from typing import Any

from analysis import attention, embeddings, trajectory
from analysis.chart_parts import legend, number
from analysis.charts import Panel, Series, lines
from analysis.cka import maps, pairs
from analysis.report_data import KNOWN, Entry, Report
from analysis.report_style import chart, details, heading, html_table
from analysis.report_words import card, metric_name, named, pill, target_names
from analysis.results import as_float

MOST_POINTS = 3000  # of a map in a page
MEASURES = (
    ("cka", "Alike before and after", "linear CKA, end with start; 1 = kept, 0 = new"),
    ("knn", "Known at this depth", ""),
    ("probe", "Linearly readable at this depth", ""),
    ("l2", "Moved", "|end - start| / |start| of the weights; logarithmic where all of them moved"),
    ("reinit", "Lost when put back", ""),
    ("dimension", "Directions in use", "intrinsic dimension (TwoNN) at the end"),
)


def reuse(report: Report) -> str:
    """Where reuse happens: all measures over one axis of layer groups, one figure a kind of model."""
    entries = report.entries
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
        return html + card(f"<p>No analysis has been run.</p>{missing(entries)}")
    for layers, members in families.items():
        html += card(_by_layer(layers, members, [peer for peer in report.peers if tuple(peer.layers) == layers]))
    html += card(f"<h3>Not worked out</h3>{told}") if (told := missing(entries)) else ""
    compared = [entry for entry in entries if "cka" in entry.analyses]
    return html + "".join(_heat_maps(entry) for entry in compared) + "".join(map(further, entries))


def missing(entries: Sequence[Entry]) -> str:
    """Which analyses the curves lack, and how to run them; empty where nothing is missing."""
    lines = []
    for entry in entries:
        lacking = [name for name in ("knn", "probe", "cka", "l2", "reinit") if name not in entry.analyses]
        if lacking:
            scripts = ", ".join(f"analysis/{name}.py" for name in lacking)
            path = f"<code>{escape(str(entry.run.path))}</code>"
            lines.append(f"<p class=hint>{named(entry)} lacks {scripts}: run each on {path}.</p>")
    return "".join(lines)


def further(entry: Entry) -> str:
    """The figures of the other analyses of a run: over checkpoints, heads, the embedding, cases."""
    html = ""
    for name, (title, about, draw) in FIGURES.items():
        found = entry.further.get(name)
        if found is not None:
            svg = draw(entry, found)
            html += card(f"<h3>{escape(entry.name)} {pill(entry)} · {title}</h3>{chart(svg, about)}") if svg else ""
    return html


def _embedding(entry: Entry, found: Any) -> str:
    return embeddings.figure(found) if len(found["label"]) <= MOST_POINTS else ""


def _sheet(entry: Entry, found: Any) -> str:
    path = entry.run.out_dir / "saliency.svg"
    if not path.is_file():
        return ""
    source = base64.b64encode(path.read_bytes()).decode()
    return f'<img class="sheet" alt="cases with maps" src="data:image/svg+xml;base64,{source}">'


FIGURES: dict[str, tuple[str, str, Callable[[Entry, Any], str]]] = {
    "trajectory": (
        "when layers settle",
        "CKA of each layer at each checkpoint with itself at the start and at the end.",
        lambda _entry, found: trajectory.figure(found),
    ),
    "attention": (
        "how far heads look",
        "Mean distance in pixels, weighted by attention; dotted: the same attention everywhere.",
        lambda _entry, found: attention.figure(found),
    ),
    "embeddings": (
        "maps of the embedding",
        "PCA is linear. UMAP keeps neighbourhoods: distances between its clusters, and their sizes, mean nothing.",
        _embedding,
    ),
    "saliency": (
        "where it looked",
        "The surest right and wrong cases. A map says where the evidence lay, not that it was good evidence.",
        _sheet,
    ),
}


def _by_layer(layers: Sequence[str], entries: Sequence[Entry], peers: Sequence[Entry]) -> str:
    target = target_names(entries)
    units = {
        "knn": f"k-NN {target}; dashed: at the start",
        "probe": f"{target} of a linear probe; dashed: at the start",
        "reinit": f"{target} lost when a group goes back to its start; 0 = nothing",
    }
    panels, tables = [], ""
    for measure, title, unit in MEASURES:
        behind = [line for peer in peers if (line := _line(peer, layers, measure, thin=True))]
        pairs = [(measure, False), (f"{measure}-start", True)]
        shown = [line for entry in entries for name, dashed in pairs if (line := _line(entry, layers, name, dashed))]
        if not shown:
            continue
        zero = measure in ("cka", "reinit", "dimension")
        unit = units.get(measure, unit)
        panels.append(Panel(title, [*behind, *shown], unit, zero=zero, log=measure == "l2", height=118))
        rows = [[escape(layer), *(number(line.y[i]) for line in (*shown, *behind))] for i, layer in enumerate(layers)]
        head = ["layer group", *(escape(line.name) for line in (*shown, *behind))]
        tables += f"<h4>{escape(title)}</h4>{html_table(head, rows)}"
    key = legend([(f"{entry.name} ({entry.start})", entry.place, 0) for entry in entries])
    svg = lines(panels, categories=layers, x_title="layer group, from input to head", width=940)
    told = _features_told(entries) + (" Thin lines: the other seeds." if peers else "")
    return key + chart(svg, told + _luck_told(entries)) + details("The values", tables)


def _line(entry: Entry, layers: Sequence[str], measure: str, dashed: bool = False, thin: bool = False) -> Series | None:
    """A measure of a run over its layers; None where it was not worked out."""
    values = entry.by_layer(measure) if measure in KNOWN else []
    if not values or all(isnan(value) for value in values):
        return None
    name = entry.name + (" at the start" if dashed else "")
    marks = not (dashed or thin)
    return Series(name, range(len(layers)), values, colour=entry.place, dash=int(dashed), marks=marks, thin=thin)


def _luck_told(entries: Sequence[Entry]) -> str:
    """How wide the luck of the test images is, beside which a loss or a gain by layer is read."""
    spans, several = [], len({entry.target for entry in entries}) > 1
    for entry in entries:
        if entry.target and (entry.results.get("test") or {}).get(entry.target) is not None:
            _, low, high = entry.test_interval(entry.target)
            if not isnan(low):
                metric = f"{metric_name(entry.target)} " if several else ""
                spans.append(f"{escape(entry.name)} {escape(metric)}{low:.3f} to {high:.3f}")
    if not spans:
        return ""
    score = "scores" if several else f"a {escape(target_names(entries))}"
    return (
        f" The luck of the test images alone gives the whole model {score} of "
        f"{', '.join(spans)} (95 %): smaller steps between layers say little."
    )


def _heat_maps(entry: Entry) -> str:
    found = entry.analyses["cka"]
    kind = "whole" if "whole" in found else "minibatch"
    svgs = "".join(maps(found, kind))
    request = found["request"]
    about = (
        f"{escape(found['about'])}. {request['images']} images of the {escape(request['split'])} split, "
        f"{escape(found['features'])} features, {'whole split' if kind == 'whole' else 'mini-batches'}."
    )
    tables = "".join(
        f"<h4>{row} (rows) with {column}</h4>{_matrix(found, kind, row, column)}" for row, column in pairs(found)
    )
    return card(
        f"<h3>{escape(entry.name)} {pill(entry)} · all layers with all</h3>"
        '<figure><div class="maps" tabindex="0" role="region" '
        f'aria-label="heat maps of {escape(entry.name, quote=True)}">{svgs}</div>'
        f"<figcaption>{about}</figcaption></figure>{details('What frames the values', _frame(found))}"
        f"{details('The values', tables)}"
    )


def _matrix(found: Any, kind: str, row: str, column: str) -> str:
    """One heat map as numbers."""
    names, matrix = found["sides"], found[kind][f"{row}-{column}"]
    rows = [
        [escape(name), *(f"{as_float(value):.2f}" for value in line)]
        for name, line in zip(names[row], matrix, strict=True)
    ]
    return html_table(["layer group", *map(escape, names[column])], rows)


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
        halves = " / ".join(number(as_float(value)) for value in row["image_halves"])
        rest = (row["null"]["largest"], row["ceiling"])
        cells = [*(number(as_float(v)) for v in (*matrices, *rest)), halves]
        rows.append([escape(layer), *cells, *(number(as_float(row[name])) for name in ("procrustes", "cca_r2"))])
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
