"""Linear probes: what a linear classifier reads out of frozen features (Alain and Bengio, 2017).

Features are standardised by the bank's mean and spread; multinomial logistic regression with an L2 penalty is
scikit-learn's, in float64, and its strength is the one with the lowest loss on validation.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

Float64 = NDArray[np.float64]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the penalty, a sample: lambda = 1 / (C n)
MAX_ITERATIONS = 2000
TOLERANCE = 1e-7  # largest gradient at the end, in multiples of the strength
NEWTON_PARAMETERS = 600  # up to here Newton's method is quicker than L-BFGS, and exact to the last digits


class Samples(NamedTuple):
    """Features [n, d] with labels: int [n], or float [n, C] of 0, 1 and NaN (ignored)."""

    features: ArrayLike
    labels: ArrayLike


class Probe(NamedTuple):
    """What a probe says of the queries, and how it was chosen."""

    probabilities: Float64  # [m, C]
    strength: float
    validation_loss: dict[float, float]  # strength -> mean cross-entropy; empty where the strength was given
    converged: bool


def probe(
    bank: Samples,
    validation: Samples | None,
    queries: ArrayLike,
    *,
    num_classes: int,
    multi_label: bool = False,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Fit on the bank, choose the strength on validation, predict the queries [m, d].

    With one strength, `validation` may be None. Classes without a sample in the bank get probability 0; a label of
    one value alone in the bank gets that value for every query, and one that is ignored throughout the bank NaN.

    Raises ValueError for several strengths without validation, one below 0, or features that are not finite.
    """
    if not strengths or min(strengths) <= 0:
        raise ValueError(f"the strength of a probe's penalty must be above 0, got {list(strengths)}")
    if len(strengths) > 1 and validation is None:
        raise ValueError("a probe's strength is chosen on validation images: give some, or one strength")
    scaler = StandardScaler().fit(_finite(bank.features))
    rotate = _rotation(scaler.transform(_finite(bank.features)))
    x, asked = (rotate(scaler.transform(_finite(some))) for some in (bank.features, queries))
    fit = _fit_labels if multi_label else _fit_classes
    losses: dict[float, float] = {}
    if len(strengths) > 1 and validation is not None:
        seen = rotate(scaler.transform(_finite(validation.features)))
        for strength in strengths:
            found, _ = fit(x, np.asarray(bank.labels), seen, num_classes, strength)
            losses[strength] = cross_entropy(validation.labels, found)
    best = min(losses, key=losses.__getitem__) if losses else strengths[0]
    probabilities, converged = fit(x, np.asarray(bank.labels), asked, num_classes, best)
    return Probe(probabilities, best, losses, converged)


def cross_entropy(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean -log probability [n, C] of what is true, each kept above 1e-12; labels as in `Samples`.

    Of several labels, those that are ignored or of which nothing is said (NaN) do not count.
    """
    truth, scores = np.asarray(labels), np.asarray(probabilities, np.float64)
    if truth.ndim == 1:
        return float(-np.log(np.maximum(scores[np.arange(len(truth)), truth.astype(int)], 1e-12)).mean())
    known = ~(np.isnan(truth) | np.isnan(scores))
    right = np.where(truth == 1, scores, 1 - scores)[known]
    return float(-np.log(np.maximum(right, 1e-12)).mean())


def _rotation(x: Float64) -> Callable[[Float64], Float64]:
    """A map to the span of the bank's n rows where they are fewer than the d features.

    The penalised solution lies in that span (representer theorem), so nothing is lost, and n numbers do for d.
    """
    if len(x) >= x.shape[1]:
        return lambda rows: rows
    basis = np.linalg.qr(x.T)[0]
    return lambda rows: rows @ basis


def _fit_classes(
    x: Float64, labels: np.ndarray, asked: Float64, num_classes: int, strength: float
) -> tuple[Float64, bool]:
    found = np.zeros((len(asked), num_classes))
    present = np.unique(labels)
    if len(present) == 1:
        found[:, int(present[0])] = 1
        return found, True
    model, converged = _regression(x, labels, strength)
    found[:, model.classes_.astype(int)] = model.predict_proba(asked)
    return found, converged


def _fit_labels(
    x: Float64, labels: np.ndarray, asked: Float64, num_classes: int, strength: float
) -> tuple[Float64, bool]:
    columns, all_converged = [], True
    for column in labels.T[:num_classes]:
        known = ~np.isnan(column)
        if not known.any():
            columns.append(np.full(len(asked), np.nan))
            continue
        found, converged = _fit_classes(x[known], column[known].astype(int), asked, 2, strength)
        columns.append(found[:, 1])
        all_converged &= converged
    return np.stack(columns, 1), all_converged


def _regression(x: Float64, labels: np.ndarray, strength: float) -> tuple[LogisticRegression, bool]:
    # A gradient below tol leaves the coefficients within tol / strength, as the loss curves at least by the penalty.
    small = x.shape[1] * len(np.unique(labels)) <= NEWTON_PARAMETERS
    solver = "newton-cholesky" if small else "lbfgs"
    model = LogisticRegression(
        C=1 / (strength * len(x)), solver=solver, max_iter=MAX_ITERATIONS, tol=TOLERANCE * strength
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(x, labels), True
        except ConvergenceWarning:
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(x, labels), False


def _finite(features: ArrayLike) -> Float64:
    array = np.asarray(features, np.float64)
    if not np.isfinite(array).all():
        raise ValueError("features hold NaN or infinite values: the model they come from has diverged")
    return array
