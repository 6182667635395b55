"""Fréchet distance between two clouds of features (FID; Heusel et al., NeurIPS 2017, eq. 6), in float64.

    d^2 = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))

with means m and covariances C of n - 1. The last trace is the sum of the singular values of A B^T, where A^T A = C1 and
B^T B = C2: A and B are the centred features over sqrt(n - 1), or what a QR decomposition leaves of them. No square root
of a product that is not symmetric, as in the usual code, hence no imaginary rests and no offset on the diagonal, also
with fewer images than features.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

MIN_IMAGES = 2


class Distance(NamedTuple):
    """The squared distance (what is called FID), and its two parts."""

    fid: float
    means: float  # |m1 - m2|^2
    covariances: float  # the rest


def frechet_distance(first: ArrayLike, second: ArrayLike, device: str | torch.device = "cpu") -> Distance:
    """FID of features [n1, d] and [n2, d].

    Raises ValueError for other shapes, fewer than two images, or values that are not finite.
    """
    a, b = (_checked(side, device) for side in (first, second))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"features of {a.shape[1]} and {b.shape[1]} columns cannot be compared: take one model")
    means = float((a.mean(0) - b.mean(0)).square().sum())
    left, right = _root(a), _root(b)
    cross = torch.linalg.svdvals(left @ right.T).sum()
    rest = float(left.square().sum() + right.square().sum() - 2 * cross)
    return Distance(means + max(rest, 0.0), means, max(rest, 0.0))


def halves(features: ArrayLike, seed: int, device: str | torch.device = "cpu") -> float:
    """FID of two random halves of one cloud: what a distance of so few images is at least, for no reason but noise.

    `features` [n, d]. NaN for fewer than four images.
    """
    array = np.asarray(features)
    if len(array) < 2 * MIN_IMAGES:
        return float("nan")
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(array))
    middle = len(array) // 2
    return frechet_distance(array[order[:middle]], array[order[middle:]], device).fid


def _checked(features: ArrayLike, device: str | torch.device) -> Tensor:
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or len(array) < MIN_IMAGES:
        raise ValueError(f"a distance wants features [images, columns] of at least 2 images, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("features hold NaN or infinite values: the model they come from has diverged")
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _root(features: Tensor) -> Tensor:
    """A [r, d] with A^T A the covariance, r = min(n, d)."""
    centred = (features - features.mean(0)) / (len(features) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R
