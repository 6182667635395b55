"""Linear probes against other solvers of scikit-learn, and their edges."""

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from analysis import linear
from analysis.linear import Samples, cross_entropy, probe


def clusters(n: int, seed: int, classes: int = 3) -> Samples:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    centres = np.random.default_rng(0).normal(size=(classes, 12))
    return Samples(5 + 3 * (centres[labels] + generator.normal(size=(n, 12))), labels)


def by_scikit_learn(bank: Samples, queries: np.ndarray, strength: float, solver: str = "newton-cg") -> np.ndarray:
    scaler = StandardScaler().fit(bank.features)
    model = LogisticRegression(C=1 / (strength * len(bank.labels)), solver=solver, tol=1e-10, max_iter=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at the last digits its line search finds no further step
        return model.fit(scaler.transform(bank.features), bank.labels).predict_proba(scaler.transform(queries))


@pytest.mark.parametrize("parameters", [0, 600])
@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("images", [9, 200])
def test_agrees_with_another_solver(strength, images, parameters, monkeypatch):
    """Both of our solvers, with more and with fewer images than features."""
    monkeypatch.setattr(linear, "NEWTON_PARAMETERS", parameters)
    bank, queries = clusters(images, 1), clusters(50, 2).features
    found = probe(bank, None, queries, num_classes=3, strengths=(strength,))
    expected = by_scikit_learn(bank, queries, strength)
    flat = parameters == 0 and strength < 1e-3  # L-BFGS ends where the loss has no further digits
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4 if flat else 1e-6)
    assert found.converged
    assert found.strength == strength


def test_strength_is_the_one_with_the_lowest_loss_on_validation():
    bank, validation, queries = clusters(60, 1), clusters(90, 3), clusters(50, 2).features
    found = probe(bank, validation, queries, num_classes=3)
    losses = {
        s: log_loss(validation.labels, by_scikit_learn(bank, validation.features, s)) for s in found.validation_loss
    }
    assert found.validation_loss == pytest.approx(losses, abs=1e-6)
    assert found.strength == min(losses, key=losses.get)
    np.testing.assert_allclose(found.probabilities, by_scikit_learn(bank, queries, found.strength), atol=1e-6)


def test_multi_label_is_one_regression_a_label_without_the_ignored():
    bank, queries = clusters(120, 1, 4), clusters(30, 2, 4).features
    bits = np.stack([bank.labels >> bit & 1 for bit in (0, 1)], 1).astype(np.float32)
    bits[::7, 0] = np.nan
    found = probe(Samples(bank.features, bits), None, queries, num_classes=2, multi_label=True, strengths=(0.01,))
    known = ~np.isnan(bits[:, 0])
    scaler = StandardScaler().fit(bank.features)
    model = LogisticRegression(C=1 / (0.01 * known.sum()), solver="newton-cholesky", tol=1e-12)
    model.fit(scaler.transform(bank.features[known]), bits[known, 0])
    expected = model.predict_proba(scaler.transform(queries))[:, 1]
    np.testing.assert_allclose(found.probabilities[:, 0], expected, atol=1e-6)


def test_absent_classes_and_constant_labels():
    bank = clusters(40, 1, 2)
    found = probe(bank, None, bank.features, num_classes=4, strengths=(0.1,)).probabilities
    assert (found[:, 2:] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1)
    ones = Samples(bank.features, np.ones((40, 1), np.float32))
    assert (probe(ones, None, bank.features, num_classes=1, multi_label=True, strengths=(1,)).probabilities == 1).all()
    alone = Samples(bank.features, np.full(40, 2))
    assert probe(alone, None, bank.features[:1], num_classes=3, strengths=(1,)).probabilities.tolist() == [[0, 0, 1]]


def test_a_label_that_is_ignored_throughout_the_bank_is_not_said():
    bank, seen = clusters(60, 1, 2), clusters(40, 2, 2)
    bits = np.stack([np.full(60, np.nan), bank.labels], 1)
    validation = Samples(seen.features, np.stack([np.ones(40), seen.labels], 1))
    found = probe(Samples(bank.features, bits), validation, seen.features, num_classes=2, multi_label=True)
    assert np.isnan(found.probabilities[:, 0]).all() and np.isfinite(list(found.validation_loss.values())).all()
    alone = probe(bank, seen, seen.features, num_classes=2)
    assert found.strength == alone.strength
    np.testing.assert_allclose(found.probabilities[:, 1], alone.probabilities[:, 1], atol=1e-6)


def test_cross_entropy_ignores_blanks():
    labels = np.array([[1, np.nan], [0, 1]])
    scores = np.array([[0.8, 0.1], [0.25, 0.5]])
    assert cross_entropy(labels, scores) == pytest.approx(-np.log([0.8, 0.75, 0.5]).mean())


def test_mistakes_are_named():
    bank = clusters(20, 1)
    with pytest.raises(ValueError, match="chosen on validation images"):
        probe(bank, None, bank.features, num_classes=3)
    with pytest.raises(ValueError, match="must be above 0"):
        probe(bank, None, bank.features, num_classes=3, strengths=(0,))
    broken = np.array(bank.features)
    broken[0, 0] = np.nan
    with pytest.raises(ValueError, match="has diverged"):
        probe(Samples(broken, bank.labels), None, bank.features, num_classes=3, strengths=(1,))
