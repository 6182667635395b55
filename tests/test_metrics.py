"""Metrics against scikit-learn on the whole set, and what is undefined."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as judge

from train.evaluation import as_the_study
from train.metrics import UndefinedMetric, check_metric, confusion_matrix, evaluate, metric_names


def single(n, classes, seed, ties=False):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    logits = rng.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return labels, np.round(probabilities, 1) if ties else probabilities


def expected_single(labels, probabilities):
    predicted, classes = probabilities.argmax(1), probabilities.shape[1]
    macro = {"average": "macro", "zero_division": 0}
    two = classes == 2
    return {
        "accuracy": judge.accuracy_score(labels, predicted),
        "balanced_accuracy": judge.balanced_accuracy_score(labels, predicted),
        "precision": judge.precision_score(labels, predicted, **macro),
        "recall": judge.recall_score(labels, predicted, **macro),
        "f1": judge.f1_score(labels, predicted, **macro),
        "kappa": judge.cohen_kappa_score(labels, predicted),
        "quadratic_kappa": judge.cohen_kappa_score(labels, predicted, weights="quadratic"),
        "roc_auc": judge.roc_auc_score(labels, probabilities[:, 1])
        if two
        else judge.roc_auc_score(labels, probabilities, multi_class="ovo", average="macro"),
        "roc_auc_ovr": judge.roc_auc_score(labels, probabilities[:, 1])
        if two
        else judge.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro"),
        "average_precision": judge.average_precision_score(labels, probabilities[:, 1])
        if two
        else judge.average_precision_score(np.eye(classes)[labels], probabilities, average="macro"),
    }


@pytest.mark.parametrize("classes", [2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_single_label_equals_scikit_learn(classes, seed):
    labels, probabilities = single(120, classes, seed)
    ours = evaluate("single-label", labels, probabilities, classes)
    assert ours == pytest.approx(expected_single(labels, probabilities), abs=1e-12)
    assert all(type(value) is float for value in ours.values())


def test_ties_in_the_scores_equal_scikit_learn():
    labels, rounded = single(150, 2, 0, ties=True)
    ours = evaluate("single-label", labels, rounded, 2)
    assert ours["roc_auc"] == pytest.approx(judge.roc_auc_score(labels, rounded[:, 1]))
    assert ours["average_precision"] == pytest.approx(judge.average_precision_score(labels, rounded[:, 1]))


def test_a_class_that_is_never_predicted_has_precision_zero():
    labels = np.array([0, 1, 2, 2])
    probabilities = np.eye(3)[[0, 1, 1, 1]]
    ours = evaluate("single-label", labels, probabilities, 3)
    assert ours["precision"] == pytest.approx(
        judge.precision_score(labels, [0, 1, 1, 1], average="macro", zero_division=0)
    )


def test_masked_samples_do_not_count():
    labels, probabilities = single(60, 3, 1)
    valid = np.arange(60) < 45
    wrong = np.where(valid, labels, 0)
    assert evaluate("single-label", wrong, probabilities, 3, valid) == evaluate(
        "single-label", labels[:45], probabilities[:45], 3
    )


def test_multi_label_equals_scikit_learn_label_by_label():
    rng = np.random.default_rng(3)
    labels = (rng.random((90, 4)) < 0.4).astype(np.float32)
    scores = np.clip(labels * 0.3 + rng.random((90, 4)) * 0.7, 0, 1)
    labels[rng.random((90, 4)) < 0.2] = np.nan
    ours = evaluate("multi-label", labels, scores, 4)
    parts = {"accuracy": [], "precision": [], "recall": [], "f1": [], "roc_auc": [], "average_precision": []}
    for c in range(4):
        known = ~np.isnan(labels[:, c])
        truth, score = labels[known, c], scores[known, c]
        parts["accuracy"].append(judge.accuracy_score(truth, score >= 0.5))
        parts["precision"].append(judge.precision_score(truth, score >= 0.5))
        parts["recall"].append(judge.recall_score(truth, score >= 0.5))
        parts["f1"].append(judge.f1_score(truth, score >= 0.5))
        parts["roc_auc"].append(judge.roc_auc_score(truth, score))
        parts["average_precision"].append(judge.average_precision_score(truth, score))
    assert ours == pytest.approx({name: np.mean(values) for name, values in parts.items()}, abs=1e-12)


def test_a_class_without_samples_is_left_out_with_a_warning():
    labels, probabilities = single(40, 3, 2)
    keep = labels != 2
    with pytest.warns(UndefinedMetric) as caught:
        ours = evaluate("single-label", labels[keep], probabilities[keep], 3)
    assert "roc_auc leaves out 2 of 3: pairs of classes" in [str(warning.message) for warning in caught]
    both = [judge.roc_auc_score(labels[keep] == c, probabilities[keep][:, c]) for c in (0, 1)]
    assert ours["roc_auc"] == pytest.approx(np.mean(both))


def test_one_class_alone_leaves_ranking_metrics_and_kappa_undefined():
    with pytest.warns(UndefinedMetric):
        ours = evaluate("single-label", np.zeros(5, int), np.tile([0.7, 0.3], (5, 1)), 2)
    assert ours["accuracy"] == 1.0
    assert all(
        np.isnan(ours[name]) for name in ("roc_auc", "roc_auc_ovr", "average_precision", "kappa", "quadratic_kappa")
    )


def test_no_samples_and_nan_probabilities_give_nan():
    with pytest.warns(UndefinedMetric):
        empty = evaluate("single-label", np.empty(0, int), np.empty((0, 3)), 3)
    with pytest.warns(UndefinedMetric, match="every metric is NaN"):
        diverged = evaluate("single-label", np.zeros(2, int), np.full((2, 3), np.nan), 3)
    with pytest.warns(UndefinedMetric):
        ignored = evaluate("multi-label", np.full((4, 2), np.nan), np.full((4, 2), 0.5), 2)
    for values in (empty, diverged, ignored):
        assert all(np.isnan(value) for value in values.values())


def test_a_label_that_never_occurs_does_not_spoil_the_mean():
    labels = np.array([[0, 0], [1, 0], [0, 0], [1, 0]], float)
    scores = np.array([[0.1, 0.2], [0.9, 0.3], [0.8, 0.1], [0.7, 0.6]])
    with pytest.warns(UndefinedMetric) as caught:
        ours = evaluate("multi-label", labels, scores, 2)
    assert any(str(warning.message).startswith("roc_auc leaves out 1 of 2") for warning in caught)
    assert ours["roc_auc"] == pytest.approx(judge.roc_auc_score(labels[:, 0], scores[:, 0]))


def test_defined_metrics_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate("single-label", *single(30, 3, 5), 3)


def test_confusion_matrix_equals_scikit_learn():
    labels, probabilities = single(70, 4, 6)
    np.testing.assert_array_equal(
        confusion_matrix(labels, probabilities.argmax(1), 4), judge.confusion_matrix(labels, probabilities.argmax(1))
    )


def test_names_are_checked_and_the_nearest_offered():
    assert check_metric("quadratic_kappa", "single-label") == "quadratic_kappa"
    with pytest.raises(ValueError, match=r"did you mean 'roc_auc'\?; known: accuracy, .*average_precision"):
        check_metric("rocauc", "single-label")
    with pytest.raises(ValueError, match="unknown metric 'kappa' for multi-label"):
        check_metric("kappa", "multi-label")
    assert "recall" in metric_names("multi-label")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("single-label", [0, 3], np.ones((2, 3)), 3), r"labels must be in 0\.\.2, got 0\.\.3"),
        (("single-label", [0, 1], np.ones((2, 4)), 3), "must have shapes"),
        (("multi-label", [0, 1], np.ones((2, 3)), 3), "must have shapes"),
        (("regression", [0, 1], np.ones((2, 3)), 3), "known: single-label, multi-label"),
    ],
)
def test_bad_input_is_answered(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate(*arguments)


def test_the_studys_scores_have_three_digits_and_a_made_up_auc():
    labels, probabilities = single(40, 3, 2)
    whole = evaluate("single-label", labels, probabilities, 3)
    assert as_the_study(whole, labels, "single-label", 3) == {name: round(value, 3) for name, value in whole.items()}
    keep = labels != 2
    with pytest.warns(UndefinedMetric):
        part = evaluate("single-label", labels[keep], probabilities[keep], 3)
    with pytest.raises(ValueError, match="Number of classes"):
        judge.roc_auc_score(labels[keep], probabilities[keep], multi_class="ovo", average="macro")
    assert part["roc_auc"] != 0.5 == as_the_study(part, labels[keep], "single-label", 3)["roc_auc"]
    several = np.array([[0, 0], [1, 0], [0, 0]], float)
    assert as_the_study({"roc_auc": 0.9}, several, "multi-label", 2) == {"roc_auc": 0.5}
    assert as_the_study({"roc_auc": 0.91239}, several[:, :1], "multi-label", 1) == {"roc_auc": 0.912}
