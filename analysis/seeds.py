"""Is a difference more than the luck of a seed? Means over runs with Student's intervals, differences with Welch's.

The other half of `paired.py`, whose intervals hold the luck of test images and not that of training.
"""

from collections.abc import Sequence
from math import isfinite, nan
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95


def spread(scores: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (n - 1) and Student's t interval of the mean; NaN where two scores are wanting."""
    values = np.asarray([score for score in scores if isfinite(score)], np.float64)
    mean = float(values.mean()) if len(values) else nan
    if len(values) < 2:
        return {"runs": len(values), "mean": mean, "sd": nan, "interval": (nan, nan)}
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * sd / len(values) ** 0.5
    return {"runs": len(values), "mean": mean, "sd": sd, "interval": (mean - half, mean + half)}


def difference(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Difference of two means with Welch's interval and two-sided p-value; NaN where either has fewer than two scores.

    Welch 1947: variances need not be alike, degrees of freedom after Satterthwaite. Where the scores of both are all
    alike there is no interval.
    """
    a, b = (np.asarray([score for score in scores if isfinite(score)], np.float64) for scores in (first, second))
    value = float(a.mean() - b.mean()) if len(a) and len(b) else nan
    if min(len(a), len(b)) < 2 or np.ptp(a) + np.ptp(b) == 0:  # their variance may be 1e-34
        return {"value": value, "interval": (nan, nan), "p": nan}
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = sum(parts) ** 0.5
    freedom = error**4 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom) * error)
    p = float(2 * stats.t.sf(abs(value) / error, freedom))
    return {"value": value, "interval": (value - half, value + half), "p": p}
