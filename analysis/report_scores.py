"""How well? Metrics with intervals, learning curves, confusion, calibration."""

from collections.abc import Sequence
from html import escape

import numpy as np

from analysis.chart_parts import legend
from analysis.chart_style import NEUTRAL
from analysis.charts import Panel, Series, heat_map, lines
from analysis.report_cases import worst_cases
from analysis.report_data import Entry
from analysis.report_style import chart, details, heading, html_table
from analysis.report_words import card, grid, metric_name, named, rounded, set_name, target_names, with_interval
from analysis.results import as_float
from shards.words import counted
from train.metrics import Task, confusion_matrix

BINS = 10


def scores(entries: Sequence[Entry]) -> str:
    """The whole section."""
    about = (
        "On the test split, of the weights that were best on the validation split by the target metric. Intervals: "
        "95 %, whole groups (patients) of test images drawn again; the luck of a seed is not in them."
    )
    tested = [entry for entry in entries if entry.results.get("test")]
    body = card(f"<h3>Test metrics</h3>{metrics_table(tested) if tested else ''}{_untested(entries)}")
    known = [entry for entry in tested if entry.said is not None]
    curves = learning_curves(entries)
    cards = card(f"<h3>Learning curves</h3>{curves}") if curves else ""
    cards += card(reliability(known)) if known else ""
    return heading("scores", "How well?", about) + body + (grid(cards) if cards else "") + mistakes(known)


def _untested(entries: Sequence[Entry]) -> str:
    """Why runs have no row."""
    return "".join(
        f"<p class=hint>{escape(entry.name)}: no test metrics, {escape(entry.why_no_score)}.</p>"
        for entry in entries
        if not entry.results.get("test")
    )


def metrics_table(tested: Sequence[Entry]) -> str:
    """A row a metric, a column a run; the target metrics marked."""
    names = [name for name in dict.fromkeys(n for entry in tested for n in entry.results["test"]) if name != "samples"]
    rows = [
        [escape(metric_name(name)), *(with_interval(*entry.test_interval(name)) for entry in tested)] for name in names
    ]
    rows += [
        [escape(metric_name(name)), *(with_interval(value, np.nan, np.nan) for value in values)]
        for name in ("brier", "ece")
        if np.isfinite(values := [as_float(entry.calibration.get(name)) for entry in tested]).any()
    ]
    targets = {names.index(entry.target) for entry in tested if entry.target in names}
    table = html_table(["metric", *map(named, tested)], rows, marked=targets)
    why = "<p class=hint>–: undefined on these test images, as where a class has none, or not worked out.</p>"
    return _tested_on(tested) + table + (why if any("–" in cell for row in rows for cell in row[1:]) else "")


def _tested_on(tested: Sequence[Entry]) -> str:
    """How many test images, of how many groups; by set where there are several."""
    told: dict[str, str] = {}
    for entry in tested:
        groups = (entry.results.get("test_details") or {}).get("groups")
        if images := int(as_float(entry.results["test"].get("samples") or 0)):
            of = f" of {counted(groups, 'group')}" if groups else ""
            told[set_name(entry)] = f"{counted(images, 'test image')}{of}"
    words = [f"{name}: {words}" for name, words in told.items()] if len(told) > 1 else list(told.values())
    return f"<p class=eyebrow>{escape(' · '.join(words))}</p>" if words else ""


def learning_curves(entries: Sequence[Entry]) -> str:
    """Training loss, validation loss and target metrics over epochs; empty without records."""
    targets = dict.fromkeys(entry.target for entry in entries if entry.target)
    found = [learning_records(entry) for entry in entries]
    panels = []
    for kind, field, title in (
        ("train", "loss", "Training loss"),
        ("val", "loss", "Validation loss"),
        *(("val", target, f"Validation {metric_name(target)}") for target in targets),
    ):
        series = []
        for entry, records in zip(entries, found, strict=True):
            points = [(row["epoch"], as_float(row[field])) for row in records[kind] if field in row]
            if points:
                x, y = zip(*points, strict=True)
                series.append(Series(entry.name, x, y, colour=entry.place, marks=kind == "val"))
        if series:
            panels.append(Panel(title, series, zero=field == "loss", height=120))
    if not panels:
        return ""
    rows = [
        [
            escape(entry.name),
            f"{row['epoch']:.2f}",
            rounded(as_float(row["loss"])),
            rounded(as_float(row.get(entry.target or ""))),
        ]
        for entry, records in zip(entries, found, strict=True)
        for row in records["val"]
    ]
    key = legend([(entry.name, entry.place, 0) for entry in entries])
    table = html_table(["run", "epoch", "validation loss", f"validation {target_names(entries)}"], rows)
    return key + chart(lines(panels, x_title="epoch", width=520)) + details("The values", table)


def learning_records(entry: Entry) -> dict[str, list[dict[str, float]]]:
    """ "train" and "val" -> epoch, loss and, where it was validated, the target metric of each record."""
    names = ("epoch", "loss", entry.target or "")
    return {
        kind: [
            {name: record[name] for name in names if name in record}
            for record in entry.metrics
            if record["kind"] == kind and "loss" in record
        ]
        for kind in ("train", "val")
    }


def mistakes(known: Sequence[Entry]) -> str:
    """Confusion and the surest mistakes of the runs whose predictions were kept."""
    if not known:
        return ""
    html = ""
    single = [entry for entry in known if entry.task == "single-label"]
    if single:
        maps = "".join(confusion_map(entry) for entry in single)
        about = "Rows sum to 1: of the images of a true class, the share that was called so. Counts on hover and below."
        region = f'<div class="maps own" tabindex="0" role="region" aria-label="confusion matrices">{maps}</div>'
        counts = details("The counts", "".join(confusion_table(entry) for entry in single))
        figure = f"<figure>{region}<figcaption>{about}</figcaption></figure>"
        html += card(f"<h3>Which classes are mistaken for which?</h3>{figure}{counts}")
    return html + card(worst_cases(known))


def confusion_map(entry: Entry) -> str:
    """Shares of each true class as a heat map, with the counts on hover."""
    counts = confusion_of(entry)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    notes = [[f"{int(count)} of {int(row.sum())}" for count in row] for row in counts]
    return heat_map(
        np.where(counts.sum(1, keepdims=True) > 0, shares, np.nan),
        entry.classes,
        entry.classes,
        title=entry.name,
        x_title="predicted",
        y_title="true",
        first_row_below=False,
        notes=notes,
    )


def confusion_table(entry: Entry) -> str:
    """The counts behind a map."""
    rows = [
        [escape(name), *(str(int(count)) for count in row)]
        for name, row in zip(entry.classes, confusion_of(entry), strict=True)
    ]
    return f"<h3>{named(entry)}</h3>" + html_table(["true \\ predicted", *map(escape, entry.classes)], rows)


def confusion_of(entry: Entry) -> np.ndarray:
    """int64[C, C]: rows are the true classes."""
    assert entry.said is not None
    return confusion_matrix(entry.said.labels, entry.said.probabilities.argmax(1), len(entry.classes))


def reliability(known: Sequence[Entry]) -> str:
    """Accuracy over confidence: on the dotted line, a model is as often right as it says."""
    series = [Series("as sure as right", [0, 1], [0, 1], colour=NEUTRAL, dash=2, marks=False)]
    rows = []
    for entry in known:
        assert entry.said is not None
        found = reliability_of(entry.task, entry.said.labels, entry.said.probabilities)
        x, y, count = (found[:, i].tolist() for i in range(3))
        series.append(Series(entry.name, x, y, colour=entry.place))
        rows += [[escape(entry.name), f"{a:.3f}", f"{b:.3f}", str(int(n))] for a, b, n in zip(x, y, count, strict=True)]
    key = legend([(entry.name, entry.place, 0) for entry in known])
    panel = Panel("Share that is right", series, "by how sure the model is", zero=True, height=230)
    svg = lines([panel], x_title="mean probability of the predicted class", width=520)
    note = "Below the dotted line the model is surer than it is right. Few images in a bin: the table has their number."
    table = html_table(["run", "mean probability", "right", "images"], rows)
    return f"<h3>Do the probabilities mean what they say?</h3>{key}{chart(svg, note)}{details('The values', table)}"


def reliability_of(task: Task, labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """float64[bins that hold images, 3]: mean confidence, share that is right, images; equal bins of confidence.

    Of several labels each known one counts as a case of two classes.
    """
    if task == "single-label":
        confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    else:
        known = ~np.isnan(labels)
        score = probabilities[known]
        confidence, right = np.maximum(score, 1 - score), (score >= 0.5) == (labels[known] == 1)
    place = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    held = count > 0
    sums = (np.bincount(place, weights=of, minlength=BINS)[held] for of in (confidence, right.astype(float)))
    return np.stack([*(each / count[held] for each in sums), count[held]], 1)
