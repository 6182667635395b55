"""Mixtures of sets. Run: pytest tests/test_mixture.py"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.mixture import Mixture, whole_shares
from shards.plan import Plan, PlanConfig

quick = settings(derandomize=True, max_examples=15, deadline=None)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    config = PlanConfig(
        draw(st.integers(1, 32)),
        draw(st.integers(0, 9)),
        order=draw(st.sampled_from(["global", "windowed"])),
        window=2,
        partitions=draw(st.integers(1, 16)),
    )
    sizes = st.lists(st.integers(1, 30), min_size=1, max_size=6)
    sets = draw(st.lists(st.tuples(sizes, st.integers(1, 9)), min_size=1, max_size=4))
    plans = [Plan(own, config, f"set {number}") for number, (own, _) in enumerate(sets)]
    return Mixture(plans, [weight for _, weight in sets])


@quick
@given(mixtures())
def test_shares_are_exact_and_every_set_goes_through_its_samples_once_an_epoch(mixture: Mixture) -> None:
    """Shares in every block; and over so many blocks as hold two epochs of every set, the set's own exactly-once."""
    lanes = mixture.partitions if mixture.config.order == "windowed" else 1
    block = int(mixture.shares.sum()) * lanes
    blocks = max(
        math.ceil(2 * plan.num_samples / (share * lanes))
        for plan, share in zip(mixture.plans, mixture.shares, strict=True)
    )
    stream = np.arange(blocks * block)
    drawn, (source, own) = mixture.draw(stream), mixture.deal(stream)
    for number, (plan, share) in enumerate(zip(mixture.plans, mixture.shares, strict=True)):
        here = source == number
        assert (here.reshape(blocks, block).sum(1) == share * lanes).all()
        assert np.array_equal(np.sort(own[here]), np.arange(here.sum()))
        first = sum(other.num_samples for other in mixture.plans[:number])
        for epoch in (0, 1):
            mine = drawn.positions[here & (drawn.epochs == epoch)] - first
            assert np.array_equal(np.sort(mine), np.arange(plan.num_samples))
    assert drawn.valid.all() and not drawn.occurrences.any()


@quick
@given(mixtures(), st.integers(0, 1000), st.sampled_from([1, 2, 3, 7, 64, 1024]))
def test_any_start_and_any_world_see_the_same_stream(mixture: Mixture, step: int, world: int) -> None:
    batch = mixture.config.global_batch
    whole = mixture.draw(step * batch + np.arange(batch))
    for rank in {0, world // 2, world - 1}:
        own = mixture.slice(step * batch, world, rank)
        for column, all_ranks in zip(own[:4], whole, strict=True):
            assert np.array_equal(column, all_ranks[own.batch_positions])


@quick
@given(mixtures(), st.integers(0, 1000))
def test_partitions_stay_at_their_batch_positions(mixture: Mixture, step: int) -> None:
    stream = step * mixture.config.global_batch + np.arange(mixture.config.global_batch)
    _, own = mixture.deal(stream)
    if mixture.config.order == "windowed":
        assert np.array_equal(own % mixture.partitions, np.arange(len(stream)) % mixture.partitions)


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ([0.7, 0.3], [7, 3]),
        ([2, 2], [1, 1]),
        ([5], [1]),
        ([1, 1, 1], [1, 1, 1]),
        ([0.0002, 0.9998], [1, 4999]),
        ([math.pi, math.e, 1], [4580, 3963, 1458]),
    ],
)
def test_whole_shares(weights: list[float], shares: list[int]) -> None:
    assert whole_shares(weights).tolist() == shares


def test_mistakes_get_one_clear_line() -> None:
    plan = Plan([10], PlanConfig(4, 0))
    with pytest.raises(ValueError, match=r"weights \[1, -1\] must be positive numbers"):
        Mixture([plan, plan], [1, -1])
    with pytest.raises(ValueError, match="below 1/10000 of the whole"):
        Mixture([plan, plan], [1, 1e-9])
    with pytest.raises(ValueError, match="1 sets but 2 weights"):
        Mixture([plan], [1, 1])
    with pytest.raises(ValueError, match="one configuration with the tail 'carry'"):
        Mixture([plan, Plan([10], PlanConfig(8, 0))], [1, 1])
    with pytest.raises(ValueError, match="samples consumed is -4"):
        Mixture([plan], [1]).slice(-4, 1, 0)
