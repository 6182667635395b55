"""A study told as tables: scores by cell with mean, spread and interval; what is not done, and why."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scipy import stats

from shards.fetching import shown_place
from train.study_run import STOPPED

if TYPE_CHECKING:
    from train.study import Study


def last_line(words: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(words.splitlines()) if line.strip()), words)


def rows(study: "Study") -> list[dict[str, Any]]:
    """A row a combination without its seed: test scores of the target metric, mean, SD, 95 % interval (Student's t)."""
    found: dict[tuple[tuple[str, Any], ...], list[float | None]] = {}
    metric: dict[tuple[tuple[str, Any], ...], str] = {}
    for values, run in study.cells():
        cell = tuple((axis, value) for axis, value in values.items() if axis != "seed")
        results = run.results
        scores = (results or {}).get("test") or (results or {}).get("val") or {}
        metric[cell] = (results or {}).get("target_metric", metric.get(cell, ""))
        found.setdefault(cell, []).append(scores.get(metric[cell]))
    return [dict(cell) | {"metric": metric[cell]} | summary(values) for cell, values in found.items()]


def summary(values: Sequence[float | None]) -> dict[str, Any]:
    """Scores, how many are done, and mean, standard deviation, median and 95 % interval of those."""
    done = [value for value in values if value is not None]
    told: dict[str, Any] = {"scores": list(values), "done": len(done), "of": len(values)}
    if done:
        told |= {"mean": statistics.mean(done), "median": statistics.median(done)}
    if len(done) > 1:
        deviation = statistics.stdev(done)
        half = stats.t.ppf(0.975, len(done) - 1) * deviation / len(done) ** 0.5
        told |= {"sd": deviation, "low": told["mean"] - half, "high": told["mean"] + half}
    return told


def table(found: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> str:
    """The rows as a Markdown table."""
    shown = [axis for axis in axes if axis != "seed"]
    head = [*shown, "metric", "done", "mean", "SD", "95 % interval", "median"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in found:
        number = {key: f"{row[key]:.3f}" if key in row else "" for key in ("mean", "sd", "median", "low", "high")}
        interval = f"{number['low']} to {number['high']}" if "low" in row else ""
        cells = [cell(axis, row[axis]) for axis in shown]
        cells += [row["metric"], f"{row['done']}/{row['of']}", number["mean"], number["sd"], interval, number["median"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(axis: str, value: Any) -> str:
    """A value of the grid as a table shows it: of a shard set its name."""
    return "" if value is None else Path(shown_place(value)).name if axis == "shards" else str(value)


def unfinished(study: "Study", failed: Mapping[str, str]) -> str:
    """Runs that were begun and are not done as a Markdown table; empty where there are none."""
    lines = []
    for run in study.runs:
        words, state = last_line(failed.get(run.name, "")), run.state
        if state == "done" or (state == "waiting" and not words):
            continue
        state = "failed" if words not in ("", STOPPED) and state != "running" else state
        lines.append(f"| {run.name} | {state} | {run.step or ''} | {words.replace('|', ' ')[:100]} |")
    head = ["| not done | state | step | last words |", "|---|---|---|---|"]
    return "\n".join([*head, *lines]) if lines else ""
