"""Centred kernel alignment of many layers at once: every Gram matrix is made once, then one product gives all pairs.

Legend: n images, d features of a layer, L layers, HSIC the Hilbert-Schmidt independence criterion.

Linear CKA of X [n, d1] and Y [n, d2] is HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X^T, L = Y Y^T (Kornblith
et al., 2019). With few images and many features the plain (biased) HSIC is far above zero for unrelated features; the
unbiased HSIC_1 (Song et al., 2012, eq. 5) is not:

    HSIC_1 = [tr(K~ L~) + (1^T K~ 1)(1^T L~ 1) / ((n-1)(n-2)) - 2 / (n-2) 1^T K~ L~ 1] / (n (n-3))

with K~ = K of a zeroed diagonal. It is the inner product of U-centred matrices (Szekely and Rizzo, 2014), so L layers
need L centred matrices and one product V V^T, V [L, n^2], in place of L^2 pairs of Grams. Where n is large the same
number comes from feature space, since tr(K~ L~) = |X^T Y|^2 - sum_i |x_i|^2 |y_i|^2 and the row sums of K~ are x_i .
sum_j x_j - |x_i|^2.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Float64 = NDArray[np.float64]

MIN_IMAGES = 4  # HSIC_1 divides by n (n - 3)
TILE_BYTES = 256 << 20
BLOCK_WIDTH = 4096  # features of a block of layers: 128 MB a product


def u_centre(gram: Array) -> Float64:
    """Return the U-centred copy [.., n, n] of Gram matrices [.., n, n]: zero diagonal, and rows that sum to zero.

    Raises:
        ValueError: fewer than MIN_IMAGES images.
    """
    n = gram.shape[-1]
    if n < MIN_IMAGES:
        raise ValueError(f"unbiased CKA needs at least {MIN_IMAGES} images, got {n}: raise --limit or --minibatch")
    centred = np.array(gram, np.float64)
    diagonal = np.arange(n)
    centred[..., diagonal, diagonal] = 0
    rows = centred.sum(-1) / (n - 2)
    total = rows.sum(-1) / (n - 1)
    centred += total[..., None, None] - rows[..., :, None] - rows[..., None, :]
    centred[..., diagonal, diagonal] = 0
    return centred


def double_centre(gram: Array) -> Float64:
    """Return H K H [.., n, n] with H = I - 1/n, the centring of the biased HSIC."""
    gram = np.asarray(gram, np.float64)
    rows = gram.mean(-1)
    return gram - rows[..., :, None] - rows[..., None, :] + rows.mean(-1)[..., None, None]


def hsic_of_grams(grams: Array, *, biased: bool = False) -> Float64:
    """Return HSIC [L, L] of all pairs of Gram matrices [L, n, n]: centre each once, then one matrix product."""
    n = grams.shape[-1]
    centred = double_centre(grams) if biased else u_centre(grams)
    flat = centred.reshape(len(grams), -1)
    return flat @ flat.T / ((n - 1) ** 2 if biased else n * (n - 3))


def linear_gram(features: Array) -> Float64:
    """Return K = X X^T [n, n] of features [n, ...] whose columns are centred first: CKA stays, digits are spared."""
    flat = np.asarray(features, np.float64).reshape(len(features), -1)
    flat = flat - flat.mean(0)
    return flat @ flat.T


def cka_of_hsic(hsic: Array) -> Float64:
    """Return CKA [L, L] from HSIC [L, L]; a layer without variation gives NaN."""
    own = np.diagonal(hsic).astype(np.float64)
    own = np.where(own > 0, own, np.nan)
    return np.asarray(hsic, np.float64) / np.sqrt(own[:, None] * own[None])


def hsic_of_sums(trace: Float64, sums: Float64) -> Float64:
    """Return HSIC_1 [L, L] from tr(K~ L~) [L, L] and the row sums of each K~ [L, n] (Song et al., 2012, eq. 5).

    The caller centres features at least roughly: the terms cancel, and a common mean would be what is left.

    Raises:
        ValueError: fewer than MIN_IMAGES images.
    """
    n = sums.shape[1]
    if n < MIN_IMAGES:
        raise ValueError(f"unbiased CKA needs at least {MIN_IMAGES} images, got {n}: raise --limit")
    totals = sums.sum(1)
    corrected = trace + np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (sums @ sums.T)
    return np.asarray(corrected / (n * (n - 3)))


def hsic_in_features(layers: Sequence[Array], rows: int = 2048, width: int = BLOCK_WIDTH) -> Float64:
    """Return HSIC_1 [L, L] of layers [n, d_i] without any n x n matrix: n d_i d_j work a pair.

    Arrays may be memory-mapped. Layers are taken in blocks of at most `width` features together (one layer at least):
    `rows` images of two blocks and two products [width, width] are in memory at a time, in float64.
    """
    _num_images(layers)
    means = [_column_mean(layer, rows) for layer in layers]
    squares = np.stack([_squared_norms(layer, mean) for layer, mean in zip(layers, means, strict=True)])
    trace = -squares @ squares.T
    blocks = _blocks([layer.shape[1] for layer in layers], width)
    for i, first in enumerate(blocks):
        for second in blocks[i:]:
            trace[first, second] += _squared_products(layers, means, first, second, rows)
    trace = np.triu(trace) + np.triu(trace, 1).T
    # Centred columns sum to zero, so the row sums of K~ are what the zeroed diagonal took away.
    return hsic_of_sums(trace, -squares)


def _squared_products(
    layers: Sequence[Array], means: Sequence[Float64], first: slice, second: slice, rows: int
) -> Float64:
    """Return |X_i^T X_j|^2 of centred layers, i in one block and j in the other."""
    starts = [np.cumsum([0, *(layer.shape[1] for layer in layers[block])]) for block in (first, second)]
    buffers = [np.empty((rows, ends[-1])) for ends in starts]
    total, product = np.zeros((2, starts[0][-1], starts[1][-1]))
    for part in _parts(len(layers[0]), rows):
        left = _centred(layers[first], means[first], part, buffers[0])
        right = left if first == second else _centred(layers[second], means[second], part, buffers[1])
        total += np.matmul(left.T, right, out=product)
    np.square(total, out=total)
    return np.add.reduceat(np.add.reduceat(total, starts[0][:-1], 0), starts[1][:-1], 1)


def _centred(layers: Sequence[Array], means: Sequence[Float64], part: slice, buffer: Float64) -> Float64:
    """Return the images of `part`, all layers side by side."""
    start, found = 0, buffer[: len(layers[0][part])]
    for layer, mean in zip(layers, means, strict=True):
        np.subtract(layer[part], mean, out=found[:, start : start + len(mean)])
        start += len(mean)
    return found


def _blocks(widths: Sequence[int], most: int) -> list[slice]:
    """Cut layers into runs of at most `most` features together, or of one layer."""
    blocks, start = [], 0
    for end in range(1, len(widths) + 1):
        if end == len(widths) or sum(widths[start : end + 1]) > most:
            blocks.append(slice(start, end))
            start = end
    return blocks


def hsic_in_tiles(layers: Sequence[Array], tile_bytes: int = TILE_BYTES) -> Float64:
    """Return HSIC_1 [L, L] of layers [n, d_i] from Grams of which only a strip of rows exists at a time.

    The strip holds [L, rows, n] float64 within `tile_bytes`; beside it, the centred features [n, d_i] of one layer.
    """
    n = _num_images(layers)
    means = [_column_mean(layer, 4096) for layer in layers]
    sums = np.stack([-_squared_norms(layer, mean) for layer, mean in zip(layers, means, strict=True)]) / (n - 2)
    totals = sums.sum(1) / (n - 1)
    rows = max(1, min(n, tile_bytes // (8 * n * len(layers))))
    hsic = np.zeros((len(layers), len(layers)))
    strip = np.empty((len(layers), rows, n))
    for part in _parts(n, rows):
        index = np.arange(*part.indices(n))
        block = strip[:, : len(index)]
        for i, layer in enumerate(layers):
            centred = np.asarray(layer, np.float64) - means[i]
            np.matmul(centred[part], centred.T, out=block[i])
            block[i] += totals[i] - sums[i, part, None] - sums[i, None]
            block[i, np.arange(len(index)), index] = 0
        flat = block.reshape(len(layers), -1)
        hsic += flat @ flat.T
    return hsic / (n * (n - 3))


def hsic_of_layers(layers: Sequence[Array]) -> tuple[Float64, str]:
    """Return HSIC_1 [L, L] over all images, and which way cost less: "features" (d small beside n) or "grams"."""
    n = _num_images(layers)
    widths = np.array([layer.shape[1] for layer in layers], np.float64)
    in_features = n * widths.sum() ** 2
    in_grams = 2 * n**2 * widths.sum() + n**2 * len(layers) ** 2
    if in_features <= in_grams:
        return hsic_in_features(layers), "features"
    return hsic_in_tiles(layers), "grams"


def batch_hsics(layers: Sequence[Array], sample_ids: NDArray[np.integer], *, batch: int, seed: int = 0) -> Float64:
    """Return HSIC_1 [m, L, L] of each mini-batch of a keyed permutation of the sample ids (Nguyen et al., 2021).

    CKA of their mean divides sums by sums; averaging the ratios of single batches is biased. The batches depend on the
    ids and the seed alone, so the order in which a loader met the images changes nothing.
    """
    parts = batches_of(sample_ids, batch=batch, seed=seed)
    return np.stack([hsic_of_grams(np.stack([linear_gram(layer[part]) for layer in layers])) for part in parts])


def jackknife_error(hsics: Array) -> Float64:
    """Return the standard error [L, L] of the CKA of averaged HSIC [m, L, L]: what other batches would have changed.

    Each batch is left out in turn (Efron and Stein, 1981): variance (m - 1) / m sum (CKA_-i - mean)^2. NaN for one
    batch alone.
    """
    m, total = len(hsics), hsics.sum(0)
    if m < 2:
        return np.full(total.shape, np.nan)
    without = [cka_of_hsic((total - one) / (m - 1)) for one in hsics]
    mean = sum(without) / m
    return np.sqrt((m - 1) / m * sum((one - mean) ** 2 for one in without))


def batches_of(sample_ids: NDArray[np.integer], *, batch: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of each mini-batch: ids in keyed order, cut into parts whose sizes differ by one at most.

    A short last batch would be noisier than the others (or undefined, below four images), so none is left.

    Raises:
        ValueError: a batch below MIN_IMAGES.
    """
    if batch < MIN_IMAGES:
        raise ValueError(f"a batch of {batch} is too small for unbiased CKA: --minibatch {MIN_IMAGES} or more")
    if len(sample_ids) < MIN_IMAGES:
        raise ValueError(f"unbiased CKA needs at least {MIN_IMAGES} images, got {len(sample_ids)}: raise --limit")
    order = keyed_order(sample_ids, seed)
    return np.array_split(order, min(-(-len(order) // batch), len(order) // MIN_IMAGES))


def keyed_order(sample_ids: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Return the rows [n] sorted by a keyed 64-bit mix of their ids (splitmix64): their first order changes nothing."""
    ids = np.ascontiguousarray(sample_ids).view(np.uint64)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        mixed = ids + golden * np.uint64(seed % (1 << 63) + 1)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.lexsort((ids, mixed ^ (mixed >> np.uint64(31))))


def _num_images(layers: Sequence[Array]) -> int:
    counts = {len(layer) for layer in layers}
    if len(counts) != 1:
        raise ValueError(f"layers to compare must hold the same images, got {sorted(counts)} rows")
    (n,) = counts
    if n < MIN_IMAGES:
        raise ValueError(f"unbiased CKA needs at least {MIN_IMAGES} images, got {n}: raise --limit")
    return n


def _parts(n: int, rows: int) -> list[slice]:
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def _column_mean(layer: Array, rows: int) -> Float64:
    total = np.zeros(layer.shape[1])
    for part in _parts(len(layer), rows):
        total += layer[part].sum(0, dtype=np.float64)
    return total / len(layer)


def _squared_norms(layer: Array, mean: Float64) -> Float64:
    norms = [np.square(layer[part].astype(np.float64) - mean).sum(1) for part in _parts(len(layer), 4096)]
    return np.concatenate(norms)
