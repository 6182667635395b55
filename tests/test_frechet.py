"""FID against closed forms and the usual formula with scipy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from analysis.frechet import frechet_distance, halves


def usual(a: np.ndarray, b: np.ndarray) -> float:
    """As FID is commonly computed (Heusel et al., 2017)."""
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real))


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 12), (60, 300, 12), (50, 50, 30)])
def test_the_usual_formula(n: int, m: int, d: int):
    rng = np.random.default_rng(n)
    a = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 1
    b = rng.normal(size=(m, d)) @ rng.normal(size=(d, d))
    found = frechet_distance(a, b)
    assert found.fid == pytest.approx(usual(a, b), rel=1e-8)
    assert found.fid == found.means + found.covariances


def with_moments(mean: np.ndarray, deviations: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points whose sample mean and covariance (diagonal) are exactly these."""
    raw = rng.normal(size=(100, len(mean)))
    white, _ = np.linalg.qr(raw - raw.mean(0))
    return white * np.sqrt(99) * deviations + mean


def test_closed_form_of_diagonal_covariances():
    rng = np.random.default_rng(0)
    m1, m2, s1, s2 = np.array([0.0, 1, 2]), np.array([1.0, 1, 0]), np.array([1.0, 2, 3]), np.array([2.0, 2, 1])
    found = frechet_distance(with_moments(m1, s1, rng), with_moments(m2, s2, rng))
    assert found.means == pytest.approx(5)
    assert found.covariances == pytest.approx(((s1 - s2) ** 2).sum())


def test_fewer_images_than_features_are_exact_too():
    """In their common span nothing is lost: padding with constant columns and turning change nothing."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(20, 8)), rng.normal(size=(25, 8)) * 2
    turn, _ = np.linalg.qr(rng.normal(size=(200, 200)))
    wide = [np.pad(side, ((0, 0), (0, 192))) @ turn for side in (a, b)]
    assert frechet_distance(*wide).fid == pytest.approx(usual(a, b), rel=1e-8)


def test_same_images_are_at_distance_zero_and_order_changes_nothing():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(40, 100)).astype(np.float32), rng.normal(size=(30, 100))
    assert frechet_distance(a, a).fid == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, b).fid == pytest.approx(frechet_distance(b, rng.permutation(a)).fid)


def test_few_images_are_apart_for_no_reason_and_the_floor_says_so():
    rng = np.random.default_rng(3)
    few, many = rng.normal(size=(60, 32)), rng.normal(size=(6000, 32))
    assert halves(few, 0) > 10 * halves(many, 0)
    assert np.isnan(halves(few[:3], 0))


def test_mistakes():
    with pytest.raises(ValueError, match="of 3 and 2 columns cannot be compared"):
        frechet_distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"at least 2 images, got \(1, 2\)"):
        frechet_distance(np.zeros((1, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="has diverged"):
        frechet_distance(np.full((4, 2), np.nan), np.zeros((4, 2)))
