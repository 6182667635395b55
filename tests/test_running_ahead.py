"""Steps prepared together are the steps one by one; hints stop where no disk is waited for.

python -m pytest tests/test_running_ahead.py
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shards import loader as loading
from shards import running_ahead
from shards.loader import BadSamples, Batch, Loader
from shards.running_ahead import KEEP_HINTING, DiskWaits
from shards.shardset import ShardSet
from shards.transforms import eval_transform, train_transform

FIVE = [0.5] * 3


@pytest.fixture(scope="module")
def raw_set(make_set: Callable[..., ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("raw") / "set", encoding="raw", train=61).path


@pytest.fixture(scope="module")
def damaged_set(make_set: Callable[..., ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one image overwritten: the 11th of the plan, in the second step of eight."""
    folder = make_set(tmp_path_factory.mktemp("damaged") / "set", encoding="raw", train=61).path
    split = ShardSet(folder).split("train")
    rows = split.rows(Loader(split, train_transform(32, FIVE, FIVE), global_batch=8).plan.at(np.array([10]))[0])
    with (folder / split.shards[int(rows.shards[0])].name).open("r+b") as file:
        file.seek(int(rows.offsets[0]))
        file.write(b"\0" * int(rows.sizes[0]))
    return folder


def loader_of(folder: Path, **options: Any) -> Loader:
    make = eval_transform if options.get("tail") == "partial" else train_transform
    return Loader(ShardSet(folder).split("train"), make(32, FIVE, FIVE), **{"global_batch": 8} | options)


def taken(loader: Loader, count: int) -> list[tuple[Batch, int]]:
    """At most so many batches, each with the samples consumed once it is handed out."""
    found = [(batch, loader.samples_consumed) for batch, _ in zip(loader, range(count), strict=False)]
    loader.close()
    return found


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 18),  # across the end of an epoch
        ({"samples_consumed": 8}, 5),
        ({"micro_batch": 2}, 17),
        ({"world": 2, "rank": 1}, 9),
        ({"tail": "partial"}, 99),  # 61 samples: eight steps, the last padded
        ({"tail": "partial", "global_batch": 12, "order": "sequential"}, 99),
        ({"global_batch": 12, "channels_last": True, "dtype": "float16"}, 7),
    ],
)
@pytest.mark.parametrize("damage", [False, True])
def test_steps_prepared_together_are_the_steps_one_by_one(
    raw_set: Path, damaged_set: Path, damage: bool, options: dict, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found = damaged_set if damage else raw_set, {}
    for together in (1, 3, 4):
        monkeypatch.setattr(loading, "MOST_TOGETHER", together)
        loader = loader_of(folder, **options)
        assert loader.steps_together(loader.samples_consumed) == together
        found[together] = taken(loader, count)
        assert bool(loader.bad) == damage
    for together in (3, 4):
        for (mine, consumed), (theirs, wanted) in zip(found[together], found[1], strict=True):
            assert consumed == wanted
            assert all(torch.equal(a, b) for a, b in zip(mine[:4], theirs[:4], strict=True))


def test_a_damaged_sample_ends_a_strict_run_after_the_steps_before_it(damaged_set: Path) -> None:
    loader, seen = loader_of(damaged_set, strict=True), 0
    assert loader.steps_together(0) == 4
    with pytest.raises(BadSamples, match="1 sample of train cannot be read, 0 are allowed"):
        for _ in loader:
            seen += 1
    assert seen == 1


def test_only_small_images_that_need_no_decoding_go_together(tiny_set: Path, raw_set: Path) -> None:
    assert loader_of(tiny_set).steps_together(0) == 1  # JPEG
    assert loader_of(raw_set, executor="dali").steps_together(0) == 1  # its graph is built for a step
    split = ShardSet(raw_set).split("train")
    large = Loader(split, train_transform(224, FIVE, FIVE), global_batch=60)
    assert large.steps_together(0) == 1
    assert loader_of(raw_set, tail="partial").steps_together(56) == 1  # one step is left


def test_hints_end_where_no_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """And begin anew with the next page that a disk brings."""
    faults = 7

    def usage(who: int) -> Any:
        return type("Usage", (), {"ru_majflt": faults})

    monkeypatch.setattr(running_ahead.resource, "getrusage", usage)
    disk = DiskWaits()
    assert [disk.lately() for _ in range(KEEP_HINTING + 3)] == [True] * KEEP_HINTING + [False] * 3
    faults = 8
    assert disk.lately()
