"""The plan: exactly once, the same order for every world, resume anywhere. Run: pytest tests/test_plan.py"""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shards import plan_cli
from shards.orders import Ints, SequentialOrder, WindowedOrder
from shards.plan import ORDERS, TAILS, Plan, PlanConfig, check_world, rank_places

quick = settings(derandomize=True, max_examples=40, deadline=None)
WORLDS = st.one_of(st.sampled_from([1, 2, 3, 4, 7, 64]), st.integers(1, 1024))
SHARDS = st.lists(st.integers(0, 40), min_size=1, max_size=25).filter(lambda sizes: sum(sizes) > 0)


@st.composite
def configs(draw: Any, orders: tuple[str, ...] = ORDERS, tails: tuple[str, ...] = TAILS) -> PlanConfig:
    return PlanConfig(
        global_batch=draw(st.integers(1, 48)),
        seed=draw(st.integers(0, 5)),
        order=draw(st.sampled_from(orders)),
        tail=draw(st.sampled_from(tails)),
        window=draw(st.integers(1, 6)),
        partitions=draw(st.integers(1, 80)),
    )


def make_plan(sizes: list[int], config: PlanConfig) -> Plan:
    assume(config.tail != "drop" or sum(sizes) >= config.global_batch)
    return Plan(sizes, config, "digest")


@quick
@given(SHARDS, configs(), WORLDS, st.integers(0, 3))
def test_every_sample_once_an_epoch_on_any_number_of_ranks(
    sizes: list[int], config: PlanConfig, world: int, epoch: int
) -> None:
    plan = make_plan(sizes, config)
    batch, length = config.global_batch, plan.samples_per_epoch
    seen = np.zeros(plan.num_samples, int)
    starts = np.arange(epoch * length // batch * batch, (epoch + 1) * length, batch)
    for rank in range(min(world, batch)):  # further ranks get nothing
        drawn = plan.draw((starts[:, None] + rank_places(batch, world, rank)).ravel())
        np.add.at(seen, drawn.positions[drawn.valid & (drawn.epochs == epoch)], 1)
    if config.tail == "drop":
        assert seen.max() == 1 and seen.sum() == plan.num_samples // batch * batch
    else:
        assert (seen == 1).all()


@quick
@given(SHARDS, configs(), WORLDS, st.integers(0, 10_000))
def test_the_global_batch_does_not_depend_on_the_world(
    sizes: list[int], config: PlanConfig, world: int, step: int
) -> None:
    plan = make_plan(sizes, config)
    consumed = step * config.global_batch
    whole = plan.slice(consumed, 1, 0)
    assert np.array_equal(whole.batch_positions, np.arange(config.global_batch))
    for rank in {0, world // 3, world - 1}:
        own = plan.slice(consumed, world, rank)
        assert np.array_equal(own.batch_positions, rank_places(config.global_batch, world, rank))
        for column, all_ranks in zip(own, whole, strict=True):
            assert np.array_equal(column, all_ranks[own.batch_positions])


@quick
@given(SHARDS, configs(), st.integers(0, 500), st.integers(1, 90))
def test_a_start_in_the_middle_continues_the_order_even_with_another_batch(
    sizes: list[int], config: PlanConfig, consumed: int, batch: int
) -> None:
    run_through = make_plan(sizes, config).draw(np.arange(consumed + batch))
    resumed = Plan(sizes, config, "digest").slice(consumed, 1, 0, global_batch=batch)
    for whole, tail in zip(run_through, resumed[:4], strict=True):
        assert np.array_equal(whole[consumed:], tail)


@quick
@given(SHARDS, configs(orders=("windowed",)), st.integers(0, 20))
def test_a_batch_position_keeps_to_its_partition(sizes: list[int], config: PlanConfig, step: int) -> None:
    """Also under carry, where the samples of an epoch shift the phase; partitions have equal counts."""
    plan = make_plan(sizes, config)
    assert isinstance(plan.order, WindowedOrder)
    assert config.global_batch % plan.partitions == 0 and plan.partitions <= config.partitions
    batch = plan.slice(step * config.global_batch, 1, 0)
    for position, epoch, valid, place in zip(batch.positions, batch.epochs, batch.valid, range(10**6), strict=False):
        layout = plan.order.layout(int(epoch))
        counts = np.diff(layout.partition_starts)
        assert counts.max() - counts.min() <= 1 and counts.sum() == plan.num_samples
        if valid:
            assert place_of(plan, int(position), int(epoch)) in range(*partition(layout, place % plan.partitions))


def partition(layout: Any, number: int) -> tuple[int, int]:
    return int(layout.partition_starts[number]), int(layout.partition_starts[number + 1])


def place_of(plan: Plan, position: int, epoch: int) -> int:
    """Where a stored position lies in the epoch's stream of shuffled shards, by the slow way."""
    assert isinstance(plan.order, WindowedOrder)
    shards = plan.order.layout(epoch).shards
    sizes = np.diff(plan.shard_starts)
    stream = np.concatenate([plan.shard_starts[shard] + np.arange(sizes[shard]) for shard in shards])
    return int(np.flatnonzero(stream == position)[0])


@quick
@given(SHARDS, configs(orders=("windowed",), tails=("carry", "partial")))
def test_a_partition_reads_its_windows_one_after_the_other(sizes: list[int], config: PlanConfig) -> None:
    """At most W whole shards a window, windows in ascending order, all of a window before the next begins."""
    plan = make_plan(sizes, config)
    order = plan.order
    assert isinstance(order, WindowedOrder)
    layout, total = order.layout(0), plan.num_samples
    positions = plan.at(np.arange(total))[0]
    by_position = {position: place for place, position in enumerate(slow_stream(plan, 0))}
    windows = np.searchsorted(layout.window_starts, [by_position[p] for p in positions], side="right") - 1
    for start in range(min(plan.partitions, total)):
        assert (np.diff(windows[start :: plan.partitions]) >= 0).all()
    for start, stop in zip(layout.window_starts[:-1], layout.window_starts[1:], strict=True):
        inner = (layout.shard_starts[:-1] > start) & (layout.shard_starts[:-1] < stop)
        assert np.unique(layout.shard_starts[:-1][inner]).size < config.window


def slow_stream(plan: Plan, epoch: int) -> list[int]:
    assert isinstance(plan.order, WindowedOrder)
    starts, sizes = plan.shard_starts, np.diff(plan.shard_starts)
    return [int(starts[s]) + i for s in plan.order.layout(epoch).shards for i in range(sizes[s])]


@quick
@given(SHARDS, configs(), WORLDS, st.integers(0, 300), st.integers(1, 400))
def test_reads_names_the_shards_of_the_slices(
    sizes: list[int], config: PlanConfig, world: int, consumed: int, ahead: int
) -> None:
    plan = make_plan(sizes, config)
    batch, world = config.global_batch, min(world, config.global_batch)
    ranks = range(world // 2, world)
    reads = plan.reads(consumed, ahead, world, ranks)
    own = {int(place) for rank in ranks for place in rank_places(batch, world, rank)}
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    positions = plan.at(consumed + np.arange(ahead))[0]
    for offset, position in enumerate(positions):
        if offset % batch in own:
            shard = int(np.flatnonzero(plan.shard_starts[1:] > position)[0])
            first.setdefault(shard, consumed + offset)
            last[shard] = consumed + offset
    assert reads.shards.tolist() == sorted(first, key=lambda shard: first[shard])
    assert reads.first.tolist() == [first[s] for s in reads.shards]
    assert reads.last.tolist() == [last[s] for s in reads.shards]


@quick
@given(st.integers(1, 2048), WORLDS)
def test_pairs_stay_together_where_ranks_get_even_numbers(batch: int, world: int) -> None:
    places = [rank_places(batch, world, rank) for rank in range(world)]
    assert np.array_equal(np.sort(np.concatenate(places)), np.arange(batch))
    if batch % (2 * world) == 0:
        for own in places:
            assert (own[::2] % 2 == 0).all() and np.array_equal(own[::2] + 1, own[1::2])
            assert np.array_equal(own, [(j // 2 * world + own[0] // 2) * 2 + j % 2 for j in range(len(own))])


def test_a_node_that_divides_the_partitions_reads_whole_partitions() -> None:
    partitions = Plan([50] * 64, PlanConfig(128, 0, order="windowed", partitions=64)).partitions
    for batch in (64, 128):
        ranks = [{int(place) % partitions for place in rank_places(batch, 16, rank)} for rank in range(16)]
        assert sorted(p for own in ranks for p in own) == list(range(64))


def test_seed_digest_and_epoch_each_change_the_order() -> None:
    def first(seed: int = 0, digest: str = "a", epoch: int = 0, order: str = "global") -> tuple[int, ...]:
        plan = Plan([100] * 10, PlanConfig(10, seed, order=order, window=2, partitions=5), digest)  # type: ignore[arg-type]
        return tuple(plan.at(epoch * 1000 + np.arange(10))[0].tolist())

    for order in ("global", "windowed"):
        orders = {
            first(order=order),
            first(1, order=order),
            first(digest="b", order=order),
            first(epoch=1, order=order),
        }
        assert len(orders) == 4
    assert first(order="sequential") == first(1, "b", 1, "sequential") == tuple(range(10))


def test_drop_leaves_out_other_samples_each_epoch() -> None:
    for order in ("global", "windowed"):
        plan = Plan([107], PlanConfig(20, 0, order=order, tail="drop", partitions=4))  # type: ignore[arg-type]
        seen = [set(plan.at(np.arange(100) + 100 * epoch)[0].tolist()) for epoch in range(8)]
        assert all(len(epoch) == 100 for epoch in seen)
        assert len({frozenset(set(range(107)) - epoch) for epoch in seen}) == 8


def test_partial_pads_with_a_repeated_sample() -> None:
    plan = Plan([3, 4], PlanConfig(5, 0, order="sequential", tail="partial"))
    assert plan.samples_per_epoch == 10 and plan.steps(1) == 2
    positions, epochs, valid = plan.at(np.arange(10))
    assert positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6]
    assert valid.tolist() == [True] * 7 + [False] * 3 and not epochs.any()


def test_steps() -> None:
    assert Plan([100], PlanConfig(30, 0)).steps(1) == 4  # the fourth batch straddles
    assert Plan([100], PlanConfig(30, 0)).steps(3) == 10
    assert Plan([100], PlanConfig(30, 0, tail="drop")).steps(2) == 6
    assert Plan([100], PlanConfig(10, 0)).steps(0.1) == 1


def test_a_thousand_million_samples_in_little_memory() -> None:
    sizes = np.full(100_000, 10_000)
    for order in ORDERS:
        tracemalloc.start()
        plan = Plan(sizes, PlanConfig(1024, 0, order=order), "big")  # type: ignore[arg-type]
        own = plan.slice(7 * 10**11 + 512, 64, 63)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6, f"{order}: {peak / 1e6:.0f} MB"
        assert len(own.positions) == 16 and own.positions.max() < 10**9 and set(own.epochs.tolist()) == {700}


@pytest.mark.parametrize(
    ("batch", "world", "text"),
    [
        (64, 5, "world size 5 does not divide the global batch 64: use 4 or 8 ranks, or a global batch of 60 or 65"),
        (64, 100, "world size 100 does not divide the global batch 64: use 64 ranks, or a global batch of 100"),
        (64, 0, "world size 0 does not divide the global batch 64: use 1 rank"),
    ],
)
def test_a_world_that_does_not_divide_is_refused_with_the_nearest(batch: int, world: int, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_world(batch, world)
    assert str(caught.value) == text
    for good in (1, 2, 4, 8, 16, 32, 64):
        check_world(64, good)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: PlanConfig(0, 0), "global_batch is 0: give 1 or more"),
        (lambda: PlanConfig(8, 0, order="shuffled"), "unknown order 'shuffled'; known: global, windowed, sequential"),
        (lambda: Plan([0, 0], PlanConfig(8, 0)), "the split has no samples"),
        (lambda: Plan([2, 3], PlanConfig(8, 0, tail="drop")), "5 samples are fewer than the global batch 8"),
        (lambda: Plan([9], PlanConfig(8, 0)).slice(0, 4, 4), "rank 4 of 4: give a rank within 0..3"),
        (lambda: Plan([9], PlanConfig(8, 0)).slice(-8, 4, 0), "samples consumed is -8: give 0 or more"),
    ],
)
def test_mistakes_get_one_clear_line(call: Any, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        call()
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_the_command_shows_and_proves(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """60 samples in 4 shards."""
    options = [str(tiny_set), "--world", "4", "--epoch", "2", "--step", "1", "--global-batch", "8", "--prove"]
    for extra in ([], ["--order", "windowed", "--window", "2"], ["--tail", "drop"], ["--tail", "partial"]):
        assert plan_cli.main([*options, *extra]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("60 samples in 4 shards")
        assert [line.split(":")[0] for line in lines[2:6]] == [f"rank {rank}" for rank in range(4)]
        assert lines[2].startswith("rank 0: 2 samples of epoch 2 from ")
        assert lines[-1].startswith("proved: in epoch 2 the 4 ranks read " + ("56" if "drop" in extra else "60"))
    with pytest.raises(ValueError, match="use 2 or 4 ranks"):
        plan_cli.main([str(tiny_set), "--world", "3", "--global-batch", "8"])


def test_the_command_as_json_says_what_the_plan_says(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--world", "2", "--epoch", "1", "--step", "3", "--global-batch", "8", "--tail", "partial", "--json"]
    assert plan_cli.main([str(tiny_set), *options]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["step"], told["consumed"]) == (60, 11, 88)
    plan = Plan([60], PlanConfig(8, 0, tail="partial"), "")
    assert [len(rank) for rank in told["ranks"]] == [plan.slice(88, 2, rank).valid.size for rank in range(2)]
    assert len({place for rank in told["ranks"] for place in rank}) == 8
    assert told["proof"] == {
        "epoch": 1, "world": 2, "read": 60, "missing": 0, "allowed": 0, "repeated": 0, "holds": True,
    }  # fmt: skip


def test_the_proof_sees_a_broken_plan() -> None:
    class Twice(SequentialOrder):
        def __call__(self, index: Ints, epochs: Ints) -> tuple[Ints, Ints]:
            return index // 2, np.zeros_like(index)

    plan = Plan([10], PlanConfig(4, 0), order=Twice(10))
    proof = plan_cli.prove(plan, 2, 0)
    assert not proof.holds
    assert str(proof) == "NOT exactly once: 5 samples missing (0 expected), 5 more than once"


def test_the_order_never_changes() -> None:
    """Golden values: a release that changes them breaks the resume of every running training."""
    for order, positions in GOLDEN.items():
        plan = Plan([30, 50, 20], PlanConfig(8, 17, order=order, window=1, partitions=4), "golden")  # type: ignore[arg-type]
        assert plan.slice(96, 2, 1).positions.tolist() == positions


GOLDEN = {"global": [62, 83, 26, 4], "windowed": [1, 16, 90, 24], "sequential": [98, 99, 2, 3]}


def test_the_command_shows_the_trainers_own_plan(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from shards.loader import Loader
    from shards.shardset import ShardSet
    from shards.transforms import eval_transform

    split = ShardSet(tiny_set).split("train")
    loader = Loader(split, eval_transform(32, [0.5] * 3, [0.5] * 3), global_batch=8, seed=4)
    shards = np.unique(split.locate(loader.plan.slice(16, 1, 0).positions)[0])
    assert plan_cli.main([str(tiny_set), "--global-batch", "8", "--seed", "4", "--step", "2"]) == 0
    assert f"({', '.join(map(str, shards))})" in capsys.readouterr().out


def test_the_command_proves_a_fraction(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_cli.main([str(tiny_set), "--global-batch", "8", "--fraction", "0.5", "--prove"]) == 0
    assert "exactly once" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--balance repeats the rare"):
        plan_cli.main([str(tiny_set), "--balance", "classes", "--prove"])
