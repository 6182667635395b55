"""The plan, read ahead: which shards come next, and how many bytes at a time. pytest tests/test_lookahead.py"""

import pytest

from shards.lookahead import Lookahead, Use, check_room, most_at_once
from shards.orders import locate
from shards.plan import Plan, PlanConfig

SIZES = [7, 23, 11, 19, 13, 17]


def plan_of(order: str, **options: int) -> Plan:
    return Plan(SIZES, PlanConfig(global_batch=6, seed=3, order=order, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("order", ["sequential", "windowed", "global"])
@pytest.mark.parametrize(("world", "rank"), [(1, 0), (3, 1)])
def test_every_read_is_announced_before_it_comes(order: str, world: int, rank: int) -> None:
    plan = plan_of(order, window=2, partitions=2) if order == "windowed" else plan_of(order)
    lookahead = Lookahead(lambda start, ahead: plan.reads(start, ahead, world, (rank,)), 12, 6, horizon=48)
    for consumed in range(12, 12 + 6 * 60, 6):
        while lookahead.advance(consumed):
            pass
        announced = lookahead.shards()
        soon = plan.slice(consumed, world, rank).positions
        assert set(locate(plan.shard_starts, soon).tolist()) <= set(announced)
        uses = plan.reads(consumed, 48, world, (rank,))
        assert set(uses.shards.tolist()) <= set(announced)  # all of the horizon is known
        assert len(set(announced)) == len(announced)


def test_soonest_first_and_forgotten_after_the_last_use() -> None:
    plan = plan_of("sequential")
    lookahead = Lookahead(lambda start, ahead: plan.reads(start, ahead), 0, 6, horizon=45)
    while lookahead.advance(0):
        pass
    assert lookahead.shards() == [0, 1, 2, 3]
    while lookahead.advance(30):  # shards 0 (samples 0..6) and 1 (7..29) are done
        pass
    assert lookahead.shards() == [2, 3, 4, 5]  # looked on to sample 77


def test_a_shard_that_pauses_may_go_meanwhile() -> None:
    plan = plan_of("sequential")
    lookahead = Lookahead(lambda start, ahead: plan.reads(start, ahead), 30, 6, horizon=90)
    while lookahead.advance(30):  # an epoch from the third shard on: the first two come again at its end
        pass
    assert lookahead.shards() == [2, 3, 4, 5, 0, 1]
    while lookahead.advance(48):
        pass
    assert lookahead.shards() == [3, 4, 5, 0, 1, 2]


def test_most_at_once_counts_from_first_use_to_last() -> None:
    assert most_at_once([Use(2, 0, 9), Use(0, 5, 20), Use(1, 10, 12)], [1, 10, 100]) == 101
    assert most_at_once([Use(0, 0, 4), Use(1, 5, 9)], [3, 4]) == 4
    assert most_at_once([], []) == 0


@pytest.mark.parametrize("consumed", [0, 42])
def test_a_window_needs_its_shards_and_a_permutation_all(consumed: int) -> None:
    def needed(plan: Plan) -> int:
        lookahead = Lookahead(lambda start, ahead: plan.reads(start, ahead), consumed, 6, horizon=90)
        while lookahead.advance(consumed):
            pass
        return most_at_once(lookahead.uses, [100] * 6)

    assert needed(plan_of("global")) >= 500  # a small shard may pause for a while
    assert needed(plan_of("sequential")) == 100
    assert needed(plan_of("windowed", window=2, partitions=1)) == 200


def test_too_small_a_limit_is_refused_with_both_numbers() -> None:
    plan = plan_of("windowed", window=2, partitions=1)

    def check(limit: int) -> None:
        check_room(limit, Lookahead(lambda start, ahead: plan.reads(start, ahead), 0, 6, horizon=90), 0, [100] * 6)

    check(200)
    with pytest.raises(ValueError, match="the cache limit is 199 bytes, but the plan reads from 200 bytes of shards"):
        check(199)
