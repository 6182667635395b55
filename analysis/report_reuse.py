"""Where does reuse happen? Every measure over one axis of layers, all layers with all, and what else was asked."""

import base64
from collections.abc import Callable, Sequence
from html import escape
from math import isnan
from typing import Any

from analysis import attention, embeddings, trajectory
from analysis.chart_parts import legend, number
from analysis.charts import Panel, Series, lines
from analysis.cka import maps
from analysis.report_data import KNOWN, Entry
from analysis.report_style import chart, details, heading, html_table
from analysis.report_words import as_float, card, metric_name, pill

MOST_POINTS = 3000  # of a map in a page
MEASURES = (
    ("cka", "Alike before and after", "linear CKA, end with start; 1 = kept, 0 = new"),
    ("knn", "Known at this depth", ""),
    ("probe", "Linearly readable at this depth", ""),
    ("l2", "Moved", "|end - start| / |start| of the weights"),
    ("reinit", "Lost when put back", ""),
    ("dimension", "Directions in use", "intrinsic dimension (TwoNN) at the end"),
)


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
        return html + card(
            "<p>No analysis has been run: python analysis/knn.py RUN, probe.py, cka.py, l2.py, reinit.py.</p>"
        )
    for layers, members in families.items():
        html += card(_by_layer(layers, members))
    compared = [entry for entry in entries if "cka" in entry.analyses]
    return html + "".join(_heat_maps(entry) for entry in compared) + "".join(map(further, entries))


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
            zero = measure in ("l2", "cka", "reinit", "dimension")
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
    return card(
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
