"""How far up must features be pretrained, and with how much data does transfer matter? Curves over the runs of a study.

    python analysis/curves.py examples/studies/figure.toml

By depth: ST with the first n layer groups pretrained (WT-ST-n), from ST (n = 0) to WT (all). By data: each start over
the fraction of the training split. A point is the mean over seeds of the target metric on the test split, each seed is
shown, and the interval is a paired bootstrap by group over test images. Writes curves.json, curves.csv and curves.svg
into the study's folder (analysis/), or that of the first run.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.chart_parts import number, placed, size_of, svg_key, svg_root
from analysis.chart_style import standalone
from analysis.charts import Panel, Series, lines
from analysis.console import announce, table
from analysis.gains import STARTS, flags, request_of
from analysis.paired import bounds
from analysis.results import as_float, write_result
from analysis.study_runs import Gathered, Trained, gather, resampled, same_set
from shards.aside import write_aside
from train.layers import group_index, layer_groups

CAPTION = (
    "mean over seeds of the target metric on the test split; interval: 95 %, paired bootstrap by group over test "
    "images (not over seeds)"
)


def main(args: argparse.Namespace) -> None:
    """Gather, work out, write, tell."""
    found = gather(args.runs, args.studies)
    values = measure(found, args.draws, args.seed)
    folder = args.out or found.folder
    drawn = standalone(figure(values, key=True))
    path = write_result(folder, "curves", request_of(found, args.draws, args.seed), values, drawn)
    write_aside(path.with_suffix(".csv"), points_csv(values).encode())
    announce(args, path, text(values))


def measure(found: Gathered, draws: int, seed: int) -> dict[str, Any]:
    """All curves. Raises ValueError where the runs differ neither in boundary nor in fraction."""
    cells: dict[tuple[str, str], list[Trained]] = {}
    for run in found.runs:
        cells.setdefault((run.data, run.model), []).append(run)
    curves = []
    for (data, model), runs in cells.items():
        same_set(runs)
        drawn = resampled(runs, draws, seed)
        scores = drawn.scores if drawn else None
        about = {"set": data, "model": model, "metric": runs[0].target}
        curves += [about | each for each in (by_depth(runs, scores), by_data(runs, scores)) if each]
    if not curves:
        raise ValueError(
            "these runs give no curve: by depth wants st runs of several wt_until, by data several fractions"
        )
    return {"about": CAPTION, "curves": curves, "remarks": list(found.remarks)}


def by_depth(runs: Sequence[Trained], drawn: np.ndarray | None) -> dict[str, Any] | None:
    """Score by how many layer groups are pretrained; None where no run has a boundary. `drawn` [draws, runs]."""
    whole = [(i, run) for i, run in enumerate(runs) if run.fraction == 1 and run.start != "ri"]
    if not any(run.until is not None for _, run in whole):
        return None
    names = list(layer_groups(runs[0].run.build_model()))

    def kept(run: Trained) -> float:
        until = run.until or "0"
        return len(names) if run.start == "wt" else group_index(names, int(until) if until.isdigit() else until)

    points = points_of(whole, kept, drawn)
    return {"by": "depth", "groups": names, "series": {"WT up to n, ST beyond": points}}


def by_data(runs: Sequence[Trained], drawn: np.ndarray | None) -> dict[str, Any] | None:
    """Score by fraction of the training split, a series a start; None where all runs saw one fraction.

    `drawn` [draws, runs].
    """
    series = {}
    for start in STARTS:
        chosen = [(i, run) for i, run in enumerate(runs) if run.start == start and run.until is None]
        if len({run.fraction for _, run in chosen}) > 1:
            series[start.upper()] = points_of(chosen, lambda run: run.fraction, drawn)
    return {"by": "data", "series": series} if series else None


def points_of(
    runs: Sequence[tuple[int, Trained]], place: Callable[[Trained], float], drawn: np.ndarray | None
) -> list[dict[str, Any]]:
    """Points in order of x: mean over seeds, its interval, each seed's score. `drawn` [draws, runs]."""
    groups: dict[float, list[tuple[int, Trained]]] = {}
    for i, run in runs:
        groups.setdefault(place(run), []).append((i, run))
    points = []
    for x in sorted(groups):
        scores = [run.score for _, run in groups[x]]
        spread = drawn[:, [i for i, _ in groups[x]]].mean(1) if drawn is not None else np.empty(0)
        points.append({"x": x, "mean": float(np.mean(scores)), "interval": bounds(spread), "scores": scores})
    return points


def panel(curve: Mapping[str, Any]) -> Panel:
    """A curve with its whiskers; runs as small marks where a point has several."""
    series: list[Series] = []
    middle = (len(curve["series"]) - 1) / 2
    for place, (name, points) in enumerate(curve["series"].items()):
        colour, shift = colour_of(name), 9 * (place - middle)
        x = [point["x"] for point in points]
        low, high = ([as_float(point["interval"][side]) for point in points] for side in (0, 1))
        y = [as_float(point["mean"]) for point in points]
        for point in points:
            for i, score in enumerate(point["scores"] if len(point["scores"]) > 1 else ()):
                dot = Series(f"{name}, run {i + 1}", [point["x"]], [as_float(score)], colour, size=2.3, shift=shift)
                series.append(dot)
        series.append(Series(f"mean of {name}", x, y, colour, low=low, high=high, shift=shift))  # above its runs
    return Panel(f"{curve['model']} on {curve['set']}", series, curve["metric"].replace("_", " "), height=190)


def colour_of(name: str) -> int:
    """WT, ST and RI have the colours that a report of the three gives them; a curve by depth has WT's."""
    return STARTS.index(name.lower()) if name.lower() in STARTS else 0


def figure(values: Mapping[str, Any], by: str | None = None, width: int = 760, *, key: bool = False) -> str:
    """Curves of a kind, or of all kinds one above another, those over one axis together; `key` names the series."""
    axes: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for curve in values["curves"]:
        if by in (None, curve["by"]):
            axes.setdefault((curve["by"], len(curve.get("groups", ()))), []).append(curve)
    made = []
    for (kind, groups), curves in axes.items():
        title = f"layer groups that start pretrained, of {groups}" if kind == "depth" else "share of the training split"
        svg = lines([panel(curve) for curve in curves], x_title=title, width=width, x_marks=x_marks(curves))
        names = list(dict.fromkeys(name for curve in curves for name in curve["series"]))
        made.append(svg_key(svg, [(name, colour_of(name), colour_of(name)) for name in names], width) if key else svg)
    if len(made) == 1:
        return made[0]
    parts, y = [], 0.0
    for svg in made:
        parts.append(placed(svg, 0, y))
        y += size_of(svg)[1] + 10
    return svg_root(width, y, "curves by depth and by data", "".join(parts))


def x_marks(curves: Sequence[Mapping[str, Any]]) -> dict[float, str]:
    """The places that were measured: "30 %" of the data; "0 (ST)", "4", "18 (WT)" layer groups."""
    marks: dict[float, str] = {}
    for curve in curves:
        for x in (point["x"] for points in curve["series"].values() for point in points):
            if curve["by"] == "data":
                marks[x] = f"{100 * x:.3g} %"
            else:
                marks[x] = f"{x:.3g}" + {0: " (ST)", len(curve["groups"]): " (WT)"}.get(x, "")
    return marks


def rows(values: Mapping[str, Any]) -> list[list[Any]]:
    """A row a point: set, model, curve, series, x, mean, low, high, runs."""
    return [
        [
            curve["set"],
            curve["model"],
            curve["by"],
            name,
            point["x"],
            point["mean"],
            *point["interval"],
            len(point["scores"]),
        ]
        for curve in values["curves"]
        for name, points in curve["series"].items()
        for point in points
    ]


HEAD = ("set", "model", "by", "series", "x", "mean", "low", "high", "runs")


def points_csv(values: Mapping[str, Any]) -> str:
    """A row a point, unrounded."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([HEAD, *rows(values)])
    return stream.getvalue()


def text(values: Mapping[str, Any]) -> list[str]:
    """The table for the console."""
    told = [list(HEAD)]
    for row in rows(values):
        told.append([cell if isinstance(cell, str) else number(as_float(cell)) for cell in row])
    return table(told) + [f"note: {remark}" for remark in values["remarks"]]


if __name__ == "__main__":
    launch(flags(__doc__), main)
