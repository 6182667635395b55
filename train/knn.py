"""Exact weighted k-nearest-neighbour classification by cosine similarity (Wu et al. 2018; Caron et al. 2021).

A query's class probabilities are the labels of its k nearest bank samples, weighted with exp(similarity / T) and
normalised. They are probabilities already: nothing passes through a softmax again.

Exact and quick on a CPU: a float32 product finds candidates that provably hold the k nearest, and the similarities of
those alone are taken in float64. With unit rows of width d and u = 2^-24, rounding the rows and any order of summation
move a product by at most e = g / (1 - g), g = (d + 4) u (Higham 2002, section 3.1). If t is at most the k-th largest
float32 product of a query, at least k true ones reach t - e, so each of the true k nearest does, and its float32
product reaches t - 2 e.
"""

import warnings

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

_MAX_SIMILARITIES = 1 << 26  # held at once: 512 MB in float64
_CHUNK = 32  # columns whose largest product bounds the k-th largest from below
_MIN_BANK = 4096  # smaller banks are not worth the detour
_MAX_SHARE = 4  # candidates a query, in multiples of k, above which the whole product in float64 is taken


def knn_probabilities(
    bank: ArrayLike | Tensor,
    bank_labels: ArrayLike | Tensor,
    queries: ArrayLike | Tensor,
    *,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.1,
    multi_label: bool = False,
    exclude_self: bool = False,
    block: int = 1024,
) -> np.ndarray:
    """Class probabilities float64[m, C] of m queries from n bank samples.

    `bank` [n, d] and `queries` [m, d] are features of any float type; similarities are those of float64, on the
    bank's device. `bank_labels` are int [n] in 0..C-1, or with `multi_label` float [n, C] of 0 and 1 with NaN for
    labels to ignore (NaN comes out where all neighbours' labels are ignored). A smaller bank lowers `k`. Equal
    similarities at the k-th place go to the lower bank row. `exclude_self` is leave-one-out: queries are the bank,
    row by row, and a row is not its own neighbour. At most `block` queries are compared at once (fewer where the bank
    is large: 2^26 similarities at most).

    Raises ValueError for an empty bank, other widths, or labels outside the classes.
    """
    device = bank.device if isinstance(bank, Tensor) else torch.device("cpu")
    bank_nd, query_md = _unit(bank, device), _unit(queries, device)
    n = len(bank_nd)
    targets = _targets(bank_labels, n, num_classes, multi_label).to(device)
    _check(bank_nd, query_md, k, temperature, exclude_self)
    k = min(k, n - exclude_self)
    rows = max(1, min(block, _MAX_SIMILARITIES // n))
    single = bank_nd.float() if _worth_candidates(bank_nd, k) else None
    found = []
    for first in range(0, len(query_md), rows):
        asked, own = query_md[first : first + rows], first if exclude_self else None
        nearest = None if single is None else _nearest_of_candidates(bank_nd, single, asked, own, k)
        values, index = nearest or _nearest(_products(asked, bank_nd, own), k)
        found.append(_vote(values, index, targets, temperature))
    return torch.cat(found).cpu().numpy() if found else np.empty((0, num_classes))


def _vote(values: Tensor, index: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Probabilities [m, C] from the k similarities [m, k] of each query and the bank rows they belong to."""
    weights = torch.exp((values - values[:, :1]) / temperature)[..., None]  # the largest is 1: no overflow at small T
    labels = targets[index]
    known = ~torch.isnan(labels)
    return (weights * labels.nan_to_num()).sum(1) / (weights * known).sum(1)


def _products(queries: Tensor, bank: Tensor, own: int | None) -> Tensor:
    """All similarities [m, n]; `own`, for leave-one-out, is the bank row of the first query."""
    similarity = queries @ bank.T
    if own is not None:
        rows = torch.arange(len(queries), device=similarity.device)
        similarity[rows, rows + own] = -torch.inf
    return similarity


def _worth_candidates(bank: Tensor, k: int) -> bool:
    """On a CPU, for banks far larger than k, while float32 products are true float32."""
    n, d = bank.shape
    plain = bank.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return plain and n >= _MIN_BANK and n // _CHUNK >= 2 * k and d < 1 << 16


def _nearest_of_candidates(
    bank: Tensor, single: Tensor, queries: Tensor, own: int | None, k: int
) -> tuple[Tensor, Tensor] | None:
    """What `_nearest` gives, from the float64 similarities of candidates alone; None where ties make too many."""
    rough = _products(queries.float(), single, own)
    g = (bank.shape[1] + 4) * 2.0**-24
    chunks = len(bank) // _CHUNK
    # A chunk is every so many-th column, so that in a bank sorted by class near rows lie in many chunks.
    largest = rough[:, : chunks * _CHUNK].unflatten(1, (_CHUNK, chunks)).amax(1)
    threshold = largest.topk(k, dim=1)[0][:, -1:].double() - 2 * g / (1 - g)
    # One step of float32 below: the comparison itself must not round upwards.
    candidate = rough >= torch.nextafter(threshold.float(), torch.tensor(-torch.inf))
    found = candidate.nonzero()
    counts, columns = torch.bincount(found[:, 0], minlength=len(rough)), found[:, 1].contiguous()
    if int(counts.max()) > _MAX_SHARE * k:
        return None
    ends = counts.cumsum(0)
    exact = _sampled_products(queries, bank, torch.cat([ends.new_zeros(1), ends]), columns)
    places = torch.arange(int(counts.max())) < counts[:, None]
    padded = torch.full(places.shape, -torch.inf, dtype=torch.float64)
    index = torch.zeros(places.shape, dtype=torch.int64)
    padded[places], index[places] = exact, columns
    values, chosen = _nearest(padded, k)
    return values, index.gather(1, chosen)


def _sampled_products(queries: Tensor, bank: Tensor, ends: Tensor, columns: Tensor) -> Tensor:
    """Similarities of the given bank rows (`columns`, by query: row i has columns[ends[i]:ends[i + 1]]), one by one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its sparse layouts a beta each time
        zeros = torch.zeros(len(columns), dtype=torch.float64)
        pattern = torch.sparse_csr_tensor(ends, columns, zeros, size=(len(queries), len(bank)))
        return torch.sparse.sampled_addmm(pattern, queries, bank.T, beta=0.0).values()


def _nearest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and where they are; ties at the k-th place go to the lower index."""
    values, index = similarity.topk(k, dim=1)
    threshold = values[:, -1:]
    for row in ((similarity >= threshold).sum(1) > k).nonzero().flatten().tolist():
        above = (similarity[row] > threshold[row]).nonzero().flatten()
        equal = (similarity[row] == threshold[row]).nonzero().flatten()[: k - len(above)]
        chosen = torch.cat([above, equal])
        index[row] = chosen[similarity[row, chosen].argsort(descending=True, stable=True)]
    return similarity.gather(1, index), index


def _unit(features: ArrayLike | Tensor, device: torch.device) -> Tensor:
    """Rows of length 1 in float64; a zero row stays zero, and is as far from everything as a right angle."""
    array = features.detach() if isinstance(features, Tensor) else torch.from_numpy(np.array(features))
    rows = array.to(device=device, dtype=torch.float64)
    if rows.ndim != 2:
        raise ValueError(f"features must be [samples, width], got shape {tuple(rows.shape)}")
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    length[length == 0] = 1
    borrowed = isinstance(features, Tensor) and rows.data_ptr() == features.data_ptr()
    return rows / length if borrowed else rows.div_(length)  # 300,000 x 768 are 1.8 GB: not twice


def _targets(labels: ArrayLike | Tensor, n: int, num_classes: int, multi_label: bool) -> Tensor:
    """Labels as float64[n, C]."""
    array = labels.detach().cpu() if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
    expected = (n, num_classes) if multi_label else (n,)
    if tuple(array.shape) != expected:
        raise ValueError(f"bank labels must have shape {expected}, got {tuple(array.shape)}")
    if multi_label:
        return array.double()
    if n and not 0 <= int(array.min()) <= int(array.max()) < num_classes:
        raise ValueError(f"bank labels must be in 0..{num_classes - 1}, got {int(array.min())}..{int(array.max())}")
    return torch.nn.functional.one_hot(array.long(), num_classes).double()


def _check(bank: Tensor, queries: Tensor, k: int, temperature: float, exclude_self: bool) -> None:
    if len(bank) <= exclude_self:
        raise ValueError(f"the bank holds {len(bank)} samples: k-NN needs at least {1 + exclude_self}")
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank features are {bank.shape[1]} wide, query features {queries.shape[1]}: other layers or models?"
        )
    if k < 1 or temperature <= 0:
        raise ValueError(f"k must be at least 1 and temperature above 0, got k={k}, temperature={temperature}")
    if exclude_self and len(bank) != len(queries):
        raise ValueError(
            f"exclude_self compares the bank with itself, got {len(queries)} queries for {len(bank)} samples"
        )
    if not (torch.isfinite(bank).all() and torch.isfinite(queries).all()):
        raise ValueError("features hold NaN or infinite values: the model they come from has diverged")
