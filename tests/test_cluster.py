"""Conversions on a real Dask scheduler with real workers on loopback. pytest tests/test_cluster.py"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conversions import OPTIONS, digests, make
from ports import free_port

import prep.cluster
from prep.convert import convert
from prep.images import PixelOptions
from prep.phantoms import SALT_NAME, draw_phantoms
from prep.places import open_place
from prep.planning import ConvertOptions
from prep.sources import DATASETS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, Callable[..., subprocess.Popen[bytes]]]]:
    """(address of a scheduler, a function that starts a worker, with variables of its environment)."""
    port, started = free_port(), []
    address = f"tcp://127.0.0.1:{port}"

    def start(*command: str, **variables: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "distributed.cli." + command[0], *command[1:]]
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
        process = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        started.append(process)
        return process

    def worker(threads: int = 1, **variables: str) -> subprocess.Popen[bytes]:
        own = ["--nthreads", str(threads), "--no-nanny", "--no-dashboard", "--local-directory", str(tmp_path / "dask")]
        return start("dask_worker", address, *own, **variables)

    start("dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard", "--no-show")
    yield address, worker
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_killed_worker_changes_no_byte(raw_ddsm: Path, tmp_path: Path, cluster: tuple[str, Callable]) -> None:
    """Two workers, one killed in the middle of a shard (it leaves a file aside): the other does its work."""
    address, worker = cluster
    make(raw_ddsm, tmp_path / "here")
    victim, _ = worker(), worker()
    command = [sys.executable, "prep/make_shards.py", "--dataset", "DDSM", "--raw", str(raw_ddsm), "--short-side", "48"]
    command += ["--out", str(tmp_path / "there"), "--salt", str(raw_ddsm / SALT_NAME), "--shard-samples", "8"]
    run = subprocess.Popen([*command, "--cluster", address], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("there/.train-*.tar.*.partial")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(victim.pid, signal.SIGKILL)
    assert run.wait(timeout=240) == 0, run.stderr.read() if run.stderr else ""
    assert run.stderr is not None
    run.stderr.close()
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


@pytest.mark.slow
def test_two_threads_of_a_worker_read_the_same_buckets(tmp_path: Path, cluster: tuple[str, Callable]) -> None:
    address, worker = cluster
    draw_phantoms("Camelyon", tmp_path / "raw", 60, quiet=True)
    options = ConvertOptions(pixels=PixelOptions(3, None, "raw"), shard_samples=4, quiet=True)
    worker(threads=2)
    for name, where in (("here", None), ("there", address)):
        convert(DATASETS["Camelyon"], tmp_path / "raw", tmp_path / name, replace(options, cluster=where),
                tmp_path / "raw" / SALT_NAME)  # fmt: skip
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


@pytest.mark.slow
def test_workers_that_would_write_other_bytes_or_elsewhere_are_refused(
    raw_ddsm: Path, tmp_path: Path, cluster: tuple[str, Callable], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, worker = cluster
    monkeypatch.setattr(prep.cluster, "NO_WORKER_SECONDS", 1.0)
    options = replace(OPTIONS, cluster=address)
    with pytest.raises(ValueError, match="the cluster has had no worker for 1 s: start some"):
        make(raw_ddsm, tmp_path / "a", options)
    worker()
    monkeypatch.setattr(prep.cluster, "NO_WORKER_SECONDS", 60.0)
    real = prep.cluster.versions
    monkeypatch.setattr(prep.cluster, "versions", lambda **given: real(**given) | {"pillow": "0.1"})
    with pytest.raises(ValueError, match=r"the worker on .* has pillow .*, 0\.1 started this run"):
        make(raw_ddsm, tmp_path / "b", options)
    monkeypatch.setattr(prep.cluster, "versions", real)
    (bad, *_) = sorted((raw_ddsm / "ddsm_raw").iterdir())
    content = bad.read_bytes()
    bad.write_bytes(b"broken")
    try:
        with pytest.raises(ValueError, match=r"does not decode: no known image format"):
            make(raw_ddsm, tmp_path / "c", replace(options, strict=True))
    finally:
        bad.write_bytes(content)
    make(raw_ddsm, tmp_path / "b", options)
    make(raw_ddsm, tmp_path / "here")
    assert digests(tmp_path / "b") == digests(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_lines_for_slurm_start_workers(raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's own lines; its sbatch runs the job script here, on loopback, and one job of two workers will do."""
    page = (ROOT / "docs" / "preparing.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for given, small in (("cores=8, processes=8", "cores=2, processes=2"), ("32GB", "2GB"), ("jobs=4", "jobs=1")):
        assert given in block
        block = block.replace(given, small)
    for name, line in (
        ("sbatch", 'bash "$1" > /dev/null 2>&1 &\necho "Submitted batch job $!"'),
        ("scancel", "kill $1"),
    ):
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    script = tmp_path / "cluster.py"
    script.write_text(f"{block}\nimport sys\nsys.stdout.flush()\nsys.stdin.read()\ncluster.close()\n")
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DASK_JOBQUEUE__SLURM__INTERFACE": "lo"}
    session = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, env=env | {"PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert session.stdout is not None
        address = session.stdout.readline().strip()
        assert address.startswith("tcp://127.0.0.1:")
        make(raw_ddsm, tmp_path / "there", replace(OPTIONS, cluster=address))
    finally:
        session.communicate(timeout=60)
    make(raw_ddsm, tmp_path / "here")
    assert digests(tmp_path / "here") == digests(tmp_path / "there")


def test_no_scheduler_is_one_line(raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep.cluster, "CONNECT_SECONDS", 0.5)
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1 .*`dask scheduler`"):
        make(raw_ddsm, tmp_path / "new" / "folder" / "set", replace(OPTIONS, cluster="tcp://127.0.0.1:1"))
    assert not list(tmp_path.iterdir())


def test_folders_that_a_worker_does_not_see_are_told(raw_ddsm: Path, tmp_path: Path) -> None:
    from prep.planning import make_plan, make_tasks

    options = replace(OPTIONS, cluster="somewhere")
    salt = (raw_ddsm / SALT_NAME).read_bytes()
    plan = make_plan(DATASETS["DDSM"], raw_ddsm, options, salt)
    tasks = make_tasks(plan, tmp_path / "elsewhere", tmp_path, options, salt)
    wanted = prep.cluster.versions(compress=False)
    with pytest.raises(ValueError, match="does not see the output folder: put --out on a file system that all share"):
        prep.cluster.run_elsewhere(tasks[0], wanted, raw_ddsm)
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ValueError, match="does not see the raw folder"):
        prep.cluster.run_elsewhere(tasks[0], wanted, tmp_path / "none")
    assert not isinstance(open_place("memory://x"), Path)  # which needs no folder
    assert prep.cluster.run_elsewhere(tasks[0], wanted, raw_ddsm).info is not None
