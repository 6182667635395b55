"""How do runs compare? Gains over models and sets, curves by depth and by data, and a row a run."""

from collections.abc import Sequence
from html import escape
from typing import Any

from analysis import curves, gains
from analysis.chart_parts import legend, number
from analysis.report_data import Report
from analysis.report_style import chart, details, heading, html_table
from analysis.report_words import card, metric_name, rounded
from analysis.results import as_float

GAINS_TOLD = (
    "A dot is a model on a shard set. Height and shade: the share of WT's score that its features gave, "
    "(WT - ST) / WT; area: what transfer gave in all, WT / RI. Whiskers: 95 %, paired over test images by group. One "
    "cell alone has no shade; a ratio to a score near zero says nothing."
)
CURVE_TOLD = (
    "Line: mean over seeds; small marks: runs, where there are several; whiskers: 95 % over test images by group, not "
    "over seeds."
)


def comparison(report: Report) -> str:
    """The section; empty where there is one run alone."""
    found = report.gathered
    if found is None or len(found.runs) < 2:
        return ""
    about = (
        "Scores on the test split. WT - ST is what features gave, ST - RI what the scale of pretrained weights gave. "
        "Two kinds of luck are told apart: that of the test images, and that of a seed."
    )
    html = heading("comparison", "How do the runs compare?", about)
    html += _gains(report.gains) if report.gains else card(f"<p>No gains: {escape(report.why_no_gains)}.</p>")
    html += "".join(_curve(report.curves, by) for by in ("depth", "data")) if report.curves else ""
    return html + card(f"<h3>All runs</h3>{_runs_table(report)}{_remarks(found.remarks)}")


def _gains(values: dict[str, Any]) -> str:
    head, *rows = gains.rows(values)
    rank = values["spearman"]
    told = (
        f"Spearman of area and shade over {rank['cells']} cells: {number(as_float(rank['rho']))}. "
        if rank["cells"] > 2
        else ""
    )
    table = html_table(head, [[_stacked(cell) for cell in row] for row in rows], text_columns=2)
    note = "Medians over seeds. p: two-sided, of the bootstrap, Holm-corrected over all differences of the page."
    return card(
        f"<h3>What transfer gave, and what of it were features</h3>{chart(gains.figure(values), told + GAINS_TOLD)}"
        f"{table}<p class=hint>{note}</p>{_over_seeds(values)}{_remarks(values['remarks'])}"
    )


def _stacked(cell: str) -> str:
    """ "0.31 (0.18 to 0.46)" with the interval below the value."""
    value, _, interval = cell.partition(" (")
    below = f'<br><span class="interval">{escape(interval.removesuffix(")"))}</span>' if interval else ""
    return escape(value) + below


def _over_seeds(values: dict[str, Any]) -> str:
    head, *rows = gains.seed_rows(values)
    several = any(row["runs"] > 1 for cell in values["cells"] for row in cell["over_seeds"]["starts"].values())
    if not several:
        return "<p class=hint>One seed a start: nothing here tells the luck of training from a difference.</p>"
    note = (
        "Means over seeds ± standard deviations; differences with 95 % intervals by Welch's t, p Holm-corrected over "
        "all of them. They ask whether another seed would say the same of these test images."
    )
    table = html_table(head, [[_stacked(cell) for cell in row] for row in rows], text_columns=2)
    return f"<h4>Over seeds</h4>{table}<p class=hint>{note}</p>"


def _curve(values: dict[str, Any], by: str) -> str:
    chosen = [curve for curve in values["curves"] if curve["by"] == by]
    if not chosen:
        return ""
    titles = {"depth": "Up to where must features be pretrained?", "data": "With how much data does it matter?"}
    names = list(dict.fromkeys(name for curve in chosen for name in curve["series"]))
    rows = [row for row in curves.rows(values) if row[2] == by]
    cells = [[escape(cell) if isinstance(cell, str) else number(as_float(cell)) for cell in row] for row in rows]
    table = details("The values", html_table(list(curves.HEAD), cells, text_columns=4))
    key = legend([(name, curves.colour_of(name), 0) for name in names])
    return card(f"<h3>{titles[by]}</h3>{key}{chart(curves.figure(values, by, 760), CURVE_TOLD)}{table}")


def _runs_table(report: Report) -> str:
    assert report.gathered is not None
    rows = [
        [
            escape(run.name), f"<code>{escape(run.model)}</code>", escape(run.data), run.start.upper(),
            escape(run.until or ""), f"{run.fraction:g}", str(run.seed), escape(metric_name(run.target)),
            rounded(run.score),
        ]
        for run in report.gathered.runs
    ]  # fmt: skip
    head = ("run", "model", "set", "start", "WT until", "data", "seed", "metric", "test")
    return html_table(head, rows, text_columns=5)


def _remarks(remarks: Sequence[str]) -> str:
    return "".join(f"<p class=hint>{escape(remark)}.</p>" for remark in remarks)
