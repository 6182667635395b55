"""The result of a report in one paragraph: of a study what seeds agree on, of single runs their scores."""

from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite, nan
from typing import Any

from analysis.report_data import Entry, Report
from analysis.report_words import metric_name, rounded, set_name
from analysis.results import as_float
from analysis.seeds import spread

MOST_CELLS = 3  # told one by one; of more the range


def verdict(report: Report) -> str:
    """HTML of the paragraph."""
    if report.gains:
        cells = report.gains["cells"]
        return "<br>".join(map(cell_told, cells)) if len(cells) <= MOST_CELLS else cells_told(cells)
    known = [(entry, entry.test_value()) for entry in report.entries if isfinite(entry.test_value())]
    if not known:
        return "No run of this report has a test result yet."
    sets = list(dict.fromkeys(set_name(entry) for entry, _ in known))
    if len(sets) > 1:
        return f"Runs on {escape(', '.join(sets))}: scores of different sets are not compared with each other."
    name = escape(metric_name(known[0][0].target))
    best, value = max(known, key=lambda pair: pair[1])
    reaches = f"<strong>{escape(_who(best))}</strong> reaches <strong>{value:.3f}</strong> {name} on the test split"
    if len(known) == 1:
        return reaches + "."
    worst, low = min(known, key=lambda pair: pair[1])
    return f"{reaches}, <strong>{value - low:.3f}</strong> above {escape(_who(worst))}."


def _who(entry: Entry) -> str:
    words = {"WT": "pretrained weights", "ST": "pretrained statistics alone", "RI": "a random start"}
    return f"{entry.name} ({words[entry.start]})" if entry.start in words else entry.name


def cell_told(cell: Mapping[str, Any]) -> str:
    """Scores of the three starts, and what features and scale gave, by the intervals that are there."""
    found = cell["over_seeds"]["starts"]
    runs = {start: int(row["runs"]) for start, row in found.items()}
    of = f"means of {_runs(list(runs.values()))}" if max(runs.values()) > 1 else "one run each"
    scores = ", ".join(
        f"{start.upper()} <strong>{rounded(as_float(row['mean']))}</strong>" for start, row in found.items()
    )
    features = _difference(cell, "wt-st")
    scale = _difference(cell, "st-ri")
    return (
        f"{escape(cell['model'])} on {escape(cell['set'])}, test {escape(metric_name(cell['metric']))}: {scores} "
        f"({of}). Pretrained features (WT - ST) gave {features}; the scale of pretrained weights (ST - RI) {scale}."
    )


def _runs(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least} seeds" if least == most else f"{least} to {most} seeds"


def _difference(cell: Mapping[str, Any], pair: str) -> str:
    """ "+0.311 (95 % over seeds: 0.250 to 0.372)", with "no difference shown" where the interval holds 0."""
    row, over = cell["over_seeds"]["differences"][pair], "seeds"
    if not isfinite(as_float(row["interval"][0])):
        row, over = cell["differences"][pair], "test images"
    low, high = map(as_float, row["interval"])
    value = f"<strong>{as_float(row['value']):+.3f}</strong>"
    if not isfinite(low):
        return f"{value} (no interval: one seed, and no predictions kept)"
    told = f"95 % over {over}: {low:.3f} to {high:.3f}"
    return f"{value} ({told}{': no difference shown' if low <= 0 <= high else ''})"


def cells_told(cells: Sequence[Mapping[str, Any]]) -> str:
    """The range over many cells."""
    shares = [value for cell in cells if isfinite(value := as_float(cell["features"]))]
    above = sum(as_float(cell["differences"]["wt-st"]["interval"][0]) > 0 for cell in cells)
    span = f"between {min(shares):.0%} and {max(shares):.0%} of WT's score" if shares else "no share that can be told"
    return (
        f"{len(cells)} cells of a model and a set: pretrained features gave {span}; in "
        f"<strong>{above}</strong> of them the 95 % interval over test images of WT - ST lies above 0."
    )


def seeds_of(entry: Entry, report: Report) -> dict[str, Any] | None:
    """Mean and spread over the finished plain runs of an entry's start, model and set; None for fewer than two."""
    if report.gathered is None or entry.run.config is None or entry.run.config.model.wt_until is not None:
        return None
    alike = [
        run.score
        for run in report.gathered.runs
        if run.is_plain
        and (run.data, run.model, run.start.upper()) == (set_name(entry), entry.run.info.model, entry.start)
    ]
    found = spread(alike)
    return found | {"low": min(alike, default=nan), "high": max(alike, default=nan)} if found["runs"] > 1 else None
