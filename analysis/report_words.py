"""How a report says things: names of metrics, runs as labels, cards, rounded numbers."""

from collections.abc import Sequence
from html import escape
from math import isfinite

from analysis.chart_style import NUM_SERIES
from analysis.report_data import Entry

METRIC_NAMES = {
    "roc_auc": "ROC-AUC",
    "roc_auc_ovr": "ROC-AUC, one against the rest",
    "quadratic_kappa": "quadratic kappa",
    "kappa": "Cohen's kappa",
    "f1": "F1",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score (lower is better)",
    "ece": "calibration error (lower is better)",
}


def metric_name(name: str | None) -> str:
    """A metric's name for reading."""
    return METRIC_NAMES.get(name or "", (name or "").replace("_", " "))


def target_names(entries: Sequence[Entry]) -> str:
    """The metric that the runs are judged by; all of them where the runs are of tasks that differ."""
    return " / ".join(dict.fromkeys(metric_name(entry.target) for entry in entries if entry.target))


def pill(entry: Entry) -> str:
    """The start of a run as a small label in the run's colour."""
    return f'<span class="pill" style="--tone:var(--s{entry.place % NUM_SERIES})">{escape(entry.start)}</span>'


def named(entry: Entry) -> str:
    """A run's name with its label."""
    return f"{escape(entry.name)} {pill(entry)}"


def card(html: str) -> str:
    """A box of the page."""
    return f'<div class="card">{html}</div>'


def grid(cards: str) -> str:
    """Boxes side by side where there is room."""
    return f'<div class="grid2">{cards}</div>'


def set_name(entry: Entry) -> str:
    """The name of a run's shard set, from whatever knows it."""
    asked = [found["request"].get("set") for found in entry.analyses.values()]
    known = [entry.results.get("shards"), *asked, entry.shards.manifest.name if entry.shards else None]
    return str(next((name for name in known if name), "–"))


def rounded(value: float) -> str:
    """Three decimals, "–" for NaN."""
    return f"{value:.3f}" if isfinite(value) else "–"


def with_interval(value: float, low: float, high: float) -> str:
    """A value with its 95 % interval, if it has one."""
    span = f' <span class="interval">{rounded(low)} to {rounded(high)}</span>' if isfinite(low) else ""
    return rounded(value) + span


def vector(values: Sequence[float]) -> str:
    """Numbers in brackets."""
    return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"
