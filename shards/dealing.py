"""Dealing samples to parts: grouped, stratified, seeded. Groups (patients, lesions, slides) never part.

Groups with the same label counts are alike. Each kind of group is shuffled by the seed and dealt out by the
proportions, rounded down; the few left over go, largest first, where the classes they hold are missing most. So every
class has its share in every part to within a few groups, and a million groups take a second.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np


def deal(labels: np.ndarray, groups: Sequence[str] | np.ndarray, shares: Sequence[float], seed: int) -> np.ndarray:
    """Deal records to parts: int64[n] in 0..len(shares)-1, a whole group to one part.

    `labels` int[n, c] counts (or marks) the classes of each record; `shares` are the parts' proportions, summing to 1.

    Raises:
        ValueError: shares that are not positive proportions, or fewer groups than parts.
    """
    wanted = np.asarray(shares, float)
    if wanted.min() <= 0 or abs(wanted.sum() - 1) > 1e-9:
        raise ValueError(f"proportions {list(shares)} must be above 0 and sum to 1")
    # Group numbers follow the sorted names: the order of the records does not matter.
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < len(wanted):
        raise ValueError(f"{len(names)} groups cannot fill {len(wanted)} splits: a group is never divided")
    content = np.zeros((len(names), labels.shape[1] + 1))
    np.add.at(content, members, np.concatenate([labels, np.ones((len(labels), 1), labels.dtype)], 1))
    return _deal_groups(content, wanted, np.random.default_rng(seed))[members]


def _deal_groups(content: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kinds, kind_of = np.unique(content, axis=0, return_inverse=True)
    order = rng.permutation(len(content))
    order = order[np.argsort(kind_of[order], kind="stable")]
    ends = np.cumsum(np.bincount(kind_of, minlength=len(kinds)))
    part = np.full(len(content), -1)
    left: list[np.ndarray] = []
    for start, end in zip(np.r_[0, ends[:-1]], ends, strict=True):
        quota = np.floor((end - start) * shares + 1e-9).astype(int)
        dealt = start + int(quota.sum())
        part[order[start:dealt]] = np.repeat(np.arange(len(shares)), quota)
        left.append(order[dealt:end])
    rest = np.concatenate(left)
    totals = content.sum(0)
    missing = shares[:, None] * totals
    for index in range(len(shares)):
        missing[index] -= content[part == index].sum(0)
    for group in rest[np.argsort(-content[rest, -1], kind="stable")]:
        need = (missing * (content[group] / np.maximum(totals, 1))).sum(1)
        part[group] = int(np.argmax(need))
        missing[part[group]] -= content[group]
    return _fill_empty(part, content[:, -1], len(shares))


def _fill_empty(part: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray:
    """Give a part that rounding left without any group the smallest group of the part with the most groups."""
    for index in range(count):
        if not (part == index).any():
            richest = np.flatnonzero(part == np.argmax(np.bincount(part, minlength=count)))
            part[richest[np.argmin(sizes[richest])]] = index
    return part


def intersections(groups: Mapping[str, Sequence[str] | Sequence[int] | np.ndarray]) -> dict[str, int]:
    """How many groups each pair of splits shares: {"train-val": 0, …}, the manifest's proof. `groups` [n]: by split."""
    members = {name: np.unique(np.asarray(own)) for name, own in groups.items()}
    return {f"{a}-{b}": len(np.intersect1d(members[a], members[b])) for a, b in combinations(members, 2)}


def one_hot(labels: np.ndarray) -> np.ndarray:
    """Marks of each distinct value of each label column, int64[n, total]: what `deal` balances."""
    marks = [labels[:, [c]] == np.unique(labels[:, c])[None] for c in range(labels.shape[1])]
    return np.concatenate(marks, 1).astype(np.int64)
