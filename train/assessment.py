"""What results.json says of a split beyond the plain metrics: how sure they are, of whom, and where the mistakes lie.

intervals         of every metric, resampling whole groups (patients)
calibration       Brier score and expected calibration error
confusion_matrix  rows are true classes; multi-label: one of two classes a label
units             metrics of patients, breasts or slides: the mean probability of a unit's images
subgroups         metrics of each value of each column that the set carries
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shards.manifest import Manifest, Task
from shards.shardset import Split
from train.calibration import calibration
from train.evaluation import Predictions
from train.metrics import confusion_matrix, evaluate, quietly
from train.resampling import DRAWS, intervals

GROUP = "group"  # the column that patients, or whatever was kept apart, share
MOST_VALUES = 20  # a column of more values than these says nothing of subgroups


def assess(
    found: Predictions, split: Split, *, seed: int = 0, draws: int = DRAWS, units: str = GROUP
) -> dict[str, Any]:
    """All of it for the predictions of a split; nothing where one of them is not finite.

    `draws`: resamples of an interval, 0 for none. `units`: see `unit_of`.

    Raises ValueError for a unit of columns that the set does not carry.
    """
    task, scores = split.manifest.task, found.probabilities(split.manifest.task)
    columns = columns_of(split, found.sample_ids)
    check_units(split.manifest, units)
    member = unit_of(columns, units)
    if not np.isfinite(scores).all() or not len(scores):
        return {}
    told: dict[str, Any] = {"images": len(scores), "calibration": calibration(task, found.labels, scores)}
    told |= told_apart(task, found.labels, scores, columns[GROUP], seed, draws)
    told["confusion_matrix"] = confusion(task, found.labels, scores, split.view.classes)
    told["units"] = by_unit(task, found.labels, scores, member, units)
    told["subgroups"] = {
        name: by_value(task, found.labels, scores, values, columns[GROUP], seed, draws)
        for name, values in columns.items()
        if name != GROUP and len(set(values.tolist())) <= MOST_VALUES
    }
    return told


def columns_of(split: Split, sample_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> a value for each of the sample ids uint64[n]: the group, and the categories that the set tells."""
    known = split.sample_ids()
    order = np.argsort(known)
    places = order[np.searchsorted(known, sample_ids, sorter=order)]
    told = {name: split.metadata(name, places) for name in category_names(split.manifest)}
    return {GROUP: split.groups(places), **told}


def category_names(manifest: Manifest) -> list[str]:
    """The metadata fields of a set that subgroups are reported by: categories, no measures."""
    return [field.name for field in manifest.metadata if field.values]


def check_units(manifest: Manifest, units: str) -> None:
    """Raise ValueError for a unit of columns that the set does not carry."""
    known = [GROUP, *category_names(manifest)]
    for name in units.split("+"):
        if name not in known:
            raise ValueError(f"--units {units}: {manifest.name} has no column {name!r}; it has {', '.join(known)}")


def unit_of(columns: Mapping[str, np.ndarray], units: str) -> np.ndarray:
    """int64[n]: the number of each image's unit, which is one combination of the columns `units` names, joined by +."""
    member = np.zeros(len(columns[GROUP]), np.int64)
    for name in units.split("+"):
        _, of_column = np.unique(columns[name], return_inverse=True)
        _, member = np.unique(np.stack([member, of_column]), axis=1, return_inverse=True)
    return np.asarray(member).reshape(-1)


def by_unit(task: Task, labels: np.ndarray, scores: np.ndarray, member: np.ndarray, name: str) -> dict[str, Any]:
    """Metrics of units: the mean of their images' probabilities, against the label that their images share.

    Of two classes, and of each label of several, a unit is positive where any of its images is (a label that all
    ignore is ignored). Of more classes, units whose images disagree have no label: they are left out, and counted.

    `labels` and `scores` as of `metrics.evaluate`; `member` int64[n], the unit of each image.
    """
    number = int(member.max()) + 1 if len(member) else 0
    sizes = np.bincount(member, minlength=number)
    means = np.stack([np.bincount(member, column, number) for column in scores.T], 1) / np.maximum(sizes, 1)[:, None]
    truth = np.full((number, *labels.shape[1:]), -1 if task == "single-label" else np.nan, labels.dtype)
    np.fmax.at(truth, member, labels)
    clear = np.ones(number, bool)
    if task == "single-label" and scores.shape[1] > 2:
        clear[member[labels != truth[member]]] = False
    with quietly():
        metrics = evaluate(task, truth[clear], means[clear], scores.shape[1])
    return {"by": name, "units": number, "disagree": int((~clear).sum()), "metrics": metrics}


def by_value(
    task: Task, labels: np.ndarray, scores: np.ndarray, values: np.ndarray, groups: np.ndarray, seed: int, draws: int
) -> dict[str, Any]:
    """Value -> images, metrics and intervals of the images that have it.

    `labels` and `scores` as of `metrics.evaluate`; `values` [n], `groups` uint64[n].
    """
    told = {}
    for value in sorted(set(values.tolist()), key=str):
        rows = np.flatnonzero(values == value)
        part = told_apart(task, labels[rows], scores[rows], groups[rows], seed, draws)
        with quietly():
            metrics = evaluate(task, labels[rows], scores[rows], scores.shape[1])
        told[str(value) or "unknown"] = {"images": len(rows), "metrics": metrics, **part}
    return told


def told_apart(
    task: Task, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, seed: int, draws: int
) -> dict[str, Any]:
    """`groups`, how many there are, and `intervals`, where draws are wanted and there is something to draw.

    `labels` and `scores` as of `metrics.evaluate`; `groups` uint64[n].
    """
    told: dict[str, Any] = {"groups": len(np.unique(groups))}
    if draws and len(groups):
        found = intervals(task, labels, scores, groups, seed=seed, draws=draws)
        told["intervals"] = {name: each._asdict() for name, each in found.items()}
    return told


def confusion(task: Task, labels: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> Any:
    """Counts as lists: [C][C], or label -> [2][2] of the images where it is known, decided at .5."""
    if task == "single-label":
        return confusion_matrix(labels, scores.argmax(1), len(classes)).tolist()
    told = {}
    for number, name in enumerate(classes):
        known = ~np.isnan(labels[:, number])
        told[name] = confusion_matrix(labels[known, number], scores[known, number] >= 0.5, 2).tolist()
    return told
