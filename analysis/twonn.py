"""Intrinsic dimension from the two nearest neighbours of each point (TwoNN; Facco et al., Scientific Reports 2017).

Where density is about constant over two neighbours, mu = r2 / r1 has the distribution F(mu) = 1 - mu^-d whatever the
density, so that -log(1 - F) = d log mu: d is the slope through the origin of points (log mu_(i), -log(1 - i / N)). The
tenth with the largest mu, where that breaks first, is left out, as in the paper. Points that coincide have no mu: of
such points one is kept, and the others are counted.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

DISCARD = 0.1
MIN_POINTS = 20
BLOCK = 1024


class Dimension(NamedTuple):
    """The dimension of all points; of parts of them, which tells the scale it holds at; and how many points it saw."""

    value: float
    error: float  # standard deviation over disjoint halves / sqrt 2, a rough one
    half: float  # mean over two disjoint halves
    quarter: float  # mean over four disjoint quarters
    points: int
    repeated: int
    reason: str  # why a number above is NaN; empty where none is


def dimension(points: ArrayLike, *, seed: int = 0) -> Dimension:
    """TwoNN of points [n, d]. NaN where fewer than 20 different points (or 20 of a part) are there.

    Raises ValueError for values that are not finite.
    """
    array = np.asarray(points, np.float64)
    if array.ndim != 2 or not np.isfinite(array).all():
        raise ValueError(f"intrinsic dimension wants finite points [n, d], got {array.shape}")
    distinct = np.unique(array, axis=0)
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(distinct))
    parts = {count: [two_nn(distinct[part]) for part in np.array_split(order, count)] for count in (2, 4)}
    error = float(np.std(parts[2], ddof=1) / 2**0.5)
    means = {count: float(np.mean(found)) for count, found in parts.items()}
    whole, reason = two_nn(distinct), ""
    if np.isnan([whole, *means.values()]).any():
        reason = _reason(len(distinct), whole)
    return Dimension(whole, error, means[2], means[4], len(distinct), len(array) - len(distinct), reason)


def _reason(points: int, whole: float) -> str:
    if points < MIN_POINTS:
        return f"{points} different points are too few, TwoNN wants {MIN_POINTS}"
    if np.isnan(whole):
        return "the two nearest of every point are equally far"
    parts = [name for name, count in (("halves", 2), ("quarters", 4)) if points // count < MIN_POINTS]
    if not parts:
        return "in a part the two nearest of every point are equally far"
    return f"{' and '.join(parts)} of {points} different points are too small, TwoNN wants {MIN_POINTS}"


def two_nn(points: NDArray[np.float64], discard: float = DISCARD) -> float:
    """The slope for different points [n, d]; NaN for fewer than 20."""
    if len(points) < MIN_POINTS:
        return float("nan")
    first, second = nearest_two(points)
    mu = np.sort(second / first)
    count = int(len(mu) * (1 - discard))
    x, y = np.log(mu[:count]), -np.log1p(-np.arange(1, count + 1) / len(mu))
    return float(x @ y / (x @ x)) if x @ x > 0 else float("nan")


def nearest_two(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances [n] to the nearest and the second nearest other point, exact, a block of rows at a time.

    Candidates come from matrix products; their distances are then taken from differences, since products of large norms
    lose the digits of small distances.
    """
    centred = points - points.mean(0)
    squares = np.einsum("nd,nd->n", centred, centred)
    found = np.empty((len(points), 2))
    wanted = min(8, len(points) - 1)
    for start in range(0, len(points), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(points)))
        distances = squares[rows, None] + squares - 2 * centred[rows] @ centred.T
        distances[np.arange(len(rows)), rows] = np.inf
        near = np.argpartition(distances, wanted - 1, axis=1)[:, :wanted]
        exact = np.linalg.norm(centred[near] - centred[rows, None], axis=2)
        found[rows] = np.sort(exact, axis=1)[:, :2]
    return found[:, 0], found[:, 1]
