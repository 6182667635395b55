"""Gram matrices of unpooled activations, at the speed of the processor: a ViT-S has 75,648 numbers an image and layer.

Legend: b images, d features of a layer, X [b, d].

- U-centring undoes any shift of the features exactly (`similarity.u_centre`: a_i + a_j added off the diagonal changes
  nothing), so the first image is taken off all, where it costs no pass over memory as the mean would, and
  |x_i - x_0|^2 is about twice |x_i - mean|^2, where |x_i|^2 may be a thousand times that.
- K = K^T: half of it is multiplied, by `grams.c` (which says why not by BLAS) or, without a compiler and for many
  images, by BLAS's syrk, where the first image is taken off only if digits ask for it: it is a pass there.
- float32 within a block of columns, float64 from there on.
- Layers are shared out among threads of which each is alone in BLAS: BLAS divides so small a product badly.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from analysis.similarity import Array, Float64
from shards.compiled import compiled
from train.blas_threads import alone_in_blas, num_threads

SOURCE = Path(__file__).with_name("grams.c")
FLAGS = ("-ffp-contract=fast",)
MOST_IMAGES = 256  # beyond, blocks that stay in the cache are narrow and BLAS is as quick
CHUNK = 8192  # columns multiplied at a time by BLAS
MEAN_SHARE = 0.75  # of the squared length: rounding is four times that of centred features at most
Loops = Callable[[Array], Float64]


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
    gram = (compiled_loops(images) if images <= MOST_IMAGES else None) or blas_loops(images)
    return np.stack([gram(layer.float().numpy()) for layer in layers])


def compiled_loops(images: int, flags: tuple[str, ...] = FLAGS) -> Loops | None:
    """The way of `grams.c`, X [b, d] to K [b, b]; None without a compiler."""
    made = _library(flags)
    if made is None:
        return None
    scratch = np.empty(made.gram_scratch(images), np.float32)

    def gram(rows: Array) -> Float64:
        if rows.strides[1] != rows.itemsize:
            rows = np.ascontiguousarray(rows)
        found = np.empty((images, images))
        pointers = found.ctypes.data, scratch.ctypes.data
        made.gram(rows.ctypes.data, rows.strides[0] // rows.itemsize, *rows.shape, *pointers)
        return found

    return gram


def blas_loops(images: int) -> Loops:
    """The way of BLAS, X [b, d] to K [b, b]."""
    buffer = np.empty((images, CHUNK), np.float32)

    def gram(rows: Array) -> Float64:
        total = np.zeros((images, images))
        for start in range(0, rows.shape[1], CHUNK):
            part = rows[:, start : start + CHUNK]
            product = part @ part.T
            if product.sum() > MEAN_SHARE * images * product.trace():
                moved = np.subtract(part, part[0], out=buffer[:, : part.shape[1]])
                product = moved @ moved.T
            total += product
        return total

    return gram


@cache
def _library(flags: tuple[str, ...]) -> ctypes.CDLL | None:
    made = compiled(SOURCE, flags)
    if made is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    made.gram_scratch.argtypes, made.gram_scratch.restype = [size], size
    made.gram.argtypes, made.gram.restype = [pointer, size, size, size, pointer, pointer], None
    return made
