"""What a report is made of: a run's own record, and the results of its analyses, read and nothing worked out anew."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from analysis.charts import values_or_gaps
from analysis.knn import by_layer
from analysis.results import read_result
from shards.shardset import ShardSet
from train.rundir import Run, open_run

ANALYSES = ("knn", "cka", "l2", "reinit", "rerand", "probe")


@dataclass(frozen=True)
class Entry:
    """One run of a report, with its place among the others (which is its colour)."""

    run: Run
    place: int
    results: Mapping[str, Any]  # results.json of the run, empty where it has not ended
    metrics: Sequence[Mapping[str, Any]]
    analyses: Mapping[str, Mapping[str, Any]]

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
        value = (self.results.get("test") or {}).get(self.target or "")
        return float("nan") if value is None else float(value)

    def by_layer(self, measure: str) -> list[float]:
        """One number a layer group: "cka", "knn", "knn-start", "probe", "l2", "reinit" (loss of the target metric)."""
        values = _BY_LAYER[measure](self)
        return values_or_gaps(values, self.layers)


def load(paths: Sequence[Path], shards: Path | None, model: str | None) -> list[Entry]:
    """Open the runs of a report. ValueError for a path that is none, or one run given twice."""
    entries = []
    for place, path in enumerate(paths):
        run = open_run(path, shards, model)
        files = {name: run.out_dir / f"{name}.json" for name in ANALYSES}
        analyses = {name: read_result(file) for name, file in files.items() if file.is_file()}
        try:
            results = run.results()
        except ValueError:
            results = {}
        entries.append(Entry(run, place, results, run.metrics(), analyses))
    names = [entry.run.path.resolve() for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError("a run is named twice: name each once")
    return entries


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
}
