"""What a run takes of its training sets: fractions, exclusions, balance, mixtures, and batches cut anew."""

from collections import Counter
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.choosing import Choice, plan_of, strata
from shards.joined import JoinedSplit
from shards.loader import Loader
from shards.mixture import Mixture
from shards.plan import Plan, PlanConfig, rank_places
from shards.shardset import ShardSet, Split
from shards.transforms import eval_transform

MakeSet = Callable[..., ShardSet]


def ids(split: Split | JoinedSplit, plan: Plan, steps: int, consumed: int = 0, batch: int = 8, world: int = 1) -> list:
    """Sample ids of each global batch, in order of batch positions, put together from all ranks."""
    mean, std = split.manifest.mean, split.manifest.std
    parts = []
    for rank in range(world):
        loader = Loader(
            split, eval_transform(32, mean, std), global_batch=batch, plan=plan, rank=rank, world=world,
            samples_consumed=consumed,
        )  # fmt: skip
        parts.append([found.sample_ids.tolist() for found in islice(loader, steps)])
        loader.close()
    return [sorted(chain.from_iterable(part[step] for part in parts)) for step in range(steps)]


def test_a_fraction_is_nested_and_kept_in_the_cache(tiny_set: Path, tmp_path: Path) -> None:
    split, config = ShardSet(tiny_set).split("train"), PlanConfig(8, 0)
    half, fifth = (Choice(part, cache=tmp_path).plan(split, config) for part in (0.5, 0.2))
    kept = [set(plan.at(np.arange(plan.num_samples))[0].tolist()) for plan in (fifth, half)]
    assert kept[0] < kept[1] and half.num_samples < split.num_samples
    assert len(list(tmp_path.rglob("*.bits"))) == 2
    again = Choice(0.5, cache=tmp_path).plan(split, config)
    assert set(again.at(np.arange(again.num_samples))[0].tolist()) == kept[1]
    other = Choice(0.5, fraction_seed=1).plan(split, config)
    assert set(other.at(np.arange(other.num_samples))[0].tolist()) != kept[1]


def test_excluded_keys_never_come(tiny_set: Path, tmp_path: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    listed = tmp_path / "out.txt"
    listed.write_text("# damaged\n" + "\n".join(split.key(i) for i in (0, 3, 5)))
    plan = Choice(exclude=listed).plan(split, PlanConfig(8, 0))
    assert set(range(split.num_samples)) - set(plan.at(np.arange(plan.num_samples))[0].tolist()) == {0, 3, 5}


def test_balanced_batches_hold_every_class_alike_with_a_fraction_too(make_set: MakeSet, tmp_path: Path) -> None:
    split = make_set(tmp_path / "set", train=60, classes=3).split("train")
    plan = Choice(0.8, balance="classes").plan(split, PlanConfig(8, 0))
    positions = plan.draw(np.arange(plan.num_samples)).positions
    assert len(set(Counter(split.labels(positions).tolist()).values())) == 1
    assert set(positions.tolist()) < set(range(60))


def test_balance_passes_over_the_index_once(make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_set(tmp_path / "set", train=90, classes=3).split("train")
    config, choice = PlanConfig(9, 0), Choice(0.5, balance="classes", cache=tmp_path)
    stream = np.arange(200)
    wanted = Choice(0.5, balance="classes").plan(split, config).at(stream)[0]
    assert np.array_equal(choice.plan(split, config).at(stream)[0], wanted)
    (kept,) = tmp_path.rglob("*.classes")
    assert kept.stat().st_size == 2 * split.num_samples
    monkeypatch.setattr(Split, "labels", lambda *_: pytest.fail("the index is read again"))
    assert np.array_equal(choice.plan(split, config).at(stream)[0], wanted)
    kept.write_bytes(b"half")
    with pytest.raises(pytest.fail.Exception, match="read again"):  # a file of another size is made anew
        choice.plan(split, config)


class Stored:
    """What a choice reads of a split, without files: the plan knows samples by position alone."""

    def __init__(self, sizes: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.shard_sizes, self.num_samples, self.digest, self.name = np.array(sizes), sum(sizes), f"d{seed}", "train"
        self._labels = rng.integers(0, 3, self.num_samples)
        self._groups = rng.integers(0, max(self.num_samples // 3, 1), self.num_samples).astype(np.uint64)
        self.manifest = type("M", (), {"task": "single-label", "name": "stored"})

    def labels(self) -> np.ndarray:
        return self._labels

    def groups(self) -> np.ndarray:
        return self._groups


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """A plan of any order with any choice, or a mixture of two such."""
    batch, seed = draw(st.integers(1, 1024)), draw(st.integers(0, 99))
    config = PlanConfig(
        batch, seed, draw(st.sampled_from(["global", "windowed", "sequential"])), "carry",
        draw(st.integers(1, 5)), draw(st.integers(1, 80)),
    )  # fmt: skip
    parts = []
    for number in range(draw(st.integers(1, 2))):
        sizes = draw(st.lists(st.integers(3, 90), min_size=1, max_size=9))
        choice = Choice(draw(st.sampled_from([0.3, 0.8, 1.0])), 0, None, draw(st.sampled_from(["none", "classes"])))
        parts.append(choice.plan(Stored(sizes, seed + number), config))  # type: ignore[arg-type]
    return parts[0] if len(parts) == 1 else Mixture(parts, [0.7, 0.3], "both")


@settings(derandomize=True, max_examples=40, deadline=None)
@given(plans(), st.integers(1, 1024), st.integers(1, 1024), st.integers(0, 5000), st.integers(1, 1024))
def test_worlds_resumes_and_batches_change_and_the_stream_goes_on(
    plan: Plan, world: int, later: int, consumed: int, batch: int
) -> None:
    """Fractions, balance, mixtures: a stretch by one world, then by another with another batch, is the stream."""
    first = plan.config.global_batch
    wanted = plan.draw(np.arange(consumed, consumed + first + batch))
    for start, size, ranks in ((0, first, world), (first, batch, later)):
        places = [rank_places(size, ranks, rank) for rank in range(ranks)]
        assert np.array_equal(np.sort(np.concatenate(places)), np.arange(size))
        for rank in {0, ranks // 2, ranks - 1}:
            own = plan.slice(consumed + start, ranks, rank, global_batch=size)
            assert np.array_equal(own.batch_positions, places[rank])
            for name in ("positions", "epochs", "occurrences"):
                assert np.array_equal(getattr(own, name), getattr(wanted, name)[start + own.batch_positions])


def test_a_mixture_keeps_its_shares_on_any_ranks_and_batches(make_set: MakeSet, tmp_path: Path) -> None:
    sets = [make_set(tmp_path / str(seed), train=40, seed=seed, name=f"set{seed}") for seed in (0, 1)]
    split = JoinedSplit([each.split("train") for each in sets])
    plan = plan_of(split, PlanConfig(8, 3), Choice(0.5), [0.75, 0.25])
    whole = ids(split, plan, 6)
    first = set(split.splits[0].sample_ids().view(np.int64).tolist())
    assert [sum(one in first for one in batch) for batch in whole] == [6] * 6
    assert ids(split, plan, 6, world=4) == whole
    assert ids(split, plan, 3, consumed=24, world=2) == whole[3:]
    # cut anew: batches of 16 from a plan that was laid for 8 go on with the same order
    wide = ids(split, plan, 2, consumed=16, batch=16, world=2)
    assert wide == [sorted(whole[2] + whole[3]), sorted(whole[4] + whole[5])]


def test_a_joined_split_answers_as_its_parts(make_set: MakeSet, tmp_path: Path) -> None:
    sets = [make_set(tmp_path / str(seed), train=20, seed=seed, name=f"set{seed}") for seed in (0, 1)]
    parts = [each.split("train") for each in sets]
    split, positions = JoinedSplit(parts), np.array([25, 3, 39, 0, 20])
    rows = split.rows(positions)
    for i, position in enumerate(positions.tolist()):
        part, own = parts[position // 20], position % 20
        assert split.key(position) == part.key(own) and bytes(split.read(position)) == bytes(part.read(own))
        assert rows.sample_ids[i] == part.sample_ids(np.array([own]))[0]
        assert split.labels(positions)[i] == part.labels(np.array([own]))[0]
    assert rows.shards.max() == len(parts[0].shards) + len(parts[1].shards) - 1


def test_windowed_batches_cut_anew_hold_the_same_stream(make_set: MakeSet, tmp_path: Path) -> None:
    split = make_set(tmp_path / "set", train=64, classes=4).split("train")
    plan = Choice().plan(split, PlanConfig(8, 1, "windowed", window=2, partitions=4))
    narrow, wide = ids(split, plan, 8), ids(split, plan, 2, batch=32, world=4)
    assert wide == [sorted(chain(*narrow[:4])), sorted(chain(*narrow[4:]))]
    assert sorted(chain(*wide)) == sorted(split.sample_ids().view(np.int64).tolist())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda split, other: Choice(0), "more than 0 and at most 1"),
        (lambda split, other: Choice(balance="lesions"), "known: none, classes"),
        (lambda split, other: Choice(exclude=Path("none.txt")), "no file none.txt of excluded keys"),
        (lambda split, other: JoinedSplit([split, other]), "cannot be mixed: channels 3 and 1 differ"),
        (lambda split, other: Loader(split, eval_transform(32, [0.5] * 3, [0.5] * 3), global_batch=8,
                                     plan=Plan([3], PlanConfig(8, 0))), "the plan is of 3 stored samples"),
        (lambda split, other: Loader(split, eval_transform(32, [0.5] * 3, [0.5] * 3), global_batch=4,
                                     plan=Plan(split.shard_sizes, PlanConfig(8, 0, tail="drop"))), "only 'carry'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make_set: MakeSet, tmp_path: Path, make: Callable, message: str) -> None:
    split, other = (make_set(tmp_path / str(c), train=20, channels=c, name=f"of{c}").split("train") for c in (3, 1))
    with pytest.raises(ValueError, match=message):
        make(split, other)


def test_several_labels_are_stratified_by_the_rarest_and_not_balanced(make_set: MakeSet, tmp_path: Path) -> None:
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, np.nan], [1, 0, 0]], np.float32)
    assert strata(labels).tolist() == [1, 2, 0, 1]
    split = make_set(tmp_path / "set", train=20, task="multi-label").split("train")
    assert 0 < Choice(0.5).plan(split, PlanConfig(4, 0)).num_samples < 20
    with pytest.raises(ValueError, match="multi-label, an image has no one class"):
        Choice(balance="classes").plan(split, PlanConfig(4, 0))
    assert torch.isnan(torch.from_numpy(split.labels(None))).any()
