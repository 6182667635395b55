"""What a decoder refuses while batches lie in the queue: nothing else is lost. Run: pytest tests/test_refusals.py"""

import shutil
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from shards.dali_executor import DaliExecutor
from shards.loader import Batch, Loader
from shards.shardset import ShardSet
from shards.transforms import train_transform

BROKEN = (13, 14, 41)  # positions of the 60
BATCH, PIECE = 12, 3  # of all ranks, and of a micro-batch


@pytest.fixture(scope="module")
def broken(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A copy of a set in which three training images are no images any more."""
    folder = Path(shutil.copytree(tiny_set, tmp_path_factory.mktemp("refusals") / "set"))
    split = ShardSet(folder).split("train")
    rows = split.rows(np.array(BROKEN))
    for shard, offset, size in zip(rows.shards.tolist(), rows.offsets.tolist(), rows.sizes.tolist(), strict=True):
        with (folder / split.shards[shard].name).open("r+b") as file:
            file.seek(offset)
            file.write(b"no JPEG " * (size // 8))
    return ShardSet(folder)


def epoch(shards: ShardSet, executor: str, rank: int, world: int) -> tuple[list[Batch], Loader]:
    """An epoch in micro-batches, hashes unread, so that the decoder meets what is broken; taken when all is queued."""
    transform = train_transform(32, shards.manifest.mean, shards.manifest.std, preset="light")
    loader = Loader(
        shards.split("train"),
        transform,
        global_batch=BATCH,
        executor=executor,  # type: ignore[arg-type]
        rank=rank,
        world=world,
        micro_batch=PIECE,
        prefetch=4,
        verify=False,
    )
    stream = iter(loader)
    first = next(stream)
    until = time.monotonic() + 10
    while loader._worker is not None and not loader._worker.is_full and time.monotonic() < until:
        time.sleep(0.01)
    found = [first, *islice(stream, 60 // world // PIECE - 1)]
    loader.close()
    return found, loader


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("executor", ["dali", "host"])
def test_a_refused_sample_in_the_queue_costs_no_other(
    tiny_set: Path, broken: ShardSet, executor: str, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others come exactly once, in their places, bit for bit as without it; the pipeline is rebuilt in place."""
    built: list[dict] = []
    real = DaliExecutor._build
    monkeypatch.setattr(
        DaliExecutor, "_build", lambda self, *threads, **own: (built.append(own), real(self, *threads, **own))[1]
    )
    came, named = [], []
    for rank in range(world):
        sound, _ = epoch(ShardSet(tiny_set), executor, rank, world)
        before = len(built)
        found, loader = epoch(broken, executor, rank, world)
        if loader.bad and executor == "dali":
            assert built[before:].count({}) >= 3  # two to begin with, one in its place after each refusal
        for mine, theirs in zip(found, sound, strict=True):
            assert torch.equal(mine.sample_ids, theirs.sample_ids) and torch.equal(mine.labels, theirs.labels)
            assert torch.equal(mine.images[mine.valid], theirs.images[mine.valid])
            assert not mine.images[~mine.valid].any() and bool(theirs.images[~mine.valid].any(dim=(1, 2, 3)).all())
        came.append(torch.cat([batch.sample_ids[batch.valid] for batch in found]))
        named += [key for key, _ in loader.bad]
    split = broken.split("train")
    wanted = split.sample_ids(np.setdiff1d(np.arange(60), BROKEN))
    np.testing.assert_array_equal(np.sort(torch.cat(came).numpy().view(np.uint64)), np.sort(wanted))
    assert sorted(named) == sorted(split.key(position) for position in BROKEN)
