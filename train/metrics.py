"""Classification metrics, exact and unrounded, equal to scikit-learn's; higher is better for all of them.

What is undefined is NaN with a warning, never a made-up number. Averages over classes, pairs of classes or labels run
over those for which the part is defined, and a warning names the others (a class without a sample has no recall).

The metrics of single labels take true classes int64[n] in 0..C-1 and probabilities float64[n, C].
"""

import difflib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

Task = Literal["single-label", "multi-label"]


class UndefinedMetric(UserWarning):
    """A metric, or a part of one, that these labels do not define."""


def evaluate(
    task: Task, labels: ArrayLike, probabilities: ArrayLike, num_classes: int, valid: ArrayLike | None = None
) -> dict[str, float]:
    """All metrics of a task by name.

    Single-label: `labels` int [n] in 0..C-1, `probabilities` [n, C]. Multi-label: `labels` [n, C] of 0 and 1, NaN where
    ignored; probabilities [n, C], each label on its own, decided at .5. `valid` bool [n] masks samples out.

    Raises ValueError for other shapes or labels outside the classes.
    """
    truth, scores = _checked(task, labels, probabilities, num_classes, valid)
    if not np.isfinite(scores).all():
        warnings.warn("probabilities hold NaN or infinite values: every metric is NaN", UndefinedMetric, stacklevel=2)
        return dict.fromkeys(metric_names(task), float("nan"))
    return {name: float(metric(truth, scores)) for name, metric in _OF_TASK[task].items()}


def ignoring_unsaid(labels: ArrayLike, probabilities: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities [n, C] for `evaluate` of a k-NN or probe, where NaN says nothing of a label.

    That label is ignored there. Not for the outputs of a net, whose NaN says that it has diverged.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim == 1:
        return truth, scores
    unsaid = np.isnan(scores)
    return np.where(unsaid, np.nan, truth), np.where(unsaid, 0.5, scores)


@contextmanager
def quietly() -> Iterator[None]:
    """No warnings of what is undefined within the block: for parts of a set, where NaN says it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetric)
        yield


def metric_names(task: Task) -> tuple[str, ...]:
    """Names that `evaluate` gives for a task."""
    return tuple(_OF_TASK[task])


def check_metric(name: str, task: Task) -> str:
    """The name itself. Raises ValueError for one that the task does not have, with the nearest and all known names."""
    known = metric_names(task)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown metric {name!r} for {task} labels{hint}; known: {', '.join(known)}")


def confusion_matrix(truth: ArrayLike, predicted: ArrayLike, num_classes: int) -> np.ndarray:
    """int64[C, C]: rows are the true classes, columns the predicted ones."""
    flat = np.asarray(truth, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(flat, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


def accuracy(truth: np.ndarray, scores: np.ndarray) -> float:
    """Share of samples whose most probable class is the true one (the lower class where two are equally probable)."""
    return _ratio(float((truth == scores.argmax(1)).sum()), len(truth), "accuracy")


def balanced_accuracy(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean recall over the classes that occur among the labels."""
    matrix = _confusion(truth, scores)
    support = matrix.sum(1)
    return _mean_of_defined(_divide(np.diag(matrix), support), "balanced_accuracy", "classes without a sample")


def precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Macro precision over the classes that occur or are predicted; 0 for one that is never predicted."""
    return _macro(_confusion(truth, scores), "precision")


def recall(truth: np.ndarray, scores: np.ndarray) -> float:
    """Macro recall over the classes that occur or are predicted; 0 for one that does not occur."""
    return _macro(_confusion(truth, scores), "recall")


def f1(truth: np.ndarray, scores: np.ndarray) -> float:
    """Macro F1 over the classes that occur or are predicted."""
    return _macro(_confusion(truth, scores), "f1")


def kappa(truth: np.ndarray, scores: np.ndarray) -> float:
    """Cohen's kappa: agreement beyond chance (Cohen 1960)."""
    return _weighted_kappa(_confusion(truth, scores), quadratic=False)


def quadratic_kappa(truth: np.ndarray, scores: np.ndarray) -> float:
    """Kappa with quadratic weights: grades one apart count less than grades far apart (Cohen 1968)."""
    return _weighted_kappa(_confusion(truth, scores), quadratic=True)


def roc_auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: of class 1 for two classes, else the mean over pairs of classes (Hand & Till 2001)."""
    classes = scores.shape[1]
    if classes == 2:
        return _mean_of_defined([_binary_auc(truth == 1, scores[:, 1])], "roc_auc", "one class only")
    pairs = [(a, b) for a in range(classes) for b in range(a + 1, classes)]
    return _mean_of_defined([_pair_auc(truth, scores, a, b) for a, b in pairs], "roc_auc", "pairs of classes")


def roc_auc_ovr(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve, the mean of each class against the rest; of class 1 for two classes."""
    classes = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    found = [_binary_auc(truth == c, scores[:, c]) for c in classes]
    return _mean_of_defined(found, "roc_auc_ovr", "classes that all or no samples have")


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Area under the precision-recall steps: of class 1 for two classes, else the mean of each against the rest."""
    classes = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    found = [_binary_average_precision(truth == c, scores[:, c]) for c in classes]
    return _mean_of_defined(found, "average_precision", "classes without a sample")


def _per_label(
    name: str, metric: Callable[[np.ndarray, np.ndarray], float]
) -> Callable[[np.ndarray, np.ndarray], float]:
    """Mean over labels of a metric on the samples where the label is not ignored."""

    def mean(truth: np.ndarray, scores: np.ndarray) -> float:
        known = ~np.isnan(truth)
        found = [metric(truth[known[:, c], c] == 1, scores[known[:, c], c]) for c in range(truth.shape[1])]
        return _mean_of_defined(found, name, "labels that are all ignored or all alike")

    return mean


def _decided(part: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """A count-based metric of the positive class at the threshold .5."""

    def of_label(truth: np.ndarray, scores: np.ndarray) -> float:
        if not len(truth):
            return float("nan")
        return float(_rates(confusion_matrix(truth, scores >= 0.5, 2))[part][1])

    return of_label


def _label_accuracy(truth: np.ndarray, scores: np.ndarray) -> float:
    return float((truth == (scores >= 0.5)).mean()) if len(truth) else float("nan")


def _confusion(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return confusion_matrix(truth, scores.argmax(1), scores.shape[1])


def _rates(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of each class; 0 where the denominator is, as scikit-learn's default."""
    hits, support, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    return {
        "precision": np.nan_to_num(_divide(hits, predicted)),
        "recall": np.nan_to_num(_divide(hits, support)),
        "f1": np.nan_to_num(_divide(2 * hits, support + predicted)),
    }


def _macro(matrix: np.ndarray, part: str) -> float:
    present = (matrix.sum(0) + matrix.sum(1)) > 0
    return _mean_of_defined(_rates(matrix)[part][present], part, "no sample")


def _weighted_kappa(matrix: np.ndarray, *, quadratic: bool) -> float:
    """1 - sum(w * observed) / sum(w * expected); w is 1 off the diagonal, or the squared distance of the classes."""
    classes, total = len(matrix), matrix.sum()
    grid = np.subtract.outer(np.arange(classes), np.arange(classes))
    weights = grid.astype(float) ** 2 if quadratic else (grid != 0).astype(float)
    expected = np.outer(matrix.sum(1), matrix.sum(0)) / total if total else np.zeros_like(weights)
    disagreement = _ratio(float((weights * matrix).sum()), float((weights * expected).sum()), "kappa")
    return 1.0 - disagreement


def _binary_auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """The Mann-Whitney statistic; ties count half."""
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - hits * (hits + 1) / 2) / (hits * misses))


def _pair_auc(truth: np.ndarray, scores: np.ndarray, a: int, b: int) -> float:
    chosen = (truth == a) | (truth == b)
    of_a = _binary_auc(truth[chosen] == a, scores[chosen, a])
    of_b = _binary_auc(truth[chosen] == b, scores[chosen, b])
    return (of_a + of_b) / 2


def _binary_average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """Sum over thresholds of (recall step) x precision; equal scores are one threshold."""
    hits = int(positive.sum())
    if not hits:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(positive[order])[last_of_ties]
    taken = np.flatnonzero(last_of_ties) + 1
    return float((np.diff(found, prepend=0) / hits * found / taken).sum())


def _divide(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom != 0)


def _ratio(top: float, bottom: float, name: str) -> float:
    if bottom:
        return top / bottom
    warnings.warn(f"{name} is undefined for these labels: NaN", UndefinedMetric, stacklevel=2)
    return float("nan")


def _mean_of_defined(parts: ArrayLike, name: str, what: str) -> float:
    values = np.asarray(parts, dtype=float)
    lost = int(np.isnan(values).sum())
    if lost == len(values):
        warnings.warn(f"{name} is undefined for these labels: NaN", UndefinedMetric, stacklevel=2)
        return float("nan")
    if lost:
        warnings.warn(f"{name} leaves out {lost} of {len(values)}: {what}", UndefinedMetric, stacklevel=2)
    return float(np.nanmean(values))


def _checked(
    task: Task, labels: ArrayLike, probabilities: ArrayLike, num_classes: int, valid: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    if task not in _OF_TASK:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(_OF_TASK)}")
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    expected = (len(truth),) if task == "single-label" else (len(truth), num_classes)
    if truth.shape != expected or scores.shape != (len(truth), num_classes):
        raise ValueError(
            f"{task} labels and probabilities of {num_classes} classes must have shapes {expected} and "
            f"{(len(truth), num_classes)}, got {truth.shape} and {scores.shape}"
        )
    if valid is not None:
        mask = np.asarray(valid, dtype=bool)
        truth, scores = truth[mask], scores[mask]
    if task == "multi-label":
        return truth.astype(np.float64), scores
    if len(truth) and not 0 <= truth.min() <= truth.max() < num_classes:
        raise ValueError(f"labels must be in 0..{num_classes - 1}, got {truth.min()}..{truth.max()}")
    return truth.astype(np.int64), scores


_OF_TASK: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "single-label": {
        "accuracy": accuracy,
        "balanced_accuracy": balanced_accuracy,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "kappa": kappa,
        "quadratic_kappa": quadratic_kappa,
        "roc_auc": roc_auc,
        "roc_auc_ovr": roc_auc_ovr,
        "average_precision": average_precision,
    },
    "multi-label": {
        "accuracy": _per_label("accuracy", _label_accuracy),
        "precision": _per_label("precision", _decided("precision")),
        "recall": _per_label("recall", _decided("recall")),
        "f1": _per_label("f1", _decided("f1")),
        "roc_auc": _per_label("roc_auc", _binary_auc),
        "average_precision": _per_label("average_precision", _binary_average_precision),
    },
}
