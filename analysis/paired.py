"""Are runs different, or only their luck with the test images? Paired bootstrap by group, and Holm's correction.

Runs that were tested on the same images share their resamples: what a resample makes easy or hard is so for all of
them, and falls out of their differences. Whole groups (patients) are drawn, as images of one patient are no
independent evidence. Training luck (seeds) is not in these intervals: seeds are shown beside them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train.metrics import Task
from train.resampling import group_weights, resampled

Labels = np.ndarray


def resampled_scores(
    task: Task, metric: str, groups: ArrayLike, said: Sequence[tuple[Labels, np.ndarray]], draws: int, seed: int
) -> np.ndarray:
    """float64[draws, runs]: a metric of each run's (labels, probabilities) on resamples that all runs share.

    `groups` [n] says which of the n images belong together.
    """
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    weights = list(group_weights(member, seed, draws))
    columns = [[resampled(task, *each, block)[metric] for block in weights] for each in said]
    return np.stack([np.concatenate(column) for column in columns], 1)


def bounds(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of resampled values, those that are NaN left out; NaN without any.

    `values` float[k]; `level` is the share that lies between the two.
    """
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(differences: ArrayLike) -> float:
    """Two-sided p-value of "no difference" from resampled differences [draws] (Efron and Tibshirani 1993, ch. 15).

    Twice the smaller share of draws on one side of zero, with one draw added to each side, so that it is never 0. NaN
    without a finite draw.
    """
    values = np.asarray(differences, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan")
    tail = min((values <= 0).sum(), (values >= 0).sum()) + 1
    return float(min(1.0, 2 * tail / (len(values) + 1)))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values [m] adjusted for their number (Holm 1979), in the order given; NaN stays and does not count.

    Sorted p_(i) of m become max over j <= i of min(1, (m - j + 1) p_(j)).
    """
    given = np.asarray(p_values, np.float64)
    adjusted = np.full(given.shape, np.nan)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, factors * given[order]))
    return adjusted
