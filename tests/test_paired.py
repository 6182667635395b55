"""Paired bootstrap and Holm's correction, against theory and others' code."""

import itertools

import numpy as np
import pytest
from scipy import stats

from analysis.paired import bootstrap_p, bounds, holm, resampled_scores


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis falls at the worst adjusted p of all intersections that hold it (Marcus, Peritz, Gabriel 1976)."""
    rng = np.random.default_rng(0)
    for size in (1, 3, 5):
        p = rng.random(size) ** 3
        sets = [s for k in range(1, size + 1) for s in itertools.combinations(range(size), k)]
        expected = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(size)]
        assert holm(p) == pytest.approx(expected)
    assert holm([0.01, np.nan, 0.04]) == pytest.approx([0.02, np.nan, 0.04], nan_ok=True)


def said(rng: np.random.Generator, right: float, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.where(rng.random(len(labels)) < right, labels, 1 - labels)
    return labels, np.eye(2)[chosen] * 0.8 + 0.1


def test_interval_of_a_difference_is_scipys():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 400)
    pair = [said(rng, right, labels) for right in (0.9, 0.7)]
    drawn = resampled_scores("single-label", "accuracy", np.arange(400), pair, 3000, 0)
    hits = [(found.argmax(1) == labels).astype(float) for _, found in pair]
    theirs = stats.bootstrap(
        hits, lambda a, b, axis: a.mean(axis) - b.mean(axis), paired=True, vectorized=True, method="percentile",
        n_resamples=3000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert bounds(drawn[:, 0] - drawn[:, 1]) == pytest.approx((theirs.low, theirs.high), abs=0.008)


def test_pairing_takes_out_what_runs_share():
    """The same run twice never differs, however much a resample helps or hurts it; unpaired intervals would."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 60)
    one = said(rng, 0.8, labels)
    drawn = resampled_scores("single-label", "accuracy", np.arange(60), [one, one], 200, 0)
    assert np.ptp(drawn[:, 0]) > 0.1
    assert np.ptp(drawn[:, 0] - drawn[:, 1]) == 0


def test_groups_widen_the_interval():
    """Ten images a patient that stand and fall together are ten times fewer independent images."""
    rng = np.random.default_rng(3)
    labels = np.zeros(400, int)
    right = np.repeat(rng.random(40) < 0.7, 10)
    run = (labels, np.eye(2)[np.where(right, 0, 1)])
    wide, narrow = (
        np.subtract(*bounds(resampled_scores("single-label", "accuracy", groups, [run], 1000, 0)[:, 0])[::-1])
        for groups in (np.repeat(np.arange(40), 10), np.arange(400))
    )
    assert wide / narrow == pytest.approx(10**0.5, rel=0.15)


def test_p_values():
    rng = np.random.default_rng(4)
    assert bootstrap_p(np.ones(999)) == pytest.approx(2 / 1000)
    assert bootstrap_p(np.zeros(999)) == 1
    shift = rng.normal(1.5, 1, 20000)
    assert bootstrap_p(shift) == pytest.approx(2 * stats.norm.sf(1.5), rel=0.08)
    assert bootstrap_p(-shift) == bootstrap_p(shift)
    assert np.isnan(bootstrap_p([np.nan]))
    assert np.isnan(bounds(np.array([np.nan]))).all()
