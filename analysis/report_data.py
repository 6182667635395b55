"""What a report is made of: a run's own record, what it said of test images, and the results of its analyses.

Of a study one run of each start is shown, the one nearest its median; all of them are compared.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis import curves, gains
from analysis.charts import values_or_gaps
from analysis.gains import STARTS
from analysis.knn import by_layer
from analysis.results import as_float, read_result
from analysis.study_runs import PREDICTIONS, Gathered, Trained, gather, trained
from shards.shardset import ShardSet
from train.metrics import Task
from train.predictions import Told, read_predictions
from train.rundir import Run, open_run

ANALYSES = ("knn", "cka", "l2", "reinit", "rerand", "probe", "dimension")
FURTHER = ("trajectory", "attention", "embeddings", "saliency")  # with figures of their own
SHOWN = 6  # runs of a study, one a colour


@dataclass(frozen=True)
class Entry:
    """One run of a report, with its place among the others (which is its colour)."""

    run: Run
    place: int
    results: Mapping[str, Any]  # results.json of the run, empty where it has not ended
    metrics: Sequence[Mapping[str, Any]]
    analyses: Mapping[str, Mapping[str, Any]]
    further: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @cached_property
    def start(self) -> str:
        """WT, ST, RI, ST up to a group, or "–" for foreign weights."""
        config = self.run.config
        if config is None:
            return "–"
        until = f" up to {config.model.wt_until}" if config.model.wt_until is not None else ""
        return config.model.start.upper() + until

    @cached_property
    def shards(self) -> ShardSet | None:
        """The run's shard set where it is still there."""
        try:
            return self.run.shards
        except (ValueError, OSError):
            return None

    @property
    def target(self) -> str | None:
        """The metric that the run is judged by."""
        named = [self.results.get("target_metric"), *(found.get("target") for found in self.analyses.values())]
        return next((name for name in named if name), self.shards.manifest.target_metric if self.shards else None)

    @property
    def phantom(self) -> bool:
        """Whether the images are drawn, not taken."""
        asked = (found["request"].get("phantom", False) for found in self.analyses.values())
        return bool(self.results.get("phantom")) or any(asked)

    @property
    def layers(self) -> list[str]:
        """Layer groups in order, of the first analysis that has them."""
        for found in self.analyses.values():
            if found["request"].get("layers"):
                return list(found["request"]["layers"])
        return []

    def test_value(self) -> float:
        """The target metric on the test split; NaN where there is none."""
        return as_float((self.results.get("test") or {}).get(self.target or ""))

    @property
    def why_no_score(self) -> str:
        """Why there is no test score, in words."""
        if not self.results:
            return "the run has not ended (--resume goes on)" if self.run.folder else "weights alone, no record"
        if not self.results.get("test"):
            return "its shard set has no test split"
        return "undefined on these test images"

    def test_interval(self, name: str) -> tuple[float, float, float]:
        """(value, low, high) of a test metric; NaN for bounds that were not worked out."""
        found = ((self.results.get("test_details") or {}).get("intervals") or {}).get(name) or {}
        return as_float(self.results["test"].get(name)), as_float(found.get("low")), as_float(found.get("high"))

    @property
    def calibration(self) -> Mapping[str, Any]:
        """Brier score and calibration error, where they are known."""
        return (self.results.get("test_details") or {}).get("calibration") or {}

    @property
    def task(self) -> Task:
        """Of the shard set; single-label where it is gone."""
        return self.shards.task if self.shards is not None else "single-label"

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return list(self.shards.classes) if self.shards is not None else list(self.run.info.classes)

    @cached_property
    def said(self) -> Told | None:
        """What the run said of each test image; None where that was not kept."""
        path = (self.run.folder or self.run.path) / PREDICTIONS
        try:
            return read_predictions(path, self.task, self.classes)
        except (ValueError, OSError):
            return None

    @cached_property
    def places(self) -> dict[str, int]:
        """Key -> position of each test image; none without the shard set."""
        if self.shards is None or "test" not in self.shards.split_names:
            return {}
        split = self.shards.split("test")
        return {split.key(i): i for i in range(split.num_samples)}

    def by_layer(self, measure: str) -> list[float]:
        """One number a layer group: "cka", "knn", "knn-start", "probe", "l2", "reinit" (loss of the target metric)."""
        values = _BY_LAYER[measure](self)
        return values_or_gaps(values, self.layers)


@dataclass(frozen=True)
class Report:
    """Runs that are shown, all runs that are compared, and what comes of the comparison."""

    entries: Sequence[Entry]
    gathered: Gathered | None = None
    gains: dict[str, Any] | None = None
    curves: dict[str, Any] | None = None
    why_no_gains: str = ""
    peers: Sequence[Entry] = ()  # analysed runs of other seeds, each in the colour of the shown run of its start


def compare_all(
    entries: Sequence[Entry], gathered: Gathered | None, draws: int = 1000, peers: Sequence[Entry] = ()
) -> Report:
    """The report of some entries, with gains and curves where the runs allow them."""
    if gathered is None:
        return Report(entries)
    found: dict[str, Any] = {}
    try:
        found["gains"] = gains.compare(gathered, draws, 0, {})
    except ValueError as error:
        found["why_no_gains"] = str(error)
    with suppress(ValueError):  # no curve in these runs
        found["curves"] = curves.measure(gathered, draws, 0)
    return Report(entries, gathered, **found, peers=peers)


def gather_finished(paths: Sequence[Path]) -> Gathered | None:
    """Those of some runs that can be compared; None where they are fewer than two."""
    able = [path for path in paths if _is_finished(path)]
    return gather(able) if len(able) > 1 else None


def _is_finished(path: Path) -> bool:
    try:
        trained(path)
    except (ValueError, OSError):
        return False
    return True


def chosen(found: Gathered) -> list[Path]:
    """Runs of a study to show, of each model, set and start one, WT before ST before RI; without any the first ones.

    It is the run whose score is nearest the median of its start, of those that were analysed where some were.
    """
    cells: dict[tuple[str, str, str], list[Trained]] = {}
    for run in found.runs:
        if run.is_plain:
            cells.setdefault((run.data, run.model, run.start), []).append(run)
    models = list(dict.fromkeys((data, model) for data, model, _ in cells))
    order = sorted(cells, key=lambda cell: (models.index(cell[:2]), STARTS.index(cell[2])))
    shown = [_typical(cells[cell]) for cell in order]
    return [run.run.path for run in (shown or found.runs)[:SHOWN]]


def _typical(runs: Sequence[Trained]) -> Trained:
    middle = float(np.median([run.score for run in runs]))
    return min(runs, key=lambda run: (not any(run.run.out_dir.glob("*.json")), abs(run.score - middle)))


def load(paths: Sequence[Path], shards: str | Path | None, model: str | None) -> list[Entry]:
    """Open the runs of a report. ValueError for a path that is none, or one run given twice."""
    entries = [_entry(path, place, shards, model) for place, path in enumerate(paths)]
    names = [entry.run.path.resolve() for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("a run is named twice: name each once")
    return entries


def _entry(path: Path, place: int, shards: str | Path | None, model: str | None) -> Entry:
    run = open_run(path, shards, model)
    files = {name: run.out_dir / f"{name}.json" for name in (*ANALYSES, *FURTHER)}
    found = {name: read_result(file) for name, file in files.items() if file.is_file()}
    try:
        results = run.results()
    except ValueError:
        results = {}
    analyses = {name: found[name] for name in ANALYSES if name in found}
    further = {name: found[name] for name in FURTHER if name in found}
    return Entry(run, place, results, run.metrics(), analyses, further)


def peers_of(entries: Sequence[Entry], found: Gathered) -> list[Entry]:
    """The analysed runs of a study that are not shown, but differ from a shown one in their seed alone."""
    shown = {entry.run.path.resolve() for entry in entries}
    places = {(entry.run.info.model, entry.run.info.manifest_digest, entry.start): entry.place for entry in entries}
    peers = []
    for each in found.runs:
        place = places.get((each.model, each.run.info.manifest_digest, each.start.upper()))
        if each.is_plain and place is not None and each.run.path.resolve() not in shown:
            peers.append(_entry(each.run.path, place, None, None))
    return [peer for peer in peers if peer.analyses]


def _cka(entry: Entry) -> dict[str, float]:
    found = entry.analyses.get("cka")
    matrix = (found or {}).get("whole", {}).get("end-start")
    if not matrix:
        return {}
    layers = found["sides"]["end"]  # type: ignore[index]
    return dict(zip(layers, np.diagonal(np.array(matrix, np.float64)).tolist(), strict=True))


def _state(analysis: str, which: str) -> Any:
    def values(entry: Entry) -> dict[str, float]:
        found = entry.analyses.get(analysis)
        return by_layer(found["states"][which], found["target"]) if found and which in found["states"] else {}

    return values


def _l2(entry: Entry) -> dict[str, float]:
    found = entry.analyses.get("l2")
    return {layer: row["all"]["relative"] for layer, row in found["layers"].items()} if found else {}


def _dimension(entry: Entry) -> dict[str, float]:
    states = entry.analyses.get("dimension", {}).get("states", {})
    return {layer: row["value"] for layer, row in states.get("end", {}).items()}


def _lost(entry: Entry) -> dict[str, float]:
    found = entry.analyses.get("reinit")
    if not found:
        return {}
    target, whole = found["target"], found["baseline"][found["target"]]
    rows = ((layer, row[target]) for layer, row in found["layers"].items())
    return {layer: whole - value for layer, value in rows if value is not None and whole is not None}


_BY_LAYER = {
    "cka": _cka,
    "knn": _state("knn", "end"),
    "knn-start": _state("knn", "start"),
    "probe": _state("probe", "end"),
    "probe-start": _state("probe", "start"),
    "l2": _l2,
    "reinit": _lost,
    "dimension": _dimension,
}
KNOWN = tuple(_BY_LAYER)
