"""How far probabilities and metrics can be trusted: calibration, and intervals that resample whole groups."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A metric on all samples with a percentile bootstrap interval around it."""

    value: float
    low: float
    high: float
    draws: int  # resamples on which the metric was defined


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared distance of the probability vector from the true class, 0..2 (Brier 1950); lower is better.

    `labels` int [n] in 0..C-1, `probabilities` [n, C]. NaN without samples.
    """
    truth, scores = np.asarray(labels, dtype=np.int64), np.asarray(probabilities, dtype=np.float64)
    if not len(truth):
        return float("nan")
    return float(((scores - np.eye(scores.shape[1])[truth]) ** 2).sum(1).mean())


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
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


def bootstrap_interval(
    metric: Callable[[np.ndarray], float],
    groups: ArrayLike,
    *,
    seed: int,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a metric when whole groups (patients) are drawn again with replacement (Efron 1979).

    `metric` takes the row numbers of a resample, int64[any length], repeats included. `groups` [n] says which rows
    belong together: images of one patient are no independent evidence. Resamples on which the metric is NaN are left
    out and the rest counted in `draws`; with none left the bounds are NaN.

    Raises ValueError for no rows, draws below 1 or a level outside 0..1.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    if not len(member) or draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"a bootstrap needs rows, draws >= 1 and a level between 0 and 1, got {len(member)}, {draws}, {level}"
        )
    order = np.argsort(member, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(member))[:-1])
    random = np.random.Generator(np.random.Philox(key=seed))
    values = np.array(
        [metric(np.concatenate([rows[g] for g in random.integers(len(rows), size=len(rows))])) for _ in range(draws)]
    )
    defined = values[~np.isnan(values)]
    tail = (1 - level) / 2
    low, high = np.quantile(defined, [tail, 1 - tail]) if len(defined) else (np.nan, np.nan)
    return Interval(float(metric(np.arange(len(member)))), float(low), float(high), len(defined))
