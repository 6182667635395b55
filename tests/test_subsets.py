"""Fractions, exclusions and class balance. Run: pytest tests/test_subsets.py"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.balance import BLOCK, BalancedOrder
from shards.permutation import make_key
from shards.plan import ORDERS, Plan, PlanConfig
from shards.shardset import ShardSet
from shards.subsets import Subset, cached, keep_but, keep_fraction

quick = settings(derandomize=True, max_examples=40, deadline=None)
SEEDS = st.integers(0, 10**6)


@quick
@given(st.integers(1, 3000), st.floats(0, 1), st.integers(1, 12), SEEDS)
def test_a_subset_knows_its_positions_and_shards(count: int, density: float, shards: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kept = rng.random(count) < density
    subset = Subset(kept)
    assert subset.num_samples == kept.sum()
    assert np.array_equal(subset.positions(np.arange(subset.num_samples)), np.flatnonzero(kept))
    starts = np.sort(np.concatenate(([0, count], rng.integers(0, count + 1, shards - 1))))
    assert subset.shard_sizes(starts).tolist() == [kept[a:b].sum() for a, b in pairwise(starts)]


@pytest.mark.parametrize("count", [511, 512, 513, 1024])
def test_a_full_subset_is_the_whole(count: int) -> None:
    subset = Subset(np.ones(count, bool))
    assert subset.positions(np.arange(count)).tolist() == list(range(count))
    assert subset.shard_sizes(np.array([0, 64, 512 if count > 512 else 300, count])).sum() == count


@quick
@given(st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(sum), st.sampled_from(ORDERS), SEEDS)
def test_a_plan_over_a_subset_has_each_kept_sample_once(sizes: list[int], order: str, seed: int) -> None:
    kept = np.random.default_rng(seed).random(sum(sizes)) < 0.4
    kept[seed % len(kept)] = True
    config = PlanConfig(8, seed, order=order, window=2, partitions=4)  # type: ignore[arg-type]
    plan = Plan(sizes, config, subset=Subset(kept))
    assert plan.samples_per_epoch == kept.sum()
    positions, epochs, valid = plan.at(np.arange(plan.samples_per_epoch, 3 * plan.samples_per_epoch))
    assert valid.all()
    for epoch in (1, 2):
        assert np.sort(positions[epochs == epoch]).tolist() == np.flatnonzero(kept).tolist()


@quick
@given(st.integers(1, 2000), st.integers(1, 300), st.integers(1, 6), st.floats(0.01, 1), st.floats(0.01, 1), SEEDS)
def test_fractions_are_nested_by_group_and_meet_the_class_sizes(
    count: int, groups: int, classes: int, one: float, other: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2**63, groups).astype(np.uint64)[rng.integers(0, groups, count)]
    class_of_group = {int(g): int(rng.integers(classes)) for g in np.unique(group)}
    label = np.array([class_of_group[int(g)] for g in group])
    small, large = (keep_fraction(part, group, label, seed=seed) for part in sorted((one, other)))
    assert (large | ~small).all()
    for g in np.unique(group):
        assert len(set(small[group == g])) == 1
    for number in np.unique(label):
        biggest = np.unique(group[label == number], return_counts=True)[1].max()
        excess = small[label == number].sum() - min(one, other) * (label == number).sum()
        assert -1e-6 <= excess < biggest
    assert keep_fraction(1.0, group, label, seed=seed).all()


def test_groups_of_several_classes_count_to_the_rarest() -> None:
    group = np.repeat(np.arange(200, dtype=np.uint64), 2)
    label = np.tile([0, 0], 200)
    label[:80:2] = 1  # the first 40 groups have one sample of class 1 each
    kept = keep_fraction(0.25, group, label, seed=0)
    assert kept[:80:2].sum() == 10 and kept.sum() == 100
    assert (keep_fraction(0.25, group, label, seed=1) != kept).any()
    with pytest.raises(ValueError, match=r"fraction is 1\.5: give more than 0 and at most 1"):
        keep_fraction(1.5, group, label, seed=0)


def test_excluded_keys_never_come(tiny_set: Path, tmp_path: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    out = [split.key(position) for position in (3, 17, 59)]
    path = tmp_path / "exclude.txt"
    path.write_text("# blurred\n" + "\n".join(out) + "\n\n")
    plan = Plan(split.shard_sizes, PlanConfig(7, 0), subset=Subset(keep_but(path, split)))
    seen = {split.key(int(position)) for position in plan.at(np.arange(57))[0]}
    assert len(seen) == 57 and not seen & set(out)
    path.write_text("nobody\n")
    with pytest.raises(ValueError, match="excludes nothing: none of its 1 keys is in split 'train'"):
        keep_but(path, split)


def test_the_bits_are_made_once(tmp_path: Path) -> None:
    kept, calls = np.random.default_rng(0).random(1003) < 0.3, []

    def make() -> np.ndarray:
        calls.append(1)
        return kept

    path = tmp_path / "cache" / "digest.bits"
    assert np.array_equal(cached(path, make, 1003), kept) and np.array_equal(cached(path, make, 1003), kept)
    assert len(calls) == 1 and path.stat().st_size == 126


@quick
@given(st.lists(st.integers(0, 150), min_size=1, max_size=6).filter(any), st.integers(0, 60), SEEDS)
def test_balance_deals_every_class_and_every_sample_evenly(counts: list[int], left_out: int, seed: int) -> None:
    classes = np.repeat(np.arange(-1, len(counts)), [left_out, *counts])
    classes = np.random.default_rng(seed).permutation(classes)
    order = BalancedOrder(classes, seed)
    present = [number for number, count in enumerate(counts) if count]
    each = -(-sum(counts) // len(present))
    plan = Plan([len(classes)], PlanConfig(16, seed), order=order)
    assert plan.samples_per_epoch == each * len(present)
    total = np.zeros(len(classes), int)
    for epoch in range(3):
        drawn = plan.draw(epoch * plan.samples_per_epoch + np.arange(plan.samples_per_epoch))
        own = np.bincount(drawn.positions, minlength=len(classes))
        total += own
        assert np.bincount(classes[drawn.positions], minlength=len(counts))[present].tolist() == [each] * len(present)
        appearances = set(zip(drawn.positions.tolist(), drawn.occurrences.tolist(), strict=True))
        assert appearances == {(p, n) for p, times in enumerate(own) for n in range(times)}
        for number in present:
            assert np.ptp(total[classes == number]) <= 1
    assert total[classes == -1].sum() == 0


def test_balance_shuffles_and_resumes() -> None:
    classes = np.repeat([0, 1], [900, 2 * BLOCK])
    plan = Plan([len(classes)], PlanConfig(50, 0), order=BalancedOrder(classes, make_key("x")))
    whole = plan.draw(np.arange(3000))
    assert np.array_equal(plan.slice(2950, 1, 0).positions, whole.positions[2950:])
    batches = classes[whole.positions].reshape(-1, 50).sum(1)
    assert abs(batches.mean() - 25) < 2 and 2 < batches.std() < 5
    with pytest.raises(ValueError, match="no sample has a class"):
        BalancedOrder(np.full(5, -1), 0)
