"""Batches: exactly the plan's samples, the same pixels on any ranks, threads and resume points, bad samples masked."""

import shutil
import sys
import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

from shards.loader import BadSamples, Batch, Loader
from shards.manifest import ShardInfo
from shards.plan import rank_places
from shards.shardset import ShardSet
from shards.storage import LocalFolder
from shards.transforms import Transform, eval_transform, train_transform

EXECUTORS = ("host", "dali")
HARMLESS = ("weakref.py", "test_loader.py")  # weakref: a batch's memory goes back


def transform(shards: ShardSet, size: int = 32) -> Transform:
    return train_transform(size, shards.manifest.mean, shards.manifest.std)


def batches(shards: ShardSet, count: int, **options: Any) -> list[Batch]:
    loader = Loader(shards.split("train"), transform(shards), **{"global_batch": 8, "seed": 3} | options)
    found = list(islice(loader, count))
    loader.close()
    return found


@pytest.mark.parametrize("executor", EXECUTORS)
def test_pixels_do_not_depend_on_ranks_threads_or_resume(tiny_set: Path, executor: str) -> None:
    shards = ShardSet(tiny_set)
    whole = batches(shards, 10, executor=executor)  # 80 samples: beyond the end of the first epoch
    for world in (2, 4):
        for rank in range(world):
            places = rank_places(8, world, rank)
            part = batches(shards, 10, executor=executor, world=world, rank=rank, threads=1 + rank)
            for mine, all_of_it in zip(part, whole, strict=True):
                assert torch.equal(mine.sample_ids, all_of_it.sample_ids[places])
                assert torch.equal(mine.images, all_of_it.images[places])
                assert torch.equal(mine.labels, all_of_it.labels[places])
    later = batches(shards, 3, executor=executor, samples_consumed=7 * 8, threads=3)
    assert all(torch.equal(a.images, b.images) for a, b in zip(later, whole[7:], strict=True))


def test_the_kernel_is_told_of_the_next_batch(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image but the first batch's is announced before it is read, to the byte, and nothing else is."""
    told: set[tuple[str, int, int]] = set()
    real = LocalFolder.will_read

    def noted(self: LocalFolder, info: ShardInfo, offset: int, size: int) -> None:
        told.add((info.name, offset, size))
        real(self, info, offset, size)

    monkeypatch.setattr(LocalFolder, "will_read", noted)
    split = ShardSet(tiny_set).split("train")
    loader = Loader(split, eval_transform(32, [0.5] * 3, [0.5] * 3), global_batch=12, tail="partial", threads=1)
    assert len(list(loader)) == 5
    rows = split.rows(loader.plan.at(np.arange(12, 60))[0])
    names = [split.shards[shard].name for shard in rows.shards.tolist()]
    assert told == set(zip(names, rows.offsets.tolist(), rows.sizes.tolist(), strict=True))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_training_thread_only_takes_what_is_ready(tiny_set: Path, executor: str) -> None:
    """What a profiler sees on the thread that takes batches: no plan, no draw, no read, no decoder, and in C
    nothing but the queue: no function or method of numpy's or torch's."""
    shards = ShardSet(tiny_set)
    loader = Loader(shards.split("train"), transform(shards), global_batch=8, executor=executor)  # type: ignore[arg-type]
    stream, seen = iter(loader), set()
    next(stream)

    def note(frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":  # the frame is the caller's
            modules.add(getattr(called, "__module__", None) or type(getattr(called, "__self__", None)).__module__)
        seen.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))

    modules: set[str] = set()
    sys.setprofile(note)
    try:
        for _ in range(10):
            next(stream)
    finally:
        sys.setprofile(None)
    loader.close()
    own = {(file, function) for file, function in seen if file not in HARMLESS}
    assert own == {("loader.py", "__iter__"), ("running_ahead.py", "next")}
    assert modules <= {"builtins", "_queue", "time", "collections", "sys"}, modules  # sys: of setprofile


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_kept_batch_does_not_change(tiny_set: Path, executor: str) -> None:
    shards = ShardSet(tiny_set)
    loader = iter(Loader(shards.split("train"), transform(shards), global_batch=8, executor=executor))
    kept = next(loader)
    copy = kept.images.clone()
    others = [next(loader) for _ in range(10)]
    assert torch.equal(kept.images, copy) and len({other.images.data_ptr() for other in others}) == 10
    loader.close()


def test_an_epoch_is_every_sample_once_and_the_next_is_augmented_anew(tiny_set: Path) -> None:
    shards = ShardSet(tiny_set)
    drawn = batches(shards, 15)  # 120 samples: two epochs of 60
    ids = torch.cat([batch.sample_ids for batch in drawn]).numpy().view(np.uint64)
    stored = np.sort(shards.split("train").sample_ids())
    np.testing.assert_array_equal(np.sort(ids[:60]), stored)
    np.testing.assert_array_equal(np.sort(ids[60:]), stored)
    images = torch.cat([batch.images for batch in drawn])
    again = 60 + int(np.flatnonzero(ids[60:] == ids[0])[0])
    assert not torch.equal(images[0], images[again])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_evaluation_is_one_masked_pass(tiny_set: Path, executor: str) -> None:
    shards = ShardSet(tiny_set)
    split = shards.split("val")
    make = lambda rank: Loader(  # noqa: E731
        split, eval_transform(32, shards.manifest.mean, shards.manifest.std), global_batch=8, order="sequential",
        tail="partial", rank=rank, world=2, executor=executor,
    )  # fmt: skip
    ranks = [list(make(rank)) for rank in (0, 1)]
    assert [len(rank) for rank in ranks] == [3, 3]  # 17 samples: every rank keeps its step count
    valid = [batch.sample_ids[batch.valid] for rank in ranks for batch in rank]
    np.testing.assert_array_equal(np.sort(torch.cat(valid).numpy().view(np.uint64)), np.sort(split.sample_ids()))


def test_micro_batches_are_the_batch_in_pieces(tiny_set: Path) -> None:
    shards = ShardSet(tiny_set)
    whole, pieces = batches(shards, 2), batches(shards, 8, micro_batch=2)
    assert torch.equal(torch.cat([b.images for b in whole]), torch.cat([b.images for b in pieces]))
    loader = Loader(shards.split("train"), transform(shards), global_batch=8, micro_batch=4)
    stream = iter(loader)
    consumed = [loader.samples_consumed for _ in islice(stream, 4)]
    assert consumed == [0, 8, 8, 16]  # a half-done step counts for nothing
    stream.close()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    "options", [{"channels": 1}, {"encoding": "png"}, {"encoding": "raw"}, {"task": "multi-label"}]
)
def test_kinds_of_sets(make_set: Callable, tmp_path: Path, executor: str, options: dict[str, Any]) -> None:
    shards = make_set(tmp_path / "set", train=16, val=3, test=3, **options)
    batch = batches(shards, 1, executor=executor)[0]
    assert batch.images.shape == (8, options.get("channels", 3), 32, 32) and batch.images.dtype == torch.float32
    assert abs(float(batch.images.mean())) < 1.0 and 0.3 < float(batch.images.std()) < 2.0
    wanted = (torch.float32, (8, 3)) if "task" in options else (torch.int64, (8,))
    assert (batch.labels.dtype, tuple(batch.labels.shape)) == wanted
    other = batches(shards, 1, executor="dali" if executor == "host" else "host")[0]
    assert float((batch.images - other.images).abs().mean()) < 0.02


def damaged(source: Path, folder: Path) -> tuple[ShardSet, str]:
    """A copy of a set in which one training image is overwritten."""
    shutil.copytree(source, folder)
    split = ShardSet(folder).split("train")
    rows = split.rows(np.array([9]))
    shard = split.shards[int(rows.shards[0])]
    with (folder / shard.name).open("r+b") as file:
        file.seek(int(rows.offsets[0]))
        file.write(b"\0" * int(rows.sizes[0]))
    return ShardSet(folder), split.key(9)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_broken_sample_is_named_and_masked_and_the_run_goes_on(
    tiny_set: Path, tmp_path: Path, executor: str, verify: bool
) -> None:
    shards, key = damaged(tiny_set, tmp_path / "set")
    loader = Loader(shards.split("train"), transform(shards), global_batch=8, executor=executor, verify=verify)
    seen = list(islice(loader, 15))  # two epochs: it comes twice and is booked once
    loader.close()
    assert [name for name, _ in loader.bad] == [key] and loader.bad[0][1]
    valid = torch.cat([batch.valid for batch in seen])
    assert int((~valid).sum()) == 2
    assert not torch.cat([batch.images for batch in seen])[~valid].any()
    good = batches(ShardSet(tiny_set), 15, executor=executor, seed=0)
    for mine, theirs in zip(seen, good, strict=True):
        assert torch.equal(mine.sample_ids, theirs.sample_ids)
        assert torch.equal(mine.images[mine.valid], theirs.images[mine.valid])


@pytest.mark.parametrize("options", [{"strict": True}, {"max_bad": 0}])
def test_too_many_broken_samples_stop_with_their_names(tiny_set: Path, tmp_path: Path, options: dict) -> None:
    shards, key = damaged(tiny_set, tmp_path / "set")
    loader = Loader(shards.split("train"), transform(shards), global_batch=8, **options)
    with pytest.raises(BadSamples, match=f"1 sample of train cannot be read, 0 are allowed: {key}: sample {key}"):
        list(islice(loader, 15))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("loader", "host-executor"))]


@pytest.mark.parametrize(("number", "stops"), [(4, False), (5, True)])
def test_a_split_that_is_mostly_broken_stops(
    make_set: Callable[..., ShardSet], tmp_path: Path, number: int, stops: bool
) -> None:
    split = make_set(tmp_path / "set", train=40, name="broken").split("train")
    for position in range(number):
        row = split.rows(np.array([position]))
        tar = tmp_path / "set" / split.shards[int(row.shards[0])].name
        content = bytearray(tar.read_bytes())
        content[int(row.offsets[0]) + 30] ^= 255
        tar.write_bytes(content)
    loader = Loader(split, transform(ShardSet(tmp_path / "set")), global_batch=8)
    if stops:
        with pytest.raises(BadSamples, match="5 samples of train cannot be read, 4 are allowed"):
            list(islice(loader, 5))
    else:
        assert sum(int(batch.valid.sum()) for batch in islice(loader, 5)) == 36
        loader.close()


def test_threads_end_with_the_iteration(tiny_set: Path) -> None:
    shards = ShardSet(tiny_set)
    loader = Loader(shards.split("train"), transform(shards), global_batch=8, threads=3)
    for _ in islice(loader, 2):
        pass
    loader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("loader", "host-executor"))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch": 8, "world": 3}, "world size 3 does not divide the global batch 8: use 2 or 4 ranks"),
        ({"global_batch": 8, "micro_batch": 3}, "micro_batch 3 does not divide the 8 samples"),
        ({"global_batch": 8, "executor": "gpu"}, "unknown executor 'gpu'; known: auto, dali, host"),
        ({"global_batch": 8, "world": 2, "rank": 2}, "rank 2 of 2"),
    ],
)
def test_wrong_options_are_refused(tiny_set: Path, options: dict[str, Any], message: str) -> None:
    shards = ShardSet(tiny_set)
    with pytest.raises(ValueError) as caught:
        Loader(shards.split("train"), transform(shards), **options)
    assert message in str(caught.value)


def test_dali_that_is_not_installed_is_refused(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.executors._distributions", lambda: ["torch", "timm"])
    shards = ShardSet(tiny_set)
    with pytest.raises(ValueError, match="DALI is not installed; install the extra cuda13 or cuda12"):
        Loader(shards.split("train"), transform(shards), global_batch=8, executor="dali")


def test_another_channel_count_is_refused(tiny_set: Path) -> None:
    with pytest.raises(ValueError, match=r"normalises 1 channels, the images of tiny have 3"):
        Loader(ShardSet(tiny_set).split("train"), train_transform(32, (0.5,), (0.2,)), global_batch=8)
