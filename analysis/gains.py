"""What features gave, what statistics gave: the study's figure over models and datasets, with intervals.

    python analysis/gains.py examples/studies/figure.toml --fid published

Reads the results and predictions of finished WT, ST and RI runs (all data, no boundary). A cell is a model on a shard
set: medians over seeds of the target metric on the test split, size = WT / RI (what transfer gave), colour =
(WT - ST) / WT (what features gave), also normalised over all cells to 0..1. Intervals: paired bootstrap, whole groups
of test images drawn 1000 times, the same for all runs of a cell; p-values of the differences, Holm-corrected over all
of them. Beside them means over seeds with Student's and Welch's intervals, which hold the luck of training. Writes
gains.json, gains.csv and gains.svg into the study's folder (analysis/), or that of the first run.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from analysis import seeds
from analysis.chart_parts import number
from analysis.chart_style import standalone
from analysis.console import announce, table
from analysis.dot_charts import Dot, dot_panels
from analysis.paired import bootstrap_p, bounds, holm
from analysis.results import as_float, write_result
from analysis.study_runs import STUDIES, Gathered, Trained, gather, resampled, same_set
from shards.aside import write_aside
from shards.command_line import Parser, add_output_flags, positive
from shards.words import counted

STARTS = ("wt", "st", "ri")
PAIRS = (("wt", "st"), ("st", "ri"), ("wt", "ri"))
PUBLISHED_FID = {"ISIC2019": 141.0, "DDSM": 155.0, "APTOS2019": 160.0, "CheXpert": 181.0, "Camelyon": 202.0}
CAPTION = (
    "medians over seeds of the target metric on the test split; intervals: 95 %, paired bootstrap by group over test "
    "images (not over seeds); p: two-sided, Holm-corrected over all differences"
)


def main(args: argparse.Namespace) -> None:
    """Gather, work out, write, tell."""
    found = gather(args.runs, args.studies)
    fid = distances(args.fid)
    values = compare(found, args.draws, args.seed, fid)
    folder = args.out or found.folder
    path = write_result(folder, "gains", request_of(found, args.draws, args.seed), values, standalone(figure(values)))
    write_aside(path.with_suffix(".csv"), cells_csv(values).encode())
    announce(args, path, text(values))


def request_of(found: Gathered, draws: int, seed: int) -> dict[str, Any]:
    """What the numbers came from: every run with the digest of its set."""
    runs = {str(each.run.path): {"set": each.digest, "finished": each.results.get("finished")} for each in found.runs}
    return {"runs": runs, "draws": draws, "seed": seed}


def distances(words: Sequence[str] | None) -> dict[str, float]:
    """`--fid`: NAME=NUMBER a set, or "published". Raises ValueError for anything else."""
    if not words:
        return {}
    if list(words) == ["published"]:
        return dict(PUBLISHED_FID)
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"--fid {word}: write SET=NUMBER, such as ISIC2019=141, or published") from None
    return found


def compare(found: Gathered, draws: int, seed: int, fid: Mapping[str, float]) -> dict[str, Any]:
    """All cells, and what holds over them.

    Raises ValueError where no model has WT, ST and RI runs on one set.
    """
    cells, remarks = [], list(found.remarks)
    for (data, model), runs in cells_of(found.runs).items():
        missing = [start.upper() for start in STARTS if not any(run.start == start for run in runs)]
        if missing:
            remarks.append(f"{model} on {data} has no {' and no '.join(missing)} run: it is left out")
        else:
            cells.append(cell(data, model, runs, draws, seed) | {"fid": fid.get(data)})
    if not cells:
        why = "; ".join(remarks) or "no run is on all of the training split"
        raise ValueError(f"gains want WT, ST and RI runs of one model on one set: {why}")
    correct(cells)
    normalise(cells)
    sizes, colours = ([each[name] for each in cells] for name in ("size", "features"))
    remarks += [f"{each['model']} on {each['set']}: {word}" for each in cells for word in each.pop("remarks")]
    return {"about": CAPTION, "cells": cells, "spearman": spearman(sizes, colours), "remarks": remarks}


def cells_of(runs: Sequence[Trained]) -> dict[tuple[str, str], list[Trained]]:
    """(set, model) -> its plain runs, in the order of their coming."""
    cells: dict[tuple[str, str], list[Trained]] = {}
    for run in runs:
        if run.is_plain:
            cells.setdefault((run.data, run.model), []).append(run)
    return cells


def cell(data: str, model: str, runs: Sequence[Trained], draws: int, seed: int) -> dict[str, Any]:
    """One model on one set: scores by start, gains, their intervals and p-values before correction."""
    same_set(runs)
    starts = np.array([STARTS.index(run.start) for run in runs])
    scores = np.array([run.score for run in runs])
    drawn = resampled(runs, draws, seed)
    remarks = [] if drawn else ["no predictions of test images: no intervals (train again, or run.py --test)"]
    median = of_starts(scores[None], starts)
    values: dict[str, Any] = {
        "set": data,
        "model": model,
        "metric": runs[0].target,
        "test_images": drawn.images if drawn else None,
        "groups": drawn.groups if drawn else None,
        "scores": {start: scores[starts == i].tolist() for i, start in enumerate(STARTS)},
        "medians": {start: float(median[i, 0]) for i, start in enumerate(STARTS)},
        "remarks": remarks,
    }
    resampled_medians = of_starts(drawn.scores, starts) if drawn else np.full((3, 1), np.nan)
    size, features = gains(*median)
    low, high = bounds(resampled_medians[2]) if drawn else (float(median[2, 0]),) * 2
    if low <= 0:
        remarks.append(f"RI is not apart from 0 ({_short(low)} to {_short(high)}): WT / RI says nothing")
    for name, value, spread in zip(("size", "features"), (size, features), gains(*resampled_medians), strict=True):
        values |= {name: float(value[0]), f"{name}_interval": bounds(spread)}
    values["differences"] = {
        f"{first}-{second}": _difference(median[:, 0], resampled_medians, STARTS.index(first), STARTS.index(second))
        for first, second in PAIRS
    }
    by_start = [scores[starts == i].tolist() for i in range(len(STARTS))]
    values["over_seeds"] = {
        "starts": {start: seeds.spread(found) for start, found in zip(STARTS, by_start, strict=True)},
        "differences": {
            f"{first}-{second}": seeds.difference(by_start[STARTS.index(first)], by_start[STARTS.index(second)])
            for first, second in PAIRS
        },
    }
    return values


def _difference(median: np.ndarray, drawn: np.ndarray, first: int, second: int) -> dict[str, Any]:
    spread = drawn[first] - drawn[second]
    value = float(median[first] - median[second])
    return {"value": value, "interval": bounds(spread), "p": bootstrap_p(spread)}


def of_starts(scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """float64[3, draws]: medians over the runs of WT, ST and RI of scores [draws, runs]."""
    return np.stack([np.median(scores[:, starts == i], axis=1) for i in range(len(STARTS))])


def gains(wt: np.ndarray, st: np.ndarray, ri: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(WT / RI, (WT - ST) / WT), NaN where the divisor is not above 0.

    Scores float[k] of k comparisons each.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(ri > 0, wt / ri, np.nan), np.where(wt > 0, (wt - st) / wt, np.nan)


def correct(cells: Sequence[dict[str, Any]]) -> None:
    """Holm's correction over the differences of all cells, over images and over seeds each, in place."""
    for kind in ([each["differences"] for each in cells], [each["over_seeds"]["differences"] for each in cells]):
        rows = [row for found in kind for row in found.values()]
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = float(p)


def normalise(cells: Sequence[dict[str, Any]]) -> None:
    """The colour of each cell: (WT - ST) / WT from 0, the least of all cells, to 1, the most; in place."""
    values = [each["features"] for each in cells if math.isfinite(each["features"])]
    low, high = min(values, default=math.nan), max(values, default=math.nan)
    for each in cells:
        each["colour"] = (each["features"] - low) / (high - low) if high > low else math.nan


def spearman(sizes: Sequence[float], colours: Sequence[float]) -> dict[str, Any]:
    """Rank correlation of size and colour over cells; NaN for fewer than three."""
    both = np.array([sizes, colours])
    both = both[:, np.isfinite(both).all(0)]
    if both.shape[1] < 3 or (np.ptp(both, axis=1) == 0).any():
        return {"rho": math.nan, "p": math.nan, "cells": both.shape[1]}
    found = stats.spearmanr(*both)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "cells": both.shape[1]}


def figure(values: Mapping[str, Any], width: int = 940) -> str:
    """A panel a model; a dot a set: its size WT / RI, its shade the normalised share of features, whiskers 95 %."""
    cells = values["cells"]
    sets = list(dict.fromkeys(each["set"] for each in cells))
    by_fid = all(each.get("fid") is not None for each in cells)
    panels: dict[str, list[Dot]] = {}
    for each in cells:
        low, high = (as_float(v) for v in each["features_interval"])
        note = f"{each['set']}: WT/RI {number(as_float(each['size']))}, (WT-ST)/WT {number(as_float(each['features']))}"
        note += f" (95 %: {number(low)} to {number(high)})"
        x = float(each["fid"]) if by_fid else float(sets.index(each["set"]))
        size, y, shade = (as_float(each[name]) for name in ("size", "features", "colour"))
        panels.setdefault(each["model"], []).append(Dot(x, y, low, high, size, shade, note, each["set"]))
    return dot_panels(
        list(panels.items()),
        categories=() if by_fid else sets,
        x_title="FID to the source" if by_fid else "shard set",
        y_title="features: (WT - ST) / WT",
        size_title="WT / RI",
        width=width,
    )


def cells_csv(values: Mapping[str, Any]) -> str:
    """A row a cell, unrounded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["set", "model", "metric", "fid", "wt", "st", "ri", "size", "size_low", "size_high"]
    head += ["features", "features_low", "features_high", "colour"]
    fields = ("value", "low", "high", "p_holm")
    head += [f"{pair}_{field}" for pair in ("wt-st", "st-ri", "wt-ri") for field in fields]
    head += [f"seeds_{start}_{field}" for start in STARTS for field in ("runs", "mean", "sd", "low", "high")]
    head += [f"seeds_{pair}_{field}" for pair in ("wt-st", "st-ri", "wt-ri") for field in fields]
    writer.writerow(head)
    for each in values["cells"]:
        row = [each["set"], each["model"], each["metric"], each["fid"], *each["medians"].values()]
        row += [each["size"], *each["size_interval"], each["features"], *each["features_interval"], each["colour"]]
        over = each["over_seeds"]
        for found in each["differences"].values():
            row += [found["value"], *found["interval"], found["p_holm"]]
        for found in over["starts"].values():
            row += [found["runs"], found["mean"], found["sd"], *found["interval"]]
        for found in over["differences"].values():
            row += [found["value"], *found["interval"], found["p_holm"]]
        writer.writerow(row)
    return stream.getvalue()


def rows(values: Mapping[str, Any]) -> list[list[str]]:
    """The table for reading: a row a cell under a head."""
    told = [["set", "model", "WT", "ST", "RI", "WT/RI", "(WT-ST)/WT", "WT-ST", "p", "ST-RI", "p"]]
    for each in values["cells"]:
        cells = [each["set"], each["model"], *(_short(value) for value in each["medians"].values())]
        cells += [_with_interval(each["size"], each["size_interval"])]
        cells += [_with_interval(each["features"], each["features_interval"])]
        for pair in ("wt-st", "st-ri"):
            found = each["differences"][pair]
            cells += [_with_interval(found["value"], found["interval"]), _short(found["p_holm"])]
        told.append(cells)
    return told


def seed_rows(values: Mapping[str, Any]) -> list[list[str]]:
    """Means over seeds ± standard deviations, their differences with Welch's intervals, under a head."""
    told = [["set", "model", "WT", "ST", "RI", "WT-ST", "p", "ST-RI", "p"]]
    for each in values["cells"]:
        found = each["over_seeds"]
        cells = [each["set"], each["model"]]
        for start in STARTS:
            row = found["starts"][start]
            spread = f" ± {_short(row['sd'])}" if row["runs"] > 1 else ""
            cells.append(f"{_short(row['mean'])}{spread}, {counted(row['runs'], 'run')}")
        for pair in ("wt-st", "st-ri"):
            row = found["differences"][pair]
            cells += [_with_interval(row["value"], row["interval"]), _short(row["p_holm"])]
        told.append(cells)
    return told


def text(values: Mapping[str, Any]) -> list[str]:
    """The tables for the console."""
    rank = values["spearman"]
    lines = [*table(rows(values)), "means over seeds:", *table(seed_rows(values))]
    lines.append(f"Spearman of size and colour over {rank['cells']} cells: {number(as_float(rank['rho']))}")
    return lines + [f"note: {remark}" for remark in values["remarks"]]


def _with_interval(value: float | None, interval: Sequence[float | None]) -> str:
    low, high = map(_short, interval)
    return f"{_short(value)} ({low} to {high})" if low != "–" else _short(value)


def _short(value: float | None) -> str:
    return f"{value:.3g}" if value is not None and math.isfinite(value) else "–"


def flags(description: str) -> argparse.ArgumentParser:
    """A parser with the flags of every comparison of runs."""
    made = Parser(description=description)
    made.add_argument("runs", nargs="+", type=Path, metavar="STUDY|RUN", help="study files (.toml), run directories")
    made.add_argument("--studies", type=Path, default=STUDIES, help="where studies lie")
    made.add_argument("--out", type=Path, help="where the results go (default analysis/ of the study or the first run)")
    made.add_argument("--draws", type=positive, default=1000, help="resamples of the bootstrap")
    made.add_argument("--seed", type=int, default=0, help="seed of the resamples")
    add_output_flags(made, "the result")
    return made


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = flags(__doc__)
    made.add_argument("--fid", nargs="+", metavar="SET=NUMBER", help="distances for the x axis, or: published")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
