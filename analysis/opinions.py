"""Second opinions beside CKA: CCA and Procrustes similarity; and what CKA's own values are worth.

The null level is CKA with the images of one side shuffled (about zero when unbiased, and its spread is the noise), the
ceiling is CKA between two halves of one layer's features: what the same representation reaches, seen through other
units.
"""

import numpy as np

from analysis.similarity import Array, Float64, hsic_of_grams, hsic_of_layers, linear_gram, u_centre

GRAM_IMAGES = 2048  # of which n x n matrices are kept
WHOLE_IMAGES = 8192  # above, features pass in parts and d x d products are kept
ROUNDING = 1e-7  # of the largest singular value: what float32 features hold below is not theirs


def canonical_correlations(first: Array, second: Array, *, centre: bool = True) -> Float64:
    """Return the canonical correlations of features [n, d1] and [n, d2], largest first; none where undefined.

    As many as the narrower side has directions (those of rounding alone are left out). Undefined where a side does not
    vary, or both have more directions together than n images leave room for (n - 1 when centred): then some
    correlations are 1 whatever the features. Directions count, not features: of these there may be more than images.
    """
    if len(first) > WHOLE_IMAGES:
        own_first, product, own_second = _products(first, second, centre=centre)
        overlap = _whitening(own_first).T @ product @ _whitening(own_second)
    else:
        overlap = _basis(first, centre).T @ _basis(second, centre)
    if sum(overlap.shape) > len(first) - centre:
        return np.empty(0)
    return np.asarray(np.linalg.svd(overlap, compute_uv=False)) if min(overlap.shape) else np.empty(0)


def cca(first: Array, second: Array, *, centre: bool = True) -> dict[str, float]:
    """Return "cca_mean" and "cca_r2": mean canonical correlation and mean of their squares, 0..1, NaN where undefined.

    Raghu et al. (2017) and Kornblith et al. (2019, table 1). `first` [n, p] and `second` [n, q]: features of the same
    n images.
    """
    found = canonical_correlations(first, second, centre=centre)
    if not len(found):
        return {"cca_mean": float("nan"), "cca_r2": float("nan")}
    return {"cca_mean": float(found.mean()), "cca_r2": float(np.square(found).mean())}


def procrustes(first: Array, second: Array) -> float:
    """Return |X^T Y|_* / (|X| |Y|), 0..1: how well an orthogonal map and a scale carry one onto the other.

    Williams et al. (2021); features [n, d1] and [n, d2] are centred first.
    """
    if len(first) > WHOLE_IMAGES:
        own_first, product, own_second = _products(first, second, centre=True)
        scale = np.sqrt(np.trace(own_first) * np.trace(own_second))
    else:
        left, right = _centred(first), _centred(second)
        scale = np.linalg.norm(left) * np.linalg.norm(right)
        # More features than images: an orthogonal map brings them to n columns and changes no singular value.
        left, right = (_triangle(side).T if side.shape[1] > len(side) else side for side in (left, right))
        product = left.T @ right
    return float(np.linalg.svd(product, compute_uv=False).sum() / scale) if scale else float("nan")


def _products(first: Array, second: Array, *, centre: bool, rows: int = 4096) -> tuple[Float64, Float64, Float64]:
    """X^T X, X^T Y and Y^T Y of centred features, `rows` images in memory at a time."""
    sides = first, second
    means = [np.mean(side, axis=0, dtype=np.float64) if centre else np.zeros(side.shape[1]) for side in sides]
    width = first.shape[1] + second.shape[1]
    total = np.zeros((width, width))
    for start in range(0, len(first), rows):
        part = [np.asarray(s[start : start + rows], np.float64) - m for s, m in zip(sides, means, strict=True)]
        joined = np.concatenate(part, 1)
        total += joined.T @ joined
    cut = first.shape[1]
    return total[:cut, :cut], total[:cut, cut:], total[cut:, cut:]


def _whitening(own: Float64) -> Float64:
    """W with W^T X^T X W = 1 over the directions in which X varies."""
    values, vectors = np.linalg.eigh(own)
    keep = values > ROUNDING**2 * max(values.max(initial=0), 0)
    return np.asarray(vectors[:, keep] / np.sqrt(values[keep]))


def _basis(side: Array, centre: bool) -> Float64:
    """Orthonormal columns that span the features."""
    left, values, _ = np.linalg.svd(_centred(side) if centre else np.asarray(side, np.float64), full_matrices=False)
    return np.asarray(left[:, values > ROUNDING * values.max(initial=0)])


def _centred(side: Array) -> Float64:
    array = np.asarray(side, np.float64)
    return array - array.mean(0)


def _triangle(side: Float64) -> Float64:
    return np.asarray(np.linalg.qr(side.T, mode="r"))


def null_level(first: Array, second: Array, *, seed: int = 0, shuffles: int = 20) -> dict[str, float]:
    """Return mean, spread and largest size of CKA [n, d1] against [n, d2] over shuffled pairings of the images.

    Of more than 2048 images so many are drawn, and "images" says so: the spread goes as one over their number.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    if len(first) > GRAM_IMAGES:
        drawn = np.sort(generator.choice(len(first), GRAM_IMAGES, replace=False))
        first, second = first[drawn], second[drawn]
    orders = [generator.permutation(len(first)) for _ in range(shuffles)]
    left, right = u_centre(linear_gram(first)), u_centre(linear_gram(second))
    scale = np.linalg.norm(left) * np.linalg.norm(right)
    levels = [float(np.vdot(left, right[np.ix_(order, order)]) / scale) if scale else np.nan for order in orders]
    spread = {"mean": float(np.mean(levels)), "std": float(np.std(levels)), "largest": float(np.max(np.abs(levels)))}
    return {**spread, "images": len(first)}


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
    """Return CKA on two random halves of the images: how far the value moves when half the evidence goes.

    `first` [n, p] and `second` [n, q]: features of the same n images.
    """
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
