"""The three orders of an epoch: from an index within the epoch to a position in the split, in constant time.

An order is called with `index` (int64[n], 0..num_samples-1) and `epochs` (int64[n]) and returns the positions
(int64[n]) and how often each of them has come before in that epoch (int64[n]); for the orders here that is never.
Within an epoch each is a bijection of 0..num_samples-1. Memory is by the number of shards, never by the number of
samples.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards.permutation import make_key, permute, subkeys

Ints = NDArray[np.int64]


class Order(Protocol):
    """What a plan asks of an order."""

    num_samples: int

    def __call__(self, index: Ints, epochs: Ints) -> tuple[Ints, Ints]:
        """Positions, and how often each has come before in its epoch."""
        ...


class Selection(Protocol):
    """A part of the stored samples, numbered anew; see subsets.Subset."""

    num_samples: int

    def positions(self, index: Ints) -> Ints:
        """The stored position of each kept sample.

        `index` int64[n] in 0..num_samples-1; int64[n].
        """
        ...

    def shard_sizes(self, shard_starts: Ints) -> Ints:
        """How many samples each shard keeps.

        `shard_starts` int64[shards + 1]; int64[shards].
        """
        ...


class SequentialOrder:
    """As stored: for evaluation."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def __call__(self, index: Ints, epochs: Ints) -> tuple[Ints, Ints]:
        """The index itself."""
        return index, np.zeros_like(index)


class GlobalOrder:
    """One keyed permutation of all samples an epoch."""

    def __init__(self, num_samples: int, key: int) -> None:
        self.num_samples = num_samples
        self.key = key

    def __call__(self, index: Ints, epochs: Ints) -> tuple[Ints, Ints]:
        """The permutation of this epoch, at index."""
        return permute(index, self.num_samples, subkeys(self.key, epochs)), np.zeros_like(index)


@dataclass(frozen=True)
class Layout:
    """How one epoch of a windowed order lies: all in counts of samples along the stream of shuffled shards."""

    shards: Ints  # [num_shards] which shard comes when
    shard_starts: Ints  # [num_shards + 1] where each of them starts in the stream
    partition_starts: Ints  # [partitions + 1]
    window_starts: Ints  # [num_windows + 1]


class WindowedOrder:
    """Shards shuffled; their stream cut into P partitions of equal counts; in each, windows of W shards permuted whole.

    Index i of epoch e is sample e·stride + i of the run and belongs to partition (e·stride + i) mod P, as its row i
    div P: the partitions are read side by side. With P a divisor of the batch and of the batches' starts, batch
    position p always reads partition p mod P, also where batches straddle epochs. Counts differ by one where P does
    not divide the samples. What must be at hand at a time is P windows, about P·W shards over all nodes together.
    """

    def __init__(self, shard_sizes: Ints, key: int, *, window: int, partitions: int, stride: int) -> None:
        self.shard_sizes = shard_sizes
        self.stored_starts = prefix_sums(shard_sizes)
        self.num_samples = int(self.stored_starts[-1])
        self.key, self.window, self.partitions, self.stride = key, window, partitions, stride
        self.layout = lru_cache(maxsize=2)(self._lay)  # two, because batches straddle epochs

    def __call__(self, index: Ints, epochs: Ints) -> tuple[Ints, Ints]:
        """Positions at index, one epoch's layout after the other."""
        positions = np.empty_like(index)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            positions[here] = self._within(index[here], int(epoch))
        return positions, np.zeros_like(index)

    def _within(self, index: Ints, epoch: int) -> Ints:
        layout = self.layout(epoch)
        partition = (epoch * self.stride + index) % self.partitions
        place = layout.partition_starts[partition] + index // self.partitions
        window = locate(layout.window_starts, place)
        start, stop = layout.window_starts[window], layout.window_starts[window + 1]
        keys = subkeys(make_key(self.key, "windows", epoch), window)
        place = start + permute(place - start, stop - start, keys)
        turn = locate(layout.shard_starts, place)
        return self.stored_starts[layout.shards[turn]] + place - layout.shard_starts[turn]

    def _lay(self, epoch: int) -> Layout:
        numbers = np.arange(self.shard_sizes.size)
        shards = np.argsort(subkeys(make_key(self.key, "shards", epoch), numbers), kind="stable")
        shard_starts = prefix_sums(self.shard_sizes[shards])
        first_index = (np.arange(self.partitions) - epoch * self.stride) % self.partitions
        counts = (self.num_samples - first_index + self.partitions - 1) // self.partitions
        partition_starts = prefix_sums(counts)
        return Layout(shards, shard_starts, partition_starts, self._window_starts(shard_starts, partition_starts))

    def _window_starts(self, shard_starts: Ints, partition_starts: Ints) -> Ints:
        """Each partition's start, and every W-th shard's start counted from the shard in which its partition starts."""
        first_shard = locate(shard_starts, np.minimum(partition_starts, self.num_samples - 1))
        starts = shard_starts[:-1]
        nth = np.arange(starts.size) - first_shard[locate(partition_starts, starts)]
        return np.union1d(partition_starts, starts[nth % self.window == 0])


class SubsetOrder:
    """An order over the kept samples, told in stored positions."""

    def __init__(self, inner: Order, subset: Selection) -> None:
        self.inner, self.subset, self.num_samples = inner, subset, inner.num_samples

    def __call__(self, index: Ints, epochs: Ints) -> tuple[Ints, Ints]:
        """The inner order's, mapped."""
        positions, occurrences = self.inner(index, epochs)
        return self.subset.positions(positions), occurrences


def prefix_sums(counts: Ints) -> Ints:
    """[0, c0, c0 + c1, …, total], one longer than counts."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))


def locate(starts: Ints, places: Ints) -> Ints:
    """Which of the intervals [starts[i], starts[i+1]) holds each place; empty intervals hold none."""
    return np.searchsorted(starts, places, side="right") - 1
