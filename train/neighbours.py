"""The k nearest rows of a bank by cosine similarity, those of float64, at the cost of a float32 product.

A float32 product finds candidates that provably hold the k nearest, and the similarities of those alone are taken in
float64. With unit rows of width d and u = 2^-24, rounding the rows and any order of summation move a product by at most
e = g / (1 - g), g = (d + 4) u (Higham 2002, section 3.1). If t is at most the k-th largest float32 product of a query,
at least k true ones reach t - e, so each of the true k nearest does, and its float32 product reaches t - 2 e.

t is found twice: the k-th largest of the maxima of chunks, which costs one look at each product, leaves about 1.2 k
candidates; their own k-th largest leaves k and a few. A query with far more (many rows as good as equal) is answered by
the whole product in float64.

Legend: n rows of the bank, m queries, d features.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.blas_threads import alone_in_blas, num_threads

_CHUNK = 32  # products of which the largest is taken
_MIN_BANK = 4096  # smaller banks are not worth the detour
_MAX_SHARE = 4  # candidates a query, in multiples of k, above which the whole product in float64 is taken
_MAX_PRODUCTS = 1 << 27  # float32 held at once by all threads: 512 MB
Float32 = NDArray[np.float32]
Index = NDArray[np.int64]


class Found(NamedTuple):
    """Candidates of some queries, one query after the other."""

    counts: Index  # [m]: 0 for a query with too many
    columns: Index  # rows of the bank


def nearest(queries: Tensor, bank: Tensor, own: int | None, k: int) -> tuple[Tensor, Tensor]:
    """Similarities and bank rows [m, k] of the k nearest, largest first, by the whole product.

    Rows are float64 of length 1. Ties at the k-th place go to the lower row. `own`, for leave-one-out, is the bank row
    of the first query.
    """
    similarity = queries @ bank.T
    if own is not None:
        rows = torch.arange(len(queries), device=similarity.device)
        similarity[rows, rows + own] = -torch.inf
    return largest(similarity, k)


def largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and where they are; ties at the k-th place go to the lower index.

    `similarity` float[q, n]; float[q, k] and int64[q, k], in falling order.
    """
    values, index = similarity.topk(k, dim=1)
    threshold = values[:, -1:]
    for row in ((similarity >= threshold).sum(1) > k).nonzero().flatten().tolist():
        above = (similarity[row] > threshold[row]).nonzero().flatten()
        equal = (similarity[row] == threshold[row]).nonzero().flatten()[: k - len(above)]
        chosen = torch.cat([above, equal])
        index[row] = chosen[similarity[row, chosen].argsort(descending=True, stable=True)]
    return similarity.gather(1, index), index


def worth_candidates(bank: Tensor, k: int) -> bool:
    """On a CPU, for banks far larger than k.

    `bank` float[n, d].
    """
    n, d = bank.shape
    return bank.device.type == "cpu" and n >= _MIN_BANK and n // _CHUNK >= 2 * k and d < 1 << 16


class Candidates:
    """Answers as `nearest` does, for a bank that is worth it."""

    def __init__(self, bank: Tensor, k: int, block: int):
        self.bank, self.k = bank, k
        self.single: Float32 = bank.float().numpy()
        g = (bank.shape[1] + 4) * 2.0**-24
        self.margin = 2 * g / (1 - g)
        self.threads = num_threads()
        self.rows = max(1, min(block, _MAX_PRODUCTS // (self.threads * len(bank))))
        self._rooms: dict[int, tuple[Float32, NDArray[np.bool_]]] = {}

    @property
    def at_once(self) -> int:
        """Queries of a call that keeps all threads busy."""
        return self.rows * self.threads

    def nearest(self, queries: Tensor, own: int | None) -> tuple[Tensor, Tensor]:
        """Similarities and bank rows [m, k] of the k nearest, largest first."""
        parts = np.array_split(np.arange(len(queries)), -(-len(queries) // self.rows))
        single = queries.float().numpy()

        def work(share: int) -> list[Found]:
            return [
                self._candidates(single[part], None if own is None else own + int(part[0]), share)
                for part in parts[share :: self.threads]
            ]

        with alone_in_blas(self.threads) as pool:
            shares = list(pool.map(work, range(min(self.threads, len(parts)))))
        found = [shares[i % self.threads][i // self.threads] for i in range(len(parts))]
        counts = np.concatenate([each.counts for each in found])
        values, index = self._exact(queries, counts, np.concatenate([each.columns for each in found]))
        for row in np.flatnonzero(counts == 0).tolist():
            one = nearest(queries[row : row + 1], self.bank, None if own is None else own + row, self.k)
            values[row], index[row] = one[0][0], one[1][0]
        return values, index

    def _room(self, share: int, m: int) -> tuple[Float32, NDArray[np.bool_]]:
        """Memory of a thread for m rows of products and as many flags, taken once: fresh pages cost time."""
        if share not in self._rooms or len(self._rooms[share][0]) < m:
            shape = (m, len(self.single))
            self._rooms[share] = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        products, flags = self._rooms[share]
        return products[:m], flags[:m]

    def _candidates(self, queries: Float32, own: int | None, share: int = 0) -> Found:
        """Columns whose float64 products may be among the k largest; `share` is the thread's number."""
        m, n, k = len(queries), len(self.single), self.k
        rough, inside = self._room(share, m)
        np.matmul(queries, self.single.T, out=rough)
        if own is not None:
            rough[np.arange(m), np.arange(m) + own] = -np.inf
        # A chunk is every so many-th column, so that in a bank sorted by class near rows lie in many chunks.
        chunks = n // _CHUNK
        least = self._threshold(rough[:, : chunks * _CHUNK].reshape(m, _CHUNK, chunks).max(1))
        np.greater_equal(rough, least, out=inside)
        if np.count_nonzero(inside) > _MAX_SHARE * k * m:
            inside[np.count_nonzero(inside, axis=1) > _MAX_SHARE * k] = False
        places = np.flatnonzero(inside)
        row, products = places // n, rough.reshape(-1)[places]
        counts = np.bincount(row, minlength=m)
        least = self._threshold(_padded(products, counts, k))
        keep = products >= least[row, 0]
        return Found(np.bincount(row[keep], minlength=m), places[keep] - row[keep] * n)

    def _threshold(self, products: Float32) -> Float32:
        """[m, 1]: the k-th largest of each row less the margin, and a step of float32, as it must not round upwards."""
        width = products.shape[1]
        kth = np.partition(products, width - self.k, axis=1)[:, width - self.k, None]
        return np.nextafter((kth - np.float64(self.margin)).astype(np.float32), np.float32(-np.inf))

    def _exact(self, queries: Tensor, counts: Index, columns: Index) -> tuple[Tensor, Tensor]:
        """The k nearest of the candidates; rows without any are left for others."""
        ends = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
        products = _sampled_products(queries, self.bank, ends, torch.from_numpy(columns))
        values, chosen = largest(torch.from_numpy(_padded(products.numpy(), counts, self.k)), self.k)
        return values, torch.from_numpy(_padded(columns, counts, self.k, 0)).gather(1, chosen)


def _padded(values: np.ndarray, counts: Index, width: int = 1, fill: float = -np.inf) -> np.ndarray:
    """[m, most]: row i holds its counts[i] values, then `fill`; at least `width` wide."""
    places = np.arange(max(width, int(counts.max()))) < counts[:, None]
    table = np.full(places.shape, fill, values.dtype)
    table[places] = values
    return table


def _sampled_products(queries: Tensor, bank: Tensor, ends: Tensor, columns: Tensor) -> Tensor:
    """Similarities of the given bank rows (`columns`, by query: row i has columns[ends[i]:ends[i + 1]]), one by one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse layouts a beta each time
        zeros = torch.zeros(len(columns), dtype=torch.float64)
        pattern = torch.sparse_csr_tensor(ends, columns, zeros, size=(len(queries), len(bank)))
        return torch.sparse.sampled_addmm(pattern, queries, bank.T, beta=0.0).values()
