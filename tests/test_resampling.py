"""Bootstrap of all metrics at once: each draw equals the metrics of the repeated rows, and widths are theory's."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from train.metrics import evaluate, quietly
from train.resampling import intervals, resampled


def problem(task: str, n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.dirichlet(np.ones(classes), n), 1)  # with ties
    if task == "single-label":
        return rng.integers(0, classes, n), scores
    labels = (rng.random((n, classes)) < 0.3).astype(np.float32)
    labels[rng.random((n, classes)) < 0.2] = np.nan
    return labels, scores


@pytest.mark.parametrize(
    ("task", "n", "classes"), [("single-label", 40, 2), ("single-label", 9, 4), ("multi-label", 12, 3)]
)
def test_each_draw_is_the_metric_of_the_repeated_rows(task: Any, n: int, classes: int) -> None:
    labels, scores = problem(task, n, classes, 1)
    counts = np.random.default_rng(2).multinomial(n, np.full(n, 1 / n), size=30)
    counts[0], counts[1] = 0, np.eye(n, dtype=int)[3] * 5  # nothing at all; one sample alone
    found = resampled(task, labels, scores, counts.astype(float))
    for draw, times in enumerate(counts):
        rows = np.repeat(np.arange(n), times)
        with quietly():
            expected = evaluate(task, labels[rows], scores[rows], classes)
        for name, value in expected.items():
            assert found[name][draw] == pytest.approx(value, abs=1e-12, nan_ok=True), (draw, name)
    assert set(found) == set(expected)


def test_a_mean_has_the_width_of_theory_and_groups_widen_it() -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat(rng.integers(0, 2, 100), 4)
    right = np.repeat(rng.random(100) < 0.7, 4)  # four images of a patient are right or wrong together
    scores = np.eye(2)[np.where(right, labels, 1 - labels)]
    alone = intervals("single-label", labels, scores, np.arange(400), seed=0)["accuracy"]
    grouped = intervals("single-label", labels, scores, np.repeat(np.arange(100), 4), seed=0)["accuracy"]
    share = right.mean()
    for found, independent in ((alone, 400), (grouped, 100)):
        half = stats.norm.ppf(0.975) * np.sqrt(share * (1 - share) / independent)
        assert found.value == share and found.draws == 1000
        assert found.high - found.low == pytest.approx(2 * half, rel=0.12)
    again = intervals("single-label", labels, scores, np.repeat(np.arange(100), 4), seed=0)["accuracy"]
    assert again == grouped


def test_blocks_and_draws_that_define_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, scores = np.array([0, 0, 0, 1]), np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    whole = intervals("single-label", labels, scores, np.arange(4), seed=5, draws=200)
    monkeypatch.setattr("train.resampling._BLOCK", 12)
    assert intervals("single-label", labels, scores, np.arange(4), seed=5, draws=200) == whole
    assert 100 < whole["roc_auc"].draws < 180 and whole["accuracy"].draws == 200
    with pytest.raises(ValueError, match="a bootstrap needs samples"):
        intervals("single-label", labels[:0], scores[:0], [], seed=0)
