"""A rank that hangs, dies or fails is named and ends the run. Run: pytest tests/test_pulse.py"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ports import free_port

RANK = """
import ctypes, os, sys, time
from pathlib import Path
import torch.distributed as dist
from train.engine import Ranks
from train.pulse import Pulse

rank, what = int(os.environ["RANK"]), sys.argv[2]
world = int(os.environ["WORLD_SIZE"])
if world > 1:
    dist.init_process_group("gloo")
with Pulse(Ranks(rank, world), Path(sys.argv[1]), minutes=float(sys.argv[3]), every=0.2, dead=3, grace=0.5) as pulse:
    pulse.beat("step 3, waiting for data")
    print("ready", flush=True)
    if what in ("error", "raise") and rank == 1:
        raise KeyError("a defect")
    if what == "raise":
        time.sleep(30)
    if rank == world - 1 and what != "none":
        ctypes.PyDLL(None).sleep(60) if what == "blocked" else time.sleep(60)
    pulse.beat("step 3, meeting the other ranks")
    if what == "none":
        sys.exit(0)
    dist.barrier()
"""
SLEEP = next(number for number, line in enumerate(RANK.splitlines(), 1) if "sleep(60)" in line)


def ranks(folder: Path, what: str, world: int = 2, minutes: float = 2 / 60) -> list["subprocess.Popen[str]"]:
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), what, str(minutes)],
            env={**os.environ, **common, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip


def ended(processes: list["subprocess.Popen[str]"]) -> list[tuple[int, str]]:
    """Exit code and standard error of each; all are gone afterwards."""
    try:
        told = [process.communicate(timeout=60)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                process.communicate()


def test_a_rank_that_hangs_is_named_with_the_stacks_of_all(tmp_path: Path) -> None:
    (code, told), (other, silent) = ended(ranks(tmp_path, "hang"))
    assert (code, other) == (1, 1)
    assert f"error: rank 1 on {socket.gethostname()} stood still for " in told and "waiting for data" in told, told
    assert f"--resume {tmp_path} goes on" in told and "error" not in silent
    assert "barrier" in (tmp_path / "stacks" / "rank-0000.txt").read_text()
    assert f'<string>", line {SLEEP}' in (tmp_path / "stacks" / "rank-0001.txt").read_text()  # the sleep


@pytest.mark.slow
def test_a_lone_rank_that_hangs_ends(tmp_path: Path) -> None:
    ((code, told),) = ended(ranks(tmp_path, "hang", world=1))
    assert code == 1 and "rank 0 stood still for 2 s in step 3, waiting for data; stacks in" in told, told


@pytest.mark.slow
def test_ranks_that_end_by_themselves_do_so_in_peace(tmp_path: Path) -> None:
    assert [code for code, _ in ended(ranks(tmp_path, "none"))] == [0, 0]
    assert not (tmp_path / "stacks").exists()


@pytest.mark.slow
def test_a_peers_failure_ends_the_others(tmp_path: Path) -> None:
    (code, told), (other, trace) = ended(ranks(tmp_path, "error"))
    assert (code, other) == (1, 1) and "KeyError" in trace
    assert "rank 1 failed first: KeyError: 'a defect'" in told or "Connection closed by peer" in told, told


@pytest.mark.slow
def test_the_first_rank_shows_the_traceback_of_another_machine(tmp_path: Path) -> None:
    """One rank a machine, as `Ranks` has it here: nobody else reads the other machine's words."""
    (code, told), (other, trace) = ended(ranks(tmp_path, "raise"))
    assert (code, other) == (1, 1) and "KeyError: 'a defect'" in trace
    assert "rank 1 failed first, with\nTraceback (most recent call last):" in told, told
    assert "KeyError: 'a defect'" in told and "error: rank 1 failed first: KeyError" in told, told


@pytest.mark.slow
def test_a_blocked_interpreter_is_named_by_its_peers_and_ends_by_its_timer(tmp_path: Path) -> None:
    (code, told), (other, stack) = ended(ranks(tmp_path, "blocked"))
    assert (code, other) == (1, 1)
    assert "error: rank 1 on" in told, told
    assert "Timeout" in stack and f'<string>", line {SLEEP}' in stack, stack


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "words"), [(1, "rank 1 on"), (0, "the first rank (127.0.0.1) is gone")])
def test_a_stopped_rank_counts_as_dead(tmp_path: Path, victim: int, words: str) -> None:
    processes = ranks(tmp_path, "long", minutes=0.25)
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    os.kill(processes[victim].pid, signal.SIGSTOP)
    try:
        ((code, told),) = ended([processes[1 - victim]])
    finally:
        processes[victim].kill()
        processes[victim].communicate()
    assert code == 1 and words in told, told
