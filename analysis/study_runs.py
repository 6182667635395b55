"""Trained runs as rows of a comparison: what each was of, its score, and what it said of every test image.

They come from run directories or from the file of a study (`train/study.py`), whose missing runs are counted, not
waited for.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from analysis.paired import Labels, resampled_scores
from analysis.results import as_float
from train.predictions import Told, read_predictions
from train.rundir import Run, open_run
from train.study import read as read_study

STUDIES = Path("runs/studies")
PREDICTIONS = "predictions-test.csv"


@dataclass(frozen=True)
class Trained:
    """One finished run."""

    run: Run
    results: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def data(self) -> str:
        """Name of the shard set."""
        return str(self.results["shards"])

    @property
    def digest(self) -> str:
        """Of the set's manifest, as it was when the run was trained."""
        return str(self.results.get("manifest_digest") or self.run.info.manifest_digest)

    @property
    def model(self) -> str:
        """The timm name."""
        return self.run.info.model

    @cached_property
    def config(self) -> Any:
        """The run's config."""
        config = self.run.config
        assert config is not None, "a finished run has its config"
        return config

    @property
    def start(self) -> str:
        """ "wt", "st" or "ri"."""
        return str(self.config.model.start)

    @property
    def until(self) -> str | None:
        """The layer group up to which an ST start keeps pretrained weights, as the config has it."""
        return self.config.model.wt_until if self.start == "st" else None

    @property
    def fraction(self) -> float:
        """Share of the training split that was seen."""
        return float(self.config.data.fraction)

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.training.seed)

    @property
    def target(self) -> str:
        """The metric that the set is judged by."""
        return str(self.results["target_metric"])

    @property
    def score(self) -> float:
        """The target metric on the test split."""
        return as_float(self.results["test"].get(self.target))

    @property
    def is_plain(self) -> bool:
        """Whether it is WT, ST or RI on all of the training split."""
        return self.until is None and self.fraction == 1

    def said(self) -> Told:
        """What it said of each test image; ValueError where that was not kept."""
        view = self.run.shards.split("test")
        assert self.run.folder is not None
        return read_predictions(self.run.folder / PREDICTIONS, view.manifest.task, view.view.classes)


class Gathered(NamedTuple):
    """Runs that are done, what is missing in words, and where results of all of them belong."""

    runs: tuple[Trained, ...]
    remarks: tuple[str, ...]
    folder: Path
    name: str


def gather(paths: Sequence[Path], studies: Path = STUDIES) -> Gathered:
    """The finished runs of run directories and study files (.toml), each once.

    Raises ValueError in one line where a path is neither, a run has not ended or has no test scores, none is done, or
    two are the same but for their name.
    """
    runs, remarks, folders = [], [], []
    for path in paths:
        if path.suffix == ".toml":
            study = read_study(path, studies.absolute(), [])
            folders.append((study.folder, study.name))
            done = [each.folder for each in study.runs if each.results is not None]
            if len(done) < len(study.runs):
                remarks.append(f"{len(study.runs) - len(done)} of {len(study.runs)} runs of {study.name} are not done")
            runs += [trained(folder) for folder in done]
        else:
            runs.append(trained(path))
    if not runs:
        raise ValueError(f"no run of {', '.join(map(str, paths))} is done: python train/study.py {paths[0]}")
    _refuse_twins(runs)
    first = runs[0].run
    folder, name = folders[0] if folders else ((first.folder or first.path), first.name)
    return Gathered(tuple(runs), tuple(remarks), folder / "analysis", name)


def trained(path: Path) -> Trained:
    """A run directory as a row. Raises ValueError where it has not ended, or its set had no test split."""
    run = open_run(path)
    if run.folder is None or run.folder != run.path:
        raise ValueError(f"{path} is no run directory: a comparison of runs reads their config and results")
    results = run.results()
    if not results.get("test"):
        raise ValueError(f"{path} has no test scores: its shard set has no test split; such runs cannot be compared")
    return Trained(run, results)


def _refuse_twins(runs: Iterable[Trained]) -> None:
    seen: dict[tuple[Any, ...], Trained] = {}
    for each in runs:
        key = (each.data, each.model, each.start, each.until, each.fraction, each.seed)
        if key in seen:
            other = seen[key]
            raise ValueError(
                f"{other.run.path} and {each.run.path} are both {each.start} of {each.model} on {each.data} with seed "
                f"{each.seed}: name one of them"
            )
        seen[key] = each


def same_set(runs: Sequence[Trained]) -> None:
    """ValueError where runs that are to be compared with each other saw different shard sets."""
    first = runs[0]
    for other in runs[1:]:
        if other.digest != first.digest:
            raise ValueError(
                f"{first.name} and {other.name} were trained on different shard sets ({first.data} {first.digest[:8]}, "
                f"{other.data} {other.digest[:8]}): compare runs of one set"
            )


class Resampled(NamedTuple):
    """Scores of runs on resamples of their common test images: whole groups (patients) drawn with replacement."""

    scores: np.ndarray  # float64[draws, runs]
    images: int
    groups: int


def resampled(runs: Sequence[Trained], draws: int, seed: int) -> Resampled | None:
    """The target metric of each run on the same `draws` resamples; None where a run's predictions or set are gone."""
    try:
        told = [each.said() for each in runs]
        split = runs[0].run.shards.split("test")
    except (ValueError, OSError):
        return None
    group_of = dict(zip((split.key(i) for i in range(split.num_samples)), split.groups().tolist(), strict=True))
    shared = set.intersection(*(set(each.keys) for each in told))
    common = [key for key in told[0].keys if key in shared]
    groups = np.array([group_of[key] for key in common], np.uint64)
    aligned = [rows_of(each, common) for each in told]
    scores = resampled_scores(split.manifest.task, runs[0].target, groups, aligned, draws, seed)
    return Resampled(scores, len(common), len(np.unique(groups)))


def rows_of(told: Told, keys: Sequence[str]) -> tuple[Labels, np.ndarray]:
    """Labels and probabilities of some images, in that order.

    int64[n] or float[n, C], and float64[n, C].
    """
    place = {key: row for row, key in enumerate(told.keys)}
    rows = [place[key] for key in keys]
    return told.labels[rows], told.probabilities[rows]
