"""What a model said of each image as a csv by key, read again; thresholds chosen on one split, judged on another."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.aside import write_aside
from shards.manifest import Task
from shards.shardset import Split
from train.evaluation import Predictions

LEVELS = (0.9, 0.95)  # specificities and sensitivities that thresholds are chosen for


def write_predictions(path: Path, split: Split, found: Predictions) -> None:
    """Write key, label (a column a label, blank where ignored) and a probability a class, in stored order, whole."""
    task, classes = split.manifest.task, split.view.classes
    position = {int(one): number for number, one in enumerate(split.sample_ids())}
    order = sorted(range(len(found.sample_ids)), key=lambda row: position[int(found.sample_ids[row])])
    single = task == "single-label"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", *(["label"] if single else classes), *(f"p({name})" for name in classes)])
    scores = found.probabilities(task)
    for row in order:
        label = found.labels[row]
        told = [classes[int(label)]] if single else ["" if np.isnan(one) else int(one) for one in label]
        writer.writerow([split.key(position[int(found.sample_ids[row])]), *told, *(f"{p:.6g}" for p in scores[row])])
    write_aside(path, text.getvalue().encode())


class Told(NamedTuple):
    """What a model said of n images, read from its csv."""

    keys: tuple[str, ...]
    labels: np.ndarray  # int64[n], or float32[n, classes] with NaN where ignored
    probabilities: np.ndarray  # float64[n, classes]


def read_predictions(path: Path, task: Task, classes: Sequence[str]) -> Told:
    """The reverse of `write_predictions`.

    Raises ValueError where the file is missing or is of other classes or another task.
    """
    if not path.is_file():
        raise ValueError(
            f"no predictions at {path}: the run was made by an older release, or its set has no such split"
        )
    with path.open(encoding="utf-8", newline="") as file:
        head, *rows = list(csv.reader(file)) or [[]]
    single = task == "single-label"
    if head != ["key", *(["label"] if single else classes), *(f"p({name})" for name in classes)]:
        raise ValueError(f"{path} is of other classes than {', '.join(classes)}: was the view changed since?")
    place = {name: number for number, name in enumerate(classes)}
    told = [row[1 : -len(classes)] for row in rows]
    if single:
        labels = np.array([place[row[0]] for row in told], np.int64)
    else:
        labels = np.array([[float(one) if one else np.nan for one in row] for row in told], np.float32)
    scores = np.array([row[-len(classes) :] for row in rows], np.float64).reshape(len(rows), len(classes))
    return Told(tuple(row[0] for row in rows), labels, scores)


def operating_points(chosen: Predictions, judged: Predictions, split: Split) -> dict[str, list[dict[str, Any]]]:
    """Class -> sensitivity and specificity on `judged` at thresholds chosen on `chosen` for LEVELS of either.

    Of class 1 for two classes, of each class against the rest for more, of every label for several; none for one of
    which a split has no sample of either kind.
    """
    task, classes = split.manifest.task, split.view.classes
    told: dict[str, list[dict[str, Any]]] = {}
    for number in [1] if task == "single-label" and len(classes) == 2 else range(len(classes)):
        pairs = [_binary(found, task, number) for found in (chosen, judged)]
        if all(0 < truth.sum() < len(truth) for truth, _ in pairs):
            told[classes[number]] = [
                {"wanted": wanted, "at_least": level, "threshold": threshold, **rates(*pairs[1], threshold)}
                for wanted in ("specificity", "sensitivity")
                for level in LEVELS
                for threshold in [threshold_for(*pairs[0], wanted, level)]
            ]
    return told


def _binary(found: Predictions, task: Any, number: int) -> tuple[np.ndarray, np.ndarray]:
    scores = found.probabilities(task)[:, number]
    if task == "single-label":
        return found.labels == number, scores
    known = ~np.isnan(found.labels[:, number])
    return found.labels[known, number] == 1, scores[known]


def threshold_for(truth: np.ndarray, scores: np.ndarray, wanted: str, level: float) -> float:
    """The threshold (score >= threshold is positive) that just reaches a specificity or sensitivity.

    truth: bool[n] with both kinds; scores: float[n]. For a specificity the lowest such threshold, for a sensitivity the
    highest: what is best for the other rate.
    """
    if wanted == "sensitivity":
        positives = np.sort(scores[truth])[::-1]
        return float(positives[int(np.ceil(level * len(positives) - 1e-9)) - 1])
    negatives = np.sort(scores[~truth])
    needed = int(np.ceil(level * len(negatives) - 1e-9))  # negatives that must lie below
    return float(np.nextafter(negatives[needed - 1], np.inf))


def rates(truth: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """Sensitivity and specificity at a threshold.

    `truth` bool[n], `scores` float[n].
    """
    positive = scores >= threshold
    return {"sensitivity": float(positive[truth].mean()), "specificity": float((~positive[~truth]).mean())}
