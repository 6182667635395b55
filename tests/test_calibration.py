"""Calibration against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from train.calibration import brier, calibration, expected_calibration_error


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


def test_labels_are_calibrated_one_by_one_where_they_are_known():
    rng = np.random.default_rng(5)
    labels = (rng.random((60, 2)) < 0.4).astype(np.float32)
    labels[:7, 1] = np.nan
    scores = rng.random((60, 2))
    found = calibration("multi-label", labels, scores)
    expected = [brier_score_loss(labels[:, 0], scores[:, 0]), brier_score_loss(labels[7:, 1], scores[7:, 1])]
    assert found["brier"] == pytest.approx(np.mean(expected))
    single = rng.integers(0, 2, 60)
    assert calibration("single-label", single, np.stack([1 - scores[:, 0], scores[:, 0]], 1)) == {
        "brier": pytest.approx(2 * brier_score_loss(single, scores[:, 0])),
        "ece": expected_calibration_error(single, np.stack([1 - scores[:, 0], scores[:, 0]], 1)),
    }
    assert np.isnan(calibration("multi-label", np.full((3, 2), np.nan), np.full((3, 2), 0.5))["ece"])
