"""Predictions by key, and thresholds that keep what they promise on the split they were chosen on."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

from shards.shardset import ShardSet
from train.evaluation import Predictions
from train.predictions import operating_points, rates, read_predictions, threshold_for, write_predictions

MakeSet = Callable[..., ShardSet]


def predictions(shards: ShardSet, split: str, rng: np.random.Generator) -> Predictions:
    part = shards.split(split)
    order = np.argsort(part.sample_ids())
    labels = part.labels()[order]
    logits = rng.normal(size=(len(order), shards.num_classes))
    return Predictions(part.sample_ids()[order], labels, logits)


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_each_row_has_its_key_label_and_probabilities(make_set: MakeSet, tmp_path: Path, task: str) -> None:
    shards = make_set(tmp_path / "set", task=task, classes=2)
    split, found = shards.split("test"), predictions(shards, "test", np.random.default_rng(0))
    write_predictions(tmp_path / "out.csv", split, found)
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == [split.key(i) for i in range(split.num_samples)]
    told = read_predictions(tmp_path / "out.csv", split.manifest.task, split.view.classes)
    assert list(told.keys) == [row[0] for row in rows[1:]]
    np.testing.assert_array_equal(told.labels, split.labels())
    assert told.probabilities.tolist() == [[float(cell) for cell in row[-2:]] for row in rows[1:]]
    with pytest.raises(ValueError, match="is of other classes than a, b: was the view changed since"):
        read_predictions(tmp_path / "out.csv", split.manifest.task, ["a", "b"])
    by_id = {int(one): row for row, one in enumerate(found.sample_ids)}
    scores = found.probabilities(split.manifest.task)
    for i, row in enumerate(rows[1:]):
        here = by_id[int(split.sample_ids()[i])]
        assert [float(cell) for cell in row[-2:]] == pytest.approx(scores[here].tolist(), rel=1e-5)
        if task == "single-label":
            assert row[1] == split.view.classes[found.labels[here]]
        else:
            assert [float(c) if c else np.nan for c in row[1:3]] == pytest.approx(
                found.labels[here].tolist(), nan_ok=True
            )


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([0.5, 0.9, 0.95, 1.0]), st.integers(0, 10**6))
def test_thresholds_reach_their_level_and_no_better_one_does(hits: int, misses: int, level: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.arange(hits + misses) < hits
    scores = np.round(rng.normal(truth * 1.0, 1), 1)  # with ties
    for wanted, other in (("sensitivity", "specificity"), ("specificity", "sensitivity")):
        found = rates(truth, scores, threshold_for(truth, scores, wanted, level))
        assert found[wanted] >= level - 1e-9
        false_positives, true_positives, _ = roc_curve(truth, scores, drop_intermediate=False)
        curve = {"sensitivity": true_positives, "specificity": 1 - false_positives}
        best = curve[other][curve[wanted] >= level - 1e-9].max()
        assert found[other] == pytest.approx(best)


def test_points_are_chosen_on_one_split_and_judged_on_the_other(make_set: MakeSet, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shards = make_set(tmp_path / "two", classes=2)
    pair = (predictions(shards, "val", rng), predictions(shards, "test", rng))
    points = operating_points(*pair, shards.split("test"))
    assert list(points) == ["kind1"] and len(points["kind1"]) == 4
    truth, scores = pair[1].labels == 1, pair[1].probabilities("single-label")[:, 1]
    for point in points["kind1"]:
        assert rates(truth, scores, point["threshold"])["sensitivity"] == point["sensitivity"]
    three = make_set(tmp_path / "three", classes=3)
    both = (predictions(three, "val", rng), predictions(three, "test", rng))
    points = operating_points(*both, three.split("test"))
    assert list(points) == ["kind0", "kind1", "kind2"]  # each against the rest
    truth, scores = both[1].labels == 2, both[1].probabilities("single-label")[:, 2]
    for point in points["kind2"]:
        assert rates(truth, scores, point["threshold"])["specificity"] == point["specificity"]
