"""Which shards a loader will read, soonest first: the plan, read ahead by a horizon of samples."""

from collections.abc import Callable, Sequence

import numpy as np

from shards.storage import Uses

HORIZON = 1 << 19  # samples of the stream looked ahead: minutes of training
STRIDE = 1 << 14  # samples at a time, so that the first answer comes soon


class Lookahead:
    """Shards in the order of their first use within the horizon; those in use stay until their last known use.

    `reads(consumed, ahead)` gives the uses in a stretch of the stream. Each sample is looked at once, so walking the
    stream costs what planning it costs. Memory is by the number of shards.
    """

    def __init__(self, reads: Callable[[int, int], Uses], consumed: int, batch: int, horizon: int = HORIZON):
        self._reads, self._horizon = reads, horizon
        self.stride = -(-min(STRIDE, max(horizon // 8, 1)) // batch) * batch
        self._seen = consumed
        self._last: dict[int, int] = {}  # in the order of first use

    def advance(self, consumed: int) -> bool:
        """Forget what is read no more and look on by a stride; False once the horizon is reached."""
        self._seen = max(self._seen, consumed)
        self._last = {shard: last for shard, last in self._last.items() if last >= consumed}
        if self._seen >= consumed + self._horizon:
            return False
        uses = self._reads(self._seen, self.stride)
        self._seen += self.stride
        for shard, last in zip(uses.shards.tolist(), uses.last.tolist(), strict=True):
            self._last[shard] = last
        return True

    def shards(self) -> list[int]:
        """The shards that will be read, soonest first."""
        return list(self._last)


def most_at_once(uses: Uses, sizes: np.ndarray) -> int:
    """The most bytes in use at a time: shards of sizes int64[num_shards], each from its first use to its last."""
    sizes = np.asarray(sizes, np.int64)[uses.shards]
    times = np.concatenate([uses.first, np.asarray(uses.last) + 1])
    changes = np.concatenate([sizes, -sizes])
    order = np.lexsort((changes, times))  # at one moment, what ends goes before what begins
    return int(np.cumsum(changes[order]).max(initial=0))


def check_room(limit: int | None, uses: Uses, sizes: Sequence[int]) -> None:
    """Refuse a cache limit below what is read at a time. ValueError with both numbers."""
    needed = most_at_once(uses, np.array(sizes, np.int64))
    if limit is not None and needed > limit:
        raise ValueError(
            f"the cache limit is {limit} bytes, but the plan reads from {needed} bytes of shards at a time: raise the "
            "limit, or use order 'windowed' with a smaller window or fewer partitions"
        )
