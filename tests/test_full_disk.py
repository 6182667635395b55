"""A full disk while a checkpoint is written. Run: pytest tests/test_full_disk.py"""

import errno
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from trainings import FAST, finish, losses, start, train

from train import checkpoints
from train.run import main

pytestmark = pytest.mark.usefixtures("one_rank")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes, as it does when a disk is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def leftovers(run: Path) -> list[str]:
    return [path.name for path in run.rglob("*") if "part" in path.name and path.name != "trainer.lock"]


def test_a_run_that_must_end_does_so_with_what_was_whole(tiny_set: Path) -> None:
    whole = train(tiny_set, "whole", "--epochs", "2", "--val-every", "2")
    cut = train(tiny_set, "cut", "--epochs", "2", "--val-every", "2", "--stop-after-steps", "3")
    with (
        files_up_to(100_000),
        pytest.raises(ValueError, match=r"checkpoint of step 5 could not .*free space.*--resume"),
    ):
        main(["--resume", str(cut), "--stop-after-steps", "5"])
    assert leftovers(cut) == []
    found, damaged = checkpoints.newest(cut / "checkpoints")
    assert found is not None and (found.state["step"], damaged) == (3, [])
    assert main(["--resume", str(cut)]) == 0
    assert losses(cut) == losses(whole)


@pytest.mark.parametrize("where", ["tensors", "seal"])
def test_a_run_goes_on_without_a_checkpoint(tiny_set: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    import torch

    owner, name = (torch, "save") if where == "tensors" else (checkpoints, "seal")
    real, calls = getattr(owner, name), []

    def full_once(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, full_once)
    run = train(tiny_set, "once", "--epochs", "2", "--checkpoint-every", "3", "--ema", "0.9")
    log = (run / "log.txt").read_text()
    assert log.count("warning: the checkpoint of step 3 could not be written") == 1 and "No space left" in log
    assert leftovers(run) == [] and (run / "results.json").is_file()
    found, damaged = checkpoints.newest(run / "checkpoints")
    assert found is not None and (found.state["step"], damaged) == (8, [])


@pytest.mark.slow
def test_one_rank_of_two_without_room(tiny_set: Path) -> None:
    """The rank that can write does not wait for the one that cannot."""
    base = ["--shards", str(tiny_set), "--model", "test_vit", "--name", "pair", *FAST, "--epochs", "2"]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    code = "import resource, sys; from train.run import main; size = int(sys.argv.pop(1)); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); main(sys.argv[1:])"
    processes = [
        start([sys.executable, "-c", code, size, *base, "--zero-stage", "2"], RANK=rank, LOCAL_RANK=rank, **common)
        for rank, size in (("0", "1000000000"), ("1", "500000"))
    ]
    (_, first), _ = [finish(process) for process in processes]
    assert "checkpoint of step 4 could not be written (rank 1: " in first, first
    assert "checkpoint of step 8 could not be written (rank 1: " in first, first
    assert leftovers(Path("runs/pair")) == [] and checkpoints.newest(Path("runs/pair/checkpoints")) == (None, [])
