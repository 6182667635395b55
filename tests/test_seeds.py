"""Means over seeds, and differences of them, held against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.seeds import difference, spread


def test_spread_and_difference_are_scipys() -> None:
    a, b = [0.81, 0.84, 0.79, 0.9], [0.7, 0.77, 0.71]
    found, welch = difference(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found["p"] == pytest.approx(welch.pvalue, rel=1e-12)
    assert found["interval"] == pytest.approx(tuple(welch.confidence_interval(0.95)), rel=1e-9)
    interval = stats.t.interval(0.95, 3, np.mean(a), stats.sem(a))
    assert spread([*a, math.nan])["interval"] == pytest.approx(interval, rel=1e-12)


def test_scores_that_are_all_alike_have_no_interval_and_no_p_value() -> None:
    """The mean of three .1 is not .1 in floats: their variance is 2e-34, which would make any difference certain."""
    assert np.var([0.1] * 3) > 0
    found = difference([0.1] * 3, [0.3] * 3)
    assert found["value"] == pytest.approx(-0.2)
    assert math.isnan(found["p"]) and all(map(math.isnan, found["interval"]))
