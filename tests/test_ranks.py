"""Scripts under torchrun: two processes extract one bank, and a mistake of one ends both in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_runs import make_run

ROOT = Path(__file__).resolve().parents[1]
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FLAGS = ("--layers", "stem,blocks.1.0", "--batch", "4", "--threads", "1")


def knn(run: Path, out: Path, *flags: str, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "analysis/knn.py", str(run), "--out", str(out), *FLAGS, *flags]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one(tmp_path, tiny_set):
    run = make_run(tmp_path / "run", tiny_set, "test_efficientnet", 32)
    one, two = knn(run, tmp_path / "one"), knn(run, tmp_path / "two", launcher=LAUNCHER)
    assert (one.returncode, two.returncode) == (0, 0), one.stderr + two.stderr
    found = [{p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in ("one", "two")]
    assert found[0] == found[1]
    assert len(found[0]) > 10
    assert two.stdout.count("embedding") == 1


@pytest.mark.slow
def test_a_mistake_ends_all_ranks_in_one_line(tmp_path, tiny_set):
    run = make_run(tmp_path / "run", tiny_set, "test_efficientnet", 32)
    ended = knn(run, tmp_path / "out", "--split", "nowhere", launcher=LAUNCHER)
    assert ended.returncode != 0
    assert ended.stderr.count("error: split 'nowhere' does not exist") == 1
