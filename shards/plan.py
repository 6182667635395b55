"""The plan: which sample comes when, on which rank. A pure function, with no state that a checkpoint must keep.

The run is one endless stream of samples, numbered from 0; the number is "samples consumed", and it is all that a
checkpoint stores. Sample s of the stream lies in epoch s div M at index s mod M, where M depends on the tail of an
epoch:

    carry    M = N                 a batch may straddle two epochs; every epoch has every sample once
    drop     M = ⌊N/B⌋·B           the last, short batch is left out; which samples those are changes by the epoch
    partial  M = ⌈N/B⌉·B           the last batch is filled with a repeated sample, marked invalid (evaluation)

N samples, B the global batch. The order of an epoch is keyed by (seed, digest of the set, epoch) and knows no rank: a
rank takes its places of each global batch, so any number of ranks walks the same order, and may change from one batch
to the next.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.orders import (
    GlobalOrder,
    Ints,
    Order,
    Selection,
    SequentialOrder,
    SubsetOrder,
    WindowedOrder,
    locate,
    prefix_sums,
)
from shards.permutation import make_key

ORDERS = ("global", "windowed", "sequential")
TAILS = ("carry", "drop", "partial")
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class PlanConfig:
    """All that decides the order besides the set itself. A run keeps it to its end, also when its batch changes.

    Raises ValueError where a field is out of range.
    """

    global_batch: int  # samples a step over all ranks, 1..
    seed: int  # any integer
    order: Literal["global", "windowed", "sequential"] = "global"
    tail: Literal["carry", "drop", "partial"] = "carry"
    window: int = 16  # windowed: shards a window, 1..
    partitions: int = 64  # windowed: 1..; lowered to a divisor of global_batch, see Plan.partitions

    def __post_init__(self) -> None:
        for name in ("global_batch", "window", "partitions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        for name, allowed in (("order", ORDERS), ("tail", TAILS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"unknown {name} '{getattr(self, name)}'; known: {', '.join(allowed)}")


class Draw(NamedTuple):
    """What a stretch of the stream holds, one entry a sample."""

    positions: Ints  # 0..num_samples-1, in stored order
    epochs: Ints  # 0..
    occurrences: Ints  # how often the sample has come before in that epoch: 0 unless classes are balanced
    valid: Bools  # False: padding


class Slice(NamedTuple):
    """A rank's part of one global batch, one entry a sample."""

    positions: Ints
    epochs: Ints
    occurrences: Ints
    valid: Bools
    batch_positions: Ints  # 0..global_batch-1, ascending


class Reads(NamedTuple):
    """Shards that a stretch of the stream reads, one entry a shard, in the order of their first use."""

    shards: Ints
    first: Ints  # the stream index at which the shard is first read
    last: Ints  # and last

    def within(self, low: int, high: int) -> "Reads":
        """Those of the shards low..high-1 alone, numbered from 0."""
        here = (self.shards >= low) & (self.shards < high)
        return Reads(self.shards[here] - low, self.first[here], self.last[here])


class Plan:
    """The plan of one split.

    shard_sizes: samples in each shard, in stored order. digest: of the set and split, so that another one has another
    order. subset: the samples to keep; positions stay the stored ones. order: takes the place of config.order (class
    balancing, which leaves samples out by itself). Raises ValueError where no sample is left, or under `drop` fewer
    than a global batch.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int] | Ints,
        config: PlanConfig,
        digest: str = "",
        *,
        subset: Selection | None = None,
        order: Order | None = None,
    ) -> None:
        assert subset is None or order is None
        self.config = config
        self.shard_starts = prefix_sums(_checked_sizes(shard_sizes))
        self.key = make_key(config.seed, digest)
        sizes = subset.shard_sizes(self.shard_starts) if subset else np.diff(self.shard_starts)
        self.num_samples = order.num_samples if order else int(_checked_sizes(sizes).sum())
        self.samples_per_epoch = _samples_per_epoch(self.num_samples, config)
        self.order = order or self._make_order(sizes)
        if subset:
            self.order = SubsetOrder(self.order, subset)

    def _make_order(self, sizes: Ints) -> Order:
        config = self.config
        if config.order == "sequential":
            return SequentialOrder(self.num_samples)
        if config.order == "global":
            return GlobalOrder(self.num_samples, self.key)
        partitions, stride = self.partitions, self.samples_per_epoch
        return WindowedOrder(sizes, self.key, window=config.window, partitions=partitions, stride=stride)

    @property
    def partitions(self) -> int:
        """The partitions in use: the largest divisor of config.global_batch that is not above config.partitions."""
        batch = self.config.global_batch
        return next(p for p in range(min(self.config.partitions, batch), 0, -1) if batch % p == 0)

    def steps(self, epochs: float) -> int:
        """Global batches that cover so many epochs, the last one perhaps in part."""
        return math.ceil(round(epochs * self.samples_per_epoch, 6) / self.config.global_batch)

    def draw(self, stream: Ints) -> Draw:
        """What comes at each stream index (int64[n], 0..), in any order, in constant time each.

        Raises:
            ValueError: an index below 0.
        """
        stream = np.asarray(stream, np.int64)
        if stream.size and stream.min() < 0:
            raise ValueError(f"samples consumed is {stream.min()}: give 0 or more")
        epochs, index = np.divmod(stream, self.samples_per_epoch)
        valid = index < self.num_samples
        positions, occurrences = self.order(np.minimum(index, self.num_samples - 1), epochs)
        return Draw(positions, epochs, occurrences, valid)

    def at(self, stream: Ints) -> tuple[Ints, Ints, Bools]:
        """Positions, epochs and validity of each stream index (int64[n], 0..)."""
        draw = self.draw(stream)
        return draw.positions, draw.epochs, draw.valid

    def slice(self, consumed: int, world: int, rank: int, *, global_batch: int | None = None) -> Slice:
        """The rank's part of the global batch that starts after `consumed` samples.

        global_batch: another batch than the order was laid for, where a run goes on with one: the order goes on, the
        batches are cut anew. Any world is served; where it does not divide the batch, ranks get unequal parts.
        """
        places = rank_places(global_batch or self.config.global_batch, world, rank)
        return Slice(*self.draw(consumed + places), places)

    def reads(
        self,
        consumed: int,
        ahead: int,
        world: int = 1,
        ranks: Sequence[int] = (0,),
        *,
        global_batch: int | None = None,
    ) -> Reads:
        """The shards that these ranks (those of one node) read in the next `ahead` samples of the stream.

        global_batch: of `slice`, where it is another than the order was laid for.
        """
        batch = global_batch or self.config.global_batch
        places = np.sort(np.concatenate([rank_places(batch, world, rank) for rank in ranks]))
        starts = np.arange(consumed, consumed + ahead, batch)
        stream = (starts[:, None] + places).ravel()
        stream = stream[stream < consumed + ahead]
        shards = locate(self.shard_starts, self.draw(stream).positions)
        unique, first = np.unique(shards, return_index=True)
        last = shards.size - 1 - np.unique(shards[::-1], return_index=True)[1]
        by_use = np.argsort(first)
        return Reads(unique[by_use], stream[first[by_use]], stream[last[by_use]])


def rank_places(global_batch: int, world: int, rank: int) -> Ints:
    """The batch positions that a rank takes: unit by unit in turn, int64[n] ascending.

    A unit is the pair (2i, 2i + 1), so that mixing partners stay together, where every rank gets an even number; else a
    single position. Where the ranks divide the partitions a rank therefore keeps to its own partitions.

    Raises:
        ValueError: a rank outside 0..world-1.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} of {world}: give a rank within 0..{world - 1}")
    unit = 2 if global_batch % (2 * world) == 0 else 1
    units = np.arange(rank, global_batch // unit, world)
    return (units[:, None] * unit + np.arange(unit)).ravel()


def check_world(global_batch: int, world: int) -> None:
    """Refuse a number of ranks that does not divide the global batch, naming the nearest that do."""
    if world >= 1 and global_batch % world == 0:
        return
    divisors = [n for n in range(1, global_batch + 1) if global_batch % n == 0]
    nearest = [n for n in divisors if n < world][-1:] + [n for n in divisors if n > world][:1]
    below = global_batch // world * world if world >= 1 else 0
    batches = [batch for batch in (below, below + world) if batch >= 1]
    raise ValueError(
        f"world size {world} does not divide the global batch {global_batch}: use {_either(nearest)} rank"
        + ("s" if nearest != [1] else "")
        + (f", or a global batch of {_either(batches)}" if batches else "")
    )


def _either(numbers: list[int]) -> str:
    return " or ".join(str(number) for number in numbers)


def _checked_sizes(shard_sizes: Sequence[int] | Ints) -> Ints:
    sizes = np.asarray(shard_sizes, np.int64)
    if sizes.ndim != 1 or (sizes < 0).any():
        raise ValueError("shard sizes must be a list of counts, 0 or more")
    if sizes.sum() == 0:
        raise ValueError("the split has no samples: choose another split, or a larger fraction")
    return sizes


def _samples_per_epoch(num_samples: int, config: PlanConfig) -> int:
    batch = config.global_batch
    if config.tail == "carry":
        return num_samples
    if config.tail == "partial":
        return -(-num_samples // batch) * batch
    if num_samples < batch:
        raise ValueError(
            f"tail 'drop' leaves nothing: {num_samples} samples are fewer than the global batch {batch}; "
            "use tail 'carry' or a smaller batch"
        )
    return num_samples // batch * batch
