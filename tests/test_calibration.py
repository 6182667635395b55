"""Calibration against scikit-learn and by hand; the bootstrap against theory."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from train.calibration import bootstrap_interval, brier, expected_calibration_error


def test_brier_of_two_classes_is_twice_scikit_learns():
    rng = np.random.default_rng(0)
    labels, positive = rng.integers(0, 2, 200), rng.random(200)
    ours = brier(labels, np.stack([1 - positive, positive], 1))
    assert ours == pytest.approx(2 * brier_score_loss(labels, positive))


def test_brier_of_certain_answers():
    assert brier([0, 2], np.eye(3)[[0, 2]]) == 0
    assert brier([0, 2], np.eye(3)[[1, 1]]) == 2


def test_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.4, 0.6], [0.4, 0.6]])
    labels = [0, 1, 1, 1]
    # bin of .95: accuracy .5, gap .45; bin of .6: accuracy 1, gap .4; each holds half of the samples
    assert expected_calibration_error(labels, probabilities, bins=10) == pytest.approx(0.5 * 0.45 + 0.5 * 0.4)


def test_calibrated_probabilities_have_little_error():
    rng = np.random.default_rng(1)
    positive = rng.random(40000)
    labels = (rng.random(40000) < positive).astype(int)
    good = expected_calibration_error(labels, np.stack([1 - positive, positive], 1))
    bold = (positive > 0.5).astype(float)
    assert good < 0.02 < expected_calibration_error(labels, np.stack([1 - bold, bold], 1))


def test_without_samples_there_is_no_number():
    assert np.isnan(brier(np.empty(0, int), np.empty((0, 2))))
    assert np.isnan(expected_calibration_error(np.empty(0, int), np.empty((0, 2))))


def test_interval_of_a_mean_has_the_normal_width_and_repeats_by_seed():
    values = np.random.default_rng(2).normal(size=400)
    interval = bootstrap_interval(lambda rows: float(values[rows].mean()), np.arange(400), seed=3, draws=2000)
    half = 1.96 * values.std() / 20
    assert interval.value == values.mean() and interval.draws == 2000
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert interval == bootstrap_interval(lambda rows: float(values[rows].mean()), np.arange(400), seed=3, draws=2000)


def test_groups_are_drawn_whole_and_widen_the_interval():
    seen = []
    groups = np.array(["b", "a", "b", "a", "c"])
    bootstrap_interval(lambda rows: seen.append(sorted(rows.tolist())) or 0.0, groups, seed=0, draws=50)
    assert all(rows.count(0) == rows.count(2) and rows.count(1) == rows.count(3) for rows in seen)
    values = np.repeat(np.random.default_rng(4).normal(size=50), 8)
    alone = bootstrap_interval(lambda rows: float(values[rows].mean()), np.arange(400), seed=0)
    grouped = bootstrap_interval(lambda rows: float(values[rows].mean()), np.repeat(np.arange(50), 8), seed=0)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_undefined_resamples_are_left_out_and_counted():
    labels = np.array([0, 0, 0, 0, 0, 1])

    def share(rows):
        return float(labels[rows].mean()) if labels[rows].any() else float("nan")

    some = bootstrap_interval(share, np.arange(6), seed=0, draws=200)
    assert 100 < some.draws < 180 and some.low > 0
    none = bootstrap_interval(lambda rows: float("nan"), np.arange(6), seed=0, draws=5)
    assert none.draws == 0 and np.isnan(none.low) and np.isnan(none.high)


def test_bad_input_is_answered():
    for groups, options in (([], {}), ([1], {"draws": 0}), ([1], {"level": 1.0})):
        with pytest.raises(ValueError, match="a bootstrap needs rows"):
            bootstrap_interval(lambda rows: 0.0, groups, seed=0, **options)
