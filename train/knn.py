"""Exact weighted k-nearest-neighbour classification by cosine similarity (Wu et al. 2018; Caron et al. 2021).

A query's class probabilities are the labels of its k nearest bank samples, weighted with exp(similarity / T) and
normalised. They are probabilities already: nothing passes through a softmax again.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from train.blas_threads import num_threads
from train.neighbours import Candidates, nearest, worth_candidates

_MAX_SIMILARITIES = 1 << 26  # held at once: 512 MB in float64
_PART = 256  # rows normalised at a time: they stay in the cache


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
    quick = Candidates(bank_nd, k, block) if worth_candidates(bank_nd, k) else None
    rows = quick.at_once if quick else max(1, min(block, _MAX_SIMILARITIES // n))
    found = []
    for first in range(0, len(query_md), rows):
        asked, own = query_md[first : first + rows], first if exclude_self else None
        values, index = quick.nearest(asked, own) if quick else nearest(asked, bank_nd, own, k)
        found.append(_vote(values, index, targets, num_classes, temperature))
    return torch.cat(found).numpy() if found else np.empty((0, num_classes))


def _vote(values: Tensor, index: Tensor, targets: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Probabilities [m, C] from the k similarities [m, k] of each query and the bank rows they belong to."""
    weights = torch.exp((values - values[:, :1]) / temperature)  # the largest is 1: no overflow at small T
    labels = targets[index]
    if labels.ndim == 2:  # a sum a class, in an order that a GPU does not change either
        places = torch.arange(len(labels))[:, None] * num_classes + labels.cpu()
        sums = np.bincount(places.flatten().numpy(), weights.cpu().flatten().numpy(), len(labels) * num_classes)
        votes = torch.from_numpy(sums).reshape(len(labels), num_classes)
        return votes / votes.sum(1, keepdim=True)
    known = ~torch.isnan(labels)
    return ((weights[..., None] * labels.nan_to_num()).sum(1) / (weights[..., None] * known).sum(1)).cpu()


def _unit(features: ArrayLike | Tensor, device: torch.device) -> Tensor:
    """Rows of length 1 in float64; a zero row stays zero, and is as far from everything as a right angle."""
    array = features.detach() if isinstance(features, Tensor) else np.asarray(features)
    if array.ndim != 2:
        raise ValueError(f"features must be [samples, width], got shape {tuple(array.shape)}")
    if device.type != "cpu":
        whole = torch.as_tensor(array, device=device).double()
        length = torch.linalg.vector_norm(whole, dim=1).cpu().numpy()
        return whole / torch.from_numpy(_divisor(length)[:, None]).to(device)
    rows = np.empty(tuple(array.shape))

    def divide(start: int) -> None:
        some = array[start : start + _PART]
        part = some.double().cpu().numpy() if isinstance(some, Tensor) else some.astype(np.float64)
        length = np.sqrt(np.einsum("nd,nd->n", part, part))
        np.divide(part, _divisor(length)[:, None], out=rows[start : start + _PART])

    with ThreadPoolExecutor(num_threads()) as pool:
        list(pool.map(divide, range(0, len(rows), _PART)))
    return torch.from_numpy(rows)


def _divisor(length: np.ndarray) -> np.ndarray:
    if not np.isfinite(length).all():
        raise ValueError("features hold NaN or infinite values: the model they come from has diverged")
    return np.where(length == 0, 1, length)


def _targets(labels: ArrayLike | Tensor, n: int, num_classes: int, multi_label: bool) -> Tensor:
    """Labels as int64[n], of several labels as float64[n, C]."""
    array = labels.detach().cpu() if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
    expected = (n, num_classes) if multi_label else (n,)
    if tuple(array.shape) != expected:
        raise ValueError(f"bank labels must have shape {expected}, got {tuple(array.shape)}")
    if multi_label:
        return array.double()
    if n and not 0 <= int(array.min()) <= int(array.max()) < num_classes:
        raise ValueError(f"bank labels must be in 0..{num_classes - 1}, got {int(array.min())}..{int(array.max())}")
    return array.long()


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
