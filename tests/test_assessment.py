"""Scores by unit and subgroup, intervals, calibration and the confusion matrix, as results.json has them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, texture
from sklearn import metrics as judge

from shards.sets import write_set
from shards.shardset import ShardSet
from shards.writer import Sample
from train.assessment import assess, by_unit, by_value, unit_of
from train.evaluation import Predictions
from train.metrics import evaluate

MakeSet = Callable[..., ShardSet]


def test_units_take_the_mean_probability_of_their_images() -> None:
    rng = np.random.default_rng(0)
    member = np.repeat(np.arange(20), 4)
    labels, scores = np.repeat(rng.integers(0, 3, 20), 4), rng.dirichlet(np.ones(3), 80)
    found = by_unit("single-label", labels, scores, member, "group")
    means = scores.reshape(20, 4, 3).mean(1)
    assert found["metrics"] == evaluate("single-label", labels[::4], means, 3)
    assert found["metrics"]["roc_auc"] == pytest.approx(judge.roc_auc_score(labels[::4], means, multi_class="ovo"))
    assert (found["by"], found["units"], found["disagree"]) == ("group", 20, 0)


def test_a_unit_is_positive_where_any_image_is_and_has_no_class_where_they_disagree() -> None:
    member, labels = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 0, 0, 1, 0])
    scores = np.array([[0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.4, 0.6]])
    two = by_unit("single-label", labels, scores, member, "group")
    assert two["disagree"] == 0
    assert two["metrics"]["roc_auc"] == judge.roc_auc_score([1, 0, 1, 0], [0.5, 0.3, 0.7, 0.6])
    three = by_unit("single-label", labels, np.pad(scores, ((0, 0), (0, 1))), member, "group")
    assert (three["units"], three["disagree"]) == (4, 1)
    assert three["metrics"]["accuracy"] == pytest.approx(2 / 3)
    several = np.stack([labels, np.where(labels, np.nan, 0)], 1)
    many = by_unit("multi-label", several, scores[:, ::-1], member, "group")
    assert many["metrics"]["roc_auc"] == judge.roc_auc_score([1, 0, 1, 0], [0.5, 0.3, 0.7, 0.6])


def test_units_are_combinations_of_columns() -> None:
    columns = {"group": np.array([7, 7, 7, 9], np.uint64), "side": np.array(["L", "R", "L", "L"])}
    assert unit_of(columns, "group").tolist() == [0, 0, 0, 1]
    breasts = unit_of(columns, "group+side")
    assert breasts[0] == breasts[2] and len(set(breasts.tolist())) == 3


def test_subgroups_are_scored_alone() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 60), rng.dirichlet(np.ones(2), 60)
    sex = np.where(np.arange(60) % 3 == 0, "F", "M")
    found = by_value("single-label", labels, scores, sex, np.arange(60) // 2, 0, 100)
    rows = sex == "F"
    assert found["F"]["metrics"]["roc_auc"] == pytest.approx(judge.roc_auc_score(labels[rows], scores[rows, 1]))
    assert found["F"]["images"] == 20 and found["M"]["images"] == 40
    interval = found["M"]["intervals"]["roc_auc"]
    assert interval["low"] < interval["value"] == found["M"]["metrics"]["roc_auc"] < interval["high"]


@pytest.mark.parametrize("task", ["single-label", "multi-label"])
def test_all_of_it_for_a_split(make_set: MakeSet, tmp_path: Path, task: str) -> None:
    shards = make_set(tmp_path / "set", task=task)
    split, rng = shards.split("test"), np.random.default_rng(2)
    order = np.argsort(split.sample_ids())
    labels = split.labels()[order]
    found = Predictions(split.sample_ids()[order], labels, rng.normal(size=(19, 3)))
    told = assess(found, split, draws=50)
    matrix = told["confusion_matrix"]
    if task == "single-label":
        assert matrix == judge.confusion_matrix(labels, found.logits.argmax(1)).tolist()
    else:
        known = ~np.isnan(labels[:, 0])
        assert matrix["kind0"] == judge.confusion_matrix(labels[known, 0], found.logits[known, 0] >= 0).tolist()
    assert told["groups"] == 19 and told["units"]["units"] == 19  # every image a patient of its own
    plain = evaluate(split.manifest.task, labels, found.probabilities(split.manifest.task), 3)
    assert {name: each["value"] for name, each in told["intervals"].items()} == plain
    assert told["units"]["metrics"] == plain and told["subgroups"] == {}
    assert "intervals" not in assess(found, split, draws=0)
    assert assess(found._replace(logits=found.logits * np.nan), split) == {}


def test_breasts_and_subgroups_of_what_a_set_tells(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def image(n: int) -> Sample:
        told = {"side": ("left", "right")[n // 2 % 2], "pixel_spacing_mm": 0.1}
        if n % 5:
            told["sex"] = "FM"[n // 4 % 2]
        pixels = encode(texture(n % 2, 40, 40, 3, rng), "jpeg")
        return Sample("train", f"s{n}", pixels, "jpeg", (int(n // 4 % 3 == 0),), 40, 40, n // 4, metadata=told)

    fields = ("sex", "side", "pixel_spacing_mm")
    shards = write_set(
        tmp_path / "told", (image(n) for n in range(48)), name="told", classes=["no", "yes"], channels=3,
        task="single-label", fields=fields,
    )  # fmt: skip
    split = shards.split("train")
    order = np.argsort(split.sample_ids())
    found = Predictions(split.sample_ids()[order], split.labels()[order], rng.normal(size=(48, 2)))
    told = assess(found, split, draws=20, units="group+side")
    assert (told["groups"], told["units"]["units"], told["images"]) == (12, 24, 48)
    assert {name: list(values) for name, values in told["subgroups"].items()} == {
        "sex": ["unknown", "F", "M"], "side": ["left", "right"],
    }  # fmt: skip
    left = split.metadata("side", order) == "left"
    scores = found.probabilities("single-label")[left, 1]
    side = told["subgroups"]["side"]["left"]
    assert side["metrics"]["roc_auc"] == pytest.approx(judge.roc_auc_score(found.labels[left], scores))
    assert side["groups"] == 12 and "roc_auc" in side["intervals"]
    with pytest.raises(ValueError, match="told has no column 'pixel_spacing_mm'; it has group, sex, side"):
        assess(found, split, units="group+pixel_spacing_mm")
