"""Class balance: an epoch in which every class comes equally often."""

import numpy as np

from shards.orders import Ints, locate, prefix_sums
from shards.permutation import GOLDEN, Words, make_key, mix, permute, subkeys, unpermute

BLOCK = 256  # samples that share one entry of the directory
QUERIES = 4096  # answered at a time, to bound the scratch memory


class BalancedOrder:
    """Every class that has samples comes m = ⌈N / classes⌉ times an epoch, evenly dealt over its samples.

    A class of n samples has an endless stream of its own: round after round a fresh permutation of the n. An epoch e
    takes the entries e·m .. e·m + m - 1 of each class's stream, and shuffles all classes' together. So over any
    epochs the samples of a class come equally often, give or take one; in one epoch a sample of a class larger than m
    comes at most twice and one of a small class about m / n times.

    classes: int[N], memory-mapped if need be: the class of each stored position, -1 for samples left out. What is
    held besides is a count a class and block of 256. The appearances of a sample in an epoch are numbered 0, 1, …
    (`occurrences`).
    """

    def __init__(self, classes: np.ndarray, key: int) -> None:
        self.classes, self.key = classes, key
        self._starts = _directory(classes)
        sizes = self._starts[:, -1]
        self._present = np.flatnonzero(sizes)
        if not self._present.size:
            raise ValueError("there is nothing to balance: no sample has a class")
        self.sizes = sizes[self._present]
        self.each = -(-int(sizes.sum()) // self.sizes.size)
        self.num_samples = self.each * self.sizes.size

    def __call__(self, index: Ints, epochs: Ints) -> tuple[Ints, Ints]:
        """Positions and occurrences."""
        slot = permute(index, self.num_samples, subkeys(make_key(self.key, "slots"), epochs))
        kind, turn = np.divmod(slot, self.each)
        sizes = self.sizes[kind]
        round_, place = np.divmod(epochs * self.each + turn, sizes)
        first_round, first_place = np.divmod(epochs * self.each, sizes)
        member = permute(place, sizes, self._keys(kind, round_))
        came_first = unpermute(member, sizes, self._keys(kind, first_round)) >= first_place
        occurrences = np.where(round_ > first_round, round_ - first_round - 1 + came_first, 0)
        return self._select(kind, member), occurrences

    def _keys(self, kind: Ints, round_: Ints) -> Words:
        return mix(subkeys(make_key(self.key, "rounds"), kind) + round_.astype(np.uint64) * GOLDEN)

    def _select(self, kind: Ints, member: Ints) -> Ints:
        """The stored position of the member-th sample of each class."""
        positions = np.empty_like(member)
        for start in range(0, member.size, QUERIES):
            part = slice(start, start + QUERIES)
            positions[part] = self._select_few(self._present[kind[part]], member[part])
        return positions

    def _select_few(self, label: Ints, member: Ints) -> Ints:
        block = np.empty_like(member)
        for one in np.unique(label):
            block[label == one] = locate(self._starts[one], member[label == one])
        within = member - self._starts[label, block]
        places = block[:, None] * BLOCK + np.arange(BLOCK)
        codes = np.asarray(self.classes[np.minimum(places, len(self.classes) - 1)])
        found = np.cumsum((codes == label[:, None]) & (places < len(self.classes)), 1)
        return block * BLOCK + (found <= within[:, None]).sum(1)


def _directory(classes: np.ndarray) -> np.ndarray:
    """How many samples of each class lie before each block: int64[classes, blocks + 1], in one pass."""
    most = int(classes.max()) + 1 if len(classes) else 0
    blocks = -(-len(classes) // BLOCK)
    counts = np.zeros((most, blocks), np.int64)
    kept = np.flatnonzero(classes >= 0)
    np.add.at(counts, (classes[kept], kept // BLOCK), 1)
    return np.stack([prefix_sums(row) for row in counts]) if most else np.zeros((0, 1), np.int64)
