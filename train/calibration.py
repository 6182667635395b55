"""How far probabilities can be trusted: Brier score and calibration error, lower is better."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from train.metrics import Task

BINS = 15


def calibration(task: Task, labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """`brier` and `ece` of a task, shapes as in `metrics.evaluate`.

    Multi-label: of each label as two classes, on the samples where it is known, and the mean over labels that have any
    (its Brier score then is the squared distance of one probability, half of that of the pair).

    `probabilities` [n, C].
    """
    if task == "single-label":
        return {"brier": brier(labels, probabilities), "ece": expected_calibration_error(labels, probabilities)}
    parts: list[dict[str, Any]] = []
    for label, score in zip(labels.T, probabilities.T, strict=True):
        known = ~np.isnan(label)
        if known.any():
            pair = label[known].astype(np.int64), np.stack([1 - score[known], score[known]], 1)
            parts.append({"brier": brier(*pair) / 2, "ece": expected_calibration_error(*pair)})
    return {
        name: float(np.mean([part[name] for part in parts])) if parts else float("nan") for name in ("brier", "ece")
    }


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared distance of the probability vector from the true class, 0..2 (Brier 1950); lower is better.

    `labels` int [n] in 0..C-1, `probabilities` [n, C]. NaN without samples.
    """
    truth, scores = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if not len(truth):
        return float("nan")
    return float(((scores - np.eye(scores.shape[1])[truth]) ** 2).sum(1).mean())


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = BINS) -> float:
    """Mean gap of confidence and accuracy over equal bins of confidence, 0..1 (Guo et al. 2017); lower is better.

    ECE = sum over bins of (samples in bin / n) * |accuracy - mean confidence|, with the confidence of the predicted
    class. NaN without samples.
    """
    truth, scores = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if not len(truth):
        return float("nan")
    confidence, hit = scores.max(1), (scores.argmax(1) == truth).astype(float)
    place = np.clip(
        np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1
    )  # bins are (low, high], as the paper has them
    gaps = np.bincount(place, weights=hit - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))
