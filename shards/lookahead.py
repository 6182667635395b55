"""Which shards a loader will read, soonest first: the plan, read ahead by a horizon of samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from shards.storage import Uses

HORIZON = 1 << 19  # samples of the stream looked ahead: minutes of training
STRIDE = 1 << 14  # samples at a time, so that the first answer comes soon


@dataclass
class Use:
    """A stretch of the stream in which a shard is read again and again, without a pause longer than a stride."""

    shard: int
    first: int  # stream index
    last: int


class Lookahead:
    """Shards in the order of their next use within the horizon; those in use stay until that use ends.

    `reads(consumed, ahead)` gives the uses in a stretch of the stream. Each sample is looked at once, so walking the
    stream costs what planning it costs. Memory is by the number of shards. A shard that pauses, as between two epochs,
    has another use later on: meanwhile it may go.
    """

    def __init__(self, reads: Callable[[int, int], Uses], consumed: int, batch: int, horizon: int = HORIZON):
        self._reads, self._horizon = reads, horizon
        self.stride = -(-min(STRIDE, max(horizon // 8, 1)) // batch) * batch
        self._seen = self._consumed = consumed
        self.uses: list[Use] = []  # by their first index
        self._newest: dict[int, Use] = {}

    def advance(self, consumed: int) -> bool:
        """Forget what is read no more and look on by a stride; False once the horizon is reached."""
        self._seen, self._consumed = max(self._seen, consumed), consumed
        self.uses = [use for use in self.uses if use.last >= consumed]
        if self._seen >= consumed + self._horizon:
            return False
        reads = self._reads(self._seen, self.stride)
        self._seen += self.stride
        for shard, first, last in zip(reads.shards.tolist(), reads.first.tolist(), reads.last.tolist(), strict=True):
            self._add(shard, first, last)
        return True

    def _add(self, shard: int, first: int, last: int) -> None:
        newest = self._newest.get(shard)
        if newest is not None and newest.last >= max(first - self.stride, self._consumed):
            newest.last = last
            return
        self._newest[shard] = Use(shard, first, last)
        self.uses.append(self._newest[shard])

    def shards(self) -> list[int]:
        """The shards that will be read, soonest first."""
        return list(dict.fromkeys(use.shard for use in self.uses))


def most_at_once(uses: Sequence[Use], sizes: Sequence[int]) -> int:
    """The most bytes in use at a time: shards of sizes int64[num_shards], each from a use's first to its last."""
    sizes_in_use = np.array([sizes[use.shard] for use in uses], np.int64)
    times = np.array([use.first for use in uses] + [use.last + 1 for use in uses], np.int64)
    changes = np.concatenate([sizes_in_use, -sizes_in_use])
    order = np.lexsort((changes, times))  # at one moment, what ends goes before what begins
    return int(np.cumsum(changes[order]).max(initial=0))


def check_room(limit: int, lookahead: Lookahead, consumed: int, sizes: Sequence[int]) -> None:
    """Refuse a cache limit below what is read at a time within the horizon. ValueError with both numbers."""
    while lookahead.advance(consumed):
        pass
    if (needed := most_at_once(lookahead.uses, sizes)) > limit:
        raise ValueError(
            f"the cache limit is {limit} bytes, but the plan reads from {needed} bytes of shards at a time: raise the "
            "limit, or use order 'windowed' with a smaller window or fewer partitions"
        )
