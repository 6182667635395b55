"""Second opinions beside CKA: mean squared CCA and Procrustes similarity; and what CKA's own values are worth.

The null level is CKA with the images of one side shuffled (about zero when unbiased, and its spread is the noise), the
ceiling is CKA between two halves of one layer's features: what the same representation reaches, seen through other
units.
"""

import numpy as np

from analysis.similarity import Array, Float64, hsic_of_grams, hsic_of_layers, linear_gram, u_centre

GRAM_IMAGES = 4096  # up to here a null level keeps two n x n matrices, above it works in feature space


def cca_r2(first: Array, second: Array, *, centre: bool = True) -> float:
    """Return the mean squared canonical correlation, 0..1, of features [n, d1] and [n, d2].

    Kornblith et al. (2019), table 1, R^2 of CCA.

    Undefined where a side has at least as many features as images: NaN.
    """
    left, right = (np.asarray(side, np.float64) for side in (first, second))
    if max(left.shape[1], right.shape[1]) >= len(left):
        return float("nan")
    if centre:
        left, right = left - left.mean(0), right - right.mean(0)
    overlap = np.linalg.qr(left)[0].T @ np.linalg.qr(right)[0]
    return float(np.square(overlap).sum() / min(overlap.shape))


def procrustes(first: Array, second: Array) -> float:
    """Return |X^T Y|_* / (|X| |Y|), 0..1: how well an orthogonal map and a scale carry one onto the other.

    Williams et al. (2021); features [n, d1] and [n, d2] are centred first.
    """
    left, right = (np.asarray(side, np.float64) for side in (first, second))
    left, right = left - left.mean(0), right - right.mean(0)
    scale = np.linalg.norm(left) * np.linalg.norm(right)
    if scale == 0:
        return float("nan")
    # More features than images: an orthogonal map brings them to n columns and changes no singular value.
    left, right = (_triangle(side).T if side.shape[1] > len(side) else side for side in (left, right))
    return float(np.linalg.svd(left.T @ right, compute_uv=False).sum() / scale)


def _triangle(side: Float64) -> Float64:
    return np.asarray(np.linalg.qr(side.T, mode="r"))


def null_level(first: Array, second: Array, *, seed: int = 0, shuffles: int = 20) -> dict[str, float]:
    """Return mean, spread and largest size of CKA [n, d1] against [n, d2] over shuffled pairings of the images."""
    generator = np.random.Generator(np.random.Philox(seed))
    orders = [generator.permutation(len(first)) for _ in range(shuffles)]
    if len(first) <= GRAM_IMAGES:
        left, right = u_centre(linear_gram(first)), u_centre(linear_gram(second))
        scale = np.linalg.norm(left) * np.linalg.norm(right)
        levels = [float(np.vdot(left, right[np.ix_(order, order)]) / scale) if scale else np.nan for order in orders]
    else:
        levels = [_cka(first, np.asarray(second)[order]) for order in orders]
    return {"mean": float(np.mean(levels)), "std": float(np.std(levels)), "largest": float(np.max(np.abs(levels)))}


def ceiling(features: Array, *, seed: int = 0, splits: int = 5) -> float:
    """Return the mean CKA between two random halves of one layer's features [n, d]; NaN for a single feature."""
    if features.shape[1] < 2:
        return float("nan")
    generator = np.random.Generator(np.random.Philox(seed))
    array = np.asarray(features)
    levels = []
    for _ in range(splits):
        order = generator.permutation(array.shape[1])
        levels.append(_cka(array[:, order[::2]], array[:, order[1::2]]))
    return float(np.mean(levels))


def image_halves(first: Array, second: Array, *, seed: int = 0) -> list[float]:
    """Return CKA on two random halves of the images: how far the value moves when half the evidence goes."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(first))
    halves = np.sort(order[::2]), np.sort(order[1::2])
    return [_cka(np.asarray(first)[half], np.asarray(second)[half]) for half in halves]


def _cka(first: Array, second: Array) -> float:
    small = len(first) <= GRAM_IMAGES
    hsic = (
        hsic_of_grams(np.stack([linear_gram(first), linear_gram(second)]))
        if small
        else hsic_of_layers([first, second])[0]
    )
    own = hsic[0, 0] * hsic[1, 1]
    return float(hsic[0, 1] / np.sqrt(own)) if own > 0 else float("nan")
