"""Gram matrices of unpooled activations, at the speed of BLAS: a ViT-S has 75,648 numbers an image and layer.

Legend: b images, d features of a layer, X [b, d].

- U-centring undoes any shift of the features exactly (`similarity.u_centre`: a_i + a_j added off the diagonal changes
  nothing), so columns are shifted only where digits ask for it: where more than nine tenths of the images' squared
  length are their mean's, the first image is taken off all. One pass over memory less than taking the mean off, and
  |x_i - x_0|^2 is about twice |x_i - mean|^2, where |x_i|^2 may be a thousand times that.
- K = K^T: NumPy hands X X^T to BLAS's syrk, which does half the work of a general product.
- float32 within 8192 columns, float64 from there on.
- Layers are shared out among threads of which each is alone in BLAS: BLAS divides so small a product badly.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.similarity import Array, Float64
from train.blas_threads import alone_in_blas, num_threads

CHUNK = 8192  # columns multiplied at a time
MEAN_SHARE = 0.9  # of the squared length: rounding is ten times that of centred features at most


def grams(activations: Sequence[Tensor]) -> Float64:
    """Return K [L, b, b] of L layers' activations [b, ...], up to shifts of the features."""
    flat = [in_memory_order(each.detach()) for each in activations]
    if flat[0].device.type != "cpu":
        return np.stack([cross(each - each[:1], each - each[:1]).cpu().numpy() for each in (f.float() for f in flat)])
    threads = min(num_threads(), len(flat))
    with alone_in_blas(threads) as pool:
        shares = list(pool.map(_grams, [flat[first::threads] for first in range(threads)]))
    found = np.empty((len(flat), *shares[0].shape[1:]))
    for first, share in enumerate(shares):
        found[first::threads] = share
    return found


def in_memory_order(layer: Tensor) -> Tensor:
    """Return [b, d] of [b, ...] without a copy of what is dense: the order of features changes no Gram matrix."""
    order = sorted(range(1, layer.ndim), key=layer.stride, reverse=True)
    return layer.permute(0, *order).flatten(1)


def cross(left: Tensor, right: Tensor) -> Tensor:
    """Return X Y^T [b1, b2] in float64 of X [b1, d] and Y [b2, d] in float32, on their device."""
    total = torch.zeros(len(left), len(right), dtype=torch.float64, device=left.device)
    for one, other in zip(left.split(CHUNK, dim=1), right.split(CHUNK, dim=1), strict=True):
        total += one @ other.T
    return total


def _grams(layers: Sequence[Tensor]) -> Float64:
    """One thread's share. It has one buffer for all: fresh pages would cost a tenth of the time."""
    images = len(layers[0])
    total = np.zeros((len(layers), images, images))
    buffer = np.empty((images, CHUNK), np.float32)
    for own, layer in zip(total, layers, strict=True):
        array: Array = layer.float().numpy()
        for start in range(0, array.shape[1], CHUNK):
            part = array[:, start : start + CHUNK]
            product = part @ part.T
            if product.sum() > MEAN_SHARE * images * product.trace():
                moved = np.subtract(part, part[0], out=buffer[:, : part.shape[1]])
                product = moved @ moved.T
            own += product
    return total
