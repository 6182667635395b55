"""Bootstrap intervals of every metric at once, resampling whole groups: all draws in a few array operations.

A resample of groups is a count for each group, so each metric is a weighted one. The confusion
matrices of all draws are one product of the counts with the samples' cells; ranking metrics sort the scores once and
accumulate the counts of all draws along them. Held against `metrics.evaluate` on the repeated rows themselves.

Legend: d draws, n samples, g groups, C classes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from train.metrics import Task, evaluate, quietly

DRAWS = 1000
LEVEL = 0.95
_BLOCK = 1 << 22  # weights held at once


class Interval(NamedTuple):
    """A metric on all samples with a percentile bootstrap interval around it."""

    value: float
    low: float
    high: float
    draws: int  # resamples on which the metric was defined


def intervals(
    task: Task,
    labels: np.ndarray,
    probabilities: np.ndarray,
    groups: ArrayLike,
    *,
    seed: int,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Metric -> its value on all samples with a percentile interval over resamples of groups (Efron 1979).

    Shapes as in `metrics.evaluate`; `groups` [n] says which samples belong together (images of one patient). Resamples
    that do not define a metric are left out of its interval and the rest counted. Raises ValueError without samples.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    if not len(member) or draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"a bootstrap needs samples, draws >= 1 and a level in 0..1, got {len(member)}, {draws}, {level}"
        )
    tail = (1 - level) / 2
    parts = [resampled(task, labels, probabilities, weights) for weights in group_weights(member, seed, draws)]
    with quietly():
        whole = evaluate(task, labels, probabilities, probabilities.shape[1])
    told = {}
    for name, value in whole.items():
        values = np.concatenate([part[name] for part in parts])
        defined = values[~np.isnan(values)]
        low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
        told[name] = Interval(value, float(low), float(high), len(defined))
    return told


def group_weights(member: np.ndarray, seed: int, draws: int) -> Iterator[np.ndarray]:
    """How often each draw has each sample, float64[some draws, n], in blocks of bounded size.

    `member` int64[n]: the number of each sample's group. Equal arguments give equal draws, so that metrics of several
    models on the same samples can be paired.
    """
    number, random = int(member.max()) + 1, np.random.Generator(np.random.Philox(key=seed))
    rows = max(1, _BLOCK // len(member))
    for first in range(0, draws, rows):
        drawn = [random.integers(number, size=number) for _ in range(min(rows, draws - first))]
        counts = np.stack([np.bincount(each, minlength=number) for each in drawn])
        yield counts[:, member].astype(np.float64)


def resampled(task: Task, labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Metric -> float64[d], each draw's value, for counts float64[d, n] of how often a draw has each sample.

    Equal to `metrics.evaluate` on the samples repeated so often: NaN where it is, means over what is defined.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        kind = _single if task == "single-label" else _multi
        return kind(labels, probabilities, weights)


def _single(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    classes = scores.shape[1]
    matrices = _confusions(truth, scores.argmax(1), classes, weights)
    support, total = matrices.sum(2), matrices.sum((1, 2))
    hits = matrices.diagonal(axis1=1, axis2=2)
    present = support + matrices.sum(1) > 0
    rates = {name: _mean(np.where(present, rate, np.nan)) for name, rate in _rates(matrices).items()}
    ones = [1] if classes == 2 else list(range(classes))
    positives = [truth == c for c in ones]
    versus_rest = [_auc(positive, scores[:, c], weights) for c, positive in zip(ones, positives, strict=True)]
    pairs = [_pair(truth, scores, a, b, weights) for a in range(classes) for b in range(a + 1, classes)]
    precision_recall = [_average_precision(p, scores[:, c], weights) for c, p in zip(ones, positives, strict=True)]
    return {
        "accuracy": hits.sum(1) / total,
        "balanced_accuracy": _mean(hits / support),
        **rates,
        "kappa": _kappas(matrices, quadratic=False),
        "quadratic_kappa": _kappas(matrices, quadratic=True),
        "roc_auc": _mean(np.stack(versus_rest if classes == 2 else pairs, 1)),
        "roc_auc_ovr": _mean(np.stack(versus_rest, 1)),
        "average_precision": _mean(np.stack(precision_recall, 1)),
    }


def _multi(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    columns: dict[str, list[np.ndarray]] = {}
    for c in range(scores.shape[1]):
        known = ~np.isnan(labels[:, c])
        positive, score, weight = labels[known, c] == 1, scores[known, c], weights[:, known]
        matrices = _confusions(positive.astype(np.int64), (score >= 0.5).astype(np.int64), 2, weight)
        total = matrices.sum((1, 2))
        of_label = {"accuracy": matrices.diagonal(axis1=1, axis2=2).sum(1) / total}
        of_label |= {name: np.where(total > 0, rate[:, 1], np.nan) for name, rate in _rates(matrices).items()}
        of_label["roc_auc"] = _auc(positive, score, weight)
        of_label["average_precision"] = _average_precision(positive, score, weight)
        for name, values in of_label.items():
            columns.setdefault(name, []).append(values)
    return {name: _mean(np.stack(values, 1)) for name, values in columns.items()}


def _confusions(truth: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """float64[d, C, C]: rows are true classes."""
    cells = np.zeros((len(truth), classes * classes))
    cells[np.arange(len(truth)), truth * classes + predicted] = 1
    return (weights @ cells).reshape(-1, classes, classes)


def _rates(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class, float64[d, C]; 0 where the denominator is."""
    hits, support, predicted = matrices.diagonal(axis1=1, axis2=2), matrices.sum(2), matrices.sum(1)
    rates = {"precision": hits / predicted, "recall": hits / support, "f1": 2 * hits / (support + predicted)}
    return {name: np.nan_to_num(rate, nan=0.0) for name, rate in rates.items()}


def _kappas(matrices: np.ndarray, *, quadratic: bool) -> np.ndarray:
    grid = np.subtract.outer(np.arange(matrices.shape[1]), np.arange(matrices.shape[1]))
    cost = grid.astype(float) ** 2 if quadratic else (grid != 0).astype(float)
    expected = np.einsum("di,dj,ij->d", matrices.sum(2), matrices.sum(1), cost) / matrices.sum((1, 2))
    seen = np.einsum("dij,ij->d", matrices, cost)
    return np.where(expected > 0, 1 - seen / expected, np.nan)


def _by_score(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positives and of negatives at each distinct score, falling: two of float64[d, distinct]."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0)) if len(order) else np.empty(0, np.int64)
    sorted_weights, hit = weights[:, order], positive[order]
    if not len(order):
        return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
    return tuple(np.add.reduceat(sorted_weights * mask, starts, axis=1) for mask in (hit, ~hit))  # type: ignore[return-value]


def _auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mann-Whitney: positives above a negative, ties half."""
    hits, misses = _by_score(positive, scores, weights)
    above = np.cumsum(hits, axis=1) - hits / 2
    size = hits.sum(1) * misses.sum(1)
    return np.where(size > 0, (above * misses).sum(1) / size, np.nan)


def _pair(truth: np.ndarray, scores: np.ndarray, a: int, b: int, weights: np.ndarray) -> np.ndarray:
    chosen = (truth == a) | (truth == b)
    part, weight = truth[chosen], weights[:, chosen]
    return (_auc(part == a, scores[chosen, a], weight) + _auc(part == b, scores[chosen, b], weight)) / 2


def _average_precision(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    hits, misses = _by_score(positive, scores, weights)
    found = np.cumsum(hits, axis=1)
    taken = np.maximum(found + np.cumsum(misses, axis=1), 1e-300)
    size = found[:, -1]
    return np.where(size > 0, (hits * found / taken).sum(1) / size, np.nan)


def _mean(values: np.ndarray) -> np.ndarray:
    """Row means over what is defined; NaN where nothing is."""
    known = ~np.isnan(values)
    return np.where(known.any(1), np.where(known, values, 0.0).sum(1) / known.sum(1), np.nan)
