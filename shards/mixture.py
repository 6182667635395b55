"""Mixtures: one stream out of several sets with equal classes, in exact shares."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from shards.orders import Ints, prefix_sums
from shards.permutation import make_key, permute, subkeys
from shards.plan import Draw, Plan

SHARES = 10_000  # the most parts that weights are cut into


class Mixture(Plan):
    """A plan that deals its stream among the plans of several sets; positions are those of the sets put end to end.

    The stream is cut into the lanes of the partitions (one lane where the order has none), a lane into blocks of D;
    of every block exactly w_k entries go to set k, w_k / D being its weight, at places permuted anew for each block.
    A set's own stream has the same lanes, so its partitions stay at their batch positions. Each set goes through
    epochs of its own, every one exactly once through its samples; `epochs` tells the set's. The mixture's epoch, for
    schedules, is the sum of the sets' samples. Raises ValueError for weights that are not positive, or plans that are
    not alike or not `carry`.
    """

    def __init__(self, plans: Sequence[Plan], weights: Sequence[float], digest: str = "") -> None:
        self.plans = tuple(plans)
        self.shares = whole_shares(weights)
        if len(self.plans) != len(self.shares):
            raise ValueError(f"{len(self.plans)} sets but {len(self.shares)} weights: give one weight a set")
        config = self.plans[0].config
        if config.tail != "carry" or any(plan.config != config for plan in self.plans):
            raise ValueError("a mixture needs plans of one configuration with the tail 'carry'")
        self.config = config
        self.key = make_key(config.seed, "mixture", digest)
        self.shard_starts = prefix_sums(np.concatenate([np.diff(plan.shard_starts) for plan in self.plans]))
        self.num_samples = self.samples_per_epoch = sum(plan.num_samples for plan in self.plans)
        self._set_starts = prefix_sums(np.array([plan.shard_starts[-1] for plan in self.plans]))

    def draw(self, stream: Ints) -> Draw:
        """What comes at each stream index, as `Plan.draw`."""
        source, own = self.deal(np.asarray(stream, np.int64))
        positions, epochs, occurrences = np.zeros((3, source.size), np.int64)
        out = Draw(positions, epochs, occurrences, np.zeros(source.size, np.bool_))
        for number, plan in enumerate(self.plans):
            here = source == number
            for column, values in zip(out, plan.draw(own[here]), strict=True):
                column[here] = values
        positions += self._set_starts[source]
        return out

    def deal(self, stream: Ints) -> tuple[Ints, Ints]:
        """Which set each stream index goes to, and the index in that set's own stream: a bijection.

        All int64[n].

        Raises:
            ValueError: a stream index below 0.
        """
        if stream.size and stream.min() < 0:
            raise ValueError(f"samples consumed is {stream.min()}: give 0 or more")
        lanes = self.partitions if self.config.order == "windowed" else 1
        starts = prefix_sums(self.shares)
        row, lane = np.divmod(stream, lanes)
        block, slot = np.divmod(row, starts[-1])
        slot = permute(slot, int(starts[-1]), subkeys(self.key, block * lanes + lane))
        source = np.searchsorted(starts, slot, side="right") - 1
        return source, (block * self.shares[source] + slot - starts[source]) * lanes + lane


def whole_shares(weights: Sequence[float]) -> Ints:
    """The weights as whole numbers: the smallest in their ratio, or parts of 10,000. [.7, .3] becomes [7, 3].

    Returns int64[n].

    Raises:
        ValueError: weights that are not positive numbers, or one too small to count.
    """
    values = np.asarray(weights, np.float64)
    if not values.size or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"weights {list(weights)} must be positive numbers")
    values = values / values.sum()
    parts = [Fraction(value).limit_denominator(SHARES) for value in values.tolist()]
    common = math.lcm(*(part.denominator for part in parts))
    shares = np.array([int(part * common) for part in parts]) if common <= SHARES else np.rint(values * SHARES)
    if (shares == 0).any():
        raise ValueError(f"weights {list(weights)}: the smallest is below 1/{SHARES} of the whole; leave that set out")
    return shares.astype(np.int64)
