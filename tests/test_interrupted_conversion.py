"""Conversions that are killed, refused, resumed or run twice end with the same bytes."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conversions import DDSM, OPTIONS, command, digests, make

import prep.convert
import prep.tasks
from prep.convert import convert
from prep.images import PixelOptions, Prepared
from prep.phantoms import SALT_NAME
from prep.pool import deaf_to_ctrl_c
from prep.private import PrivateFolder
from shards.metadata import Metadata


def test_any_number_of_workers_gives_the_same_bytes(raw_ddsm: Path, tmp_path: Path) -> None:
    make(raw_ddsm, tmp_path / "a")
    make(raw_ddsm, tmp_path / "b", replace(OPTIONS, workers=2))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert (tmp_path / "a.private" / "sources.csv").read_bytes() == (
        tmp_path / "b.private" / "sources.csv"
    ).read_bytes()


def test_an_interrupted_run_goes_on_and_keeps_what_is_whole(
    raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(raw_ddsm, tmp_path / "a")
    real, calls = prep.tasks.prepare, []

    def failing(data: bytes, options: PixelOptions, known: Metadata) -> Prepared:
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return real(data, options, known)

    monkeypatch.setattr(prep.tasks, "prepare", failing)
    with pytest.raises(KeyboardInterrupt):
        make(raw_ddsm, tmp_path / "b")
    left = {path.name for path in (tmp_path / "b").iterdir()}
    assert "manifest.json" not in left and not any("partial" in name for name in left)
    assert {"train-000000.tar", "train-000001.tar", "train-000002.tar"} <= left
    damaged = tmp_path / "b" / "train-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-600] + bytes(600)[::-1][:1] * 88)
    calls.clear()
    monkeypatch.setattr(prep.tasks, "prepare", lambda *given: (calls.append(1), real(*given))[1])
    make(raw_ddsm, tmp_path / "b")
    assert len(calls) == 60 - 2 * 8  # two whole shards kept, the damaged one made again
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(raw_ddsm: Path, tmp_path: Path) -> None:
    make(raw_ddsm, tmp_path / "a")
    words = command(raw_ddsm, tmp_path / "b")
    words += ["--salt", str(raw_ddsm / SALT_NAME), "--short-side", "48", "--shard-samples", "8", "--workers", "2"]
    rng = np.random.default_rng(0)
    root = Path(__file__).parents[1]
    for _ in range(6):
        process = subprocess.Popen(words, cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(words, cwd=root, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("script", ["phantoms", "make_shards"])
def test_ctrl_c_is_two_words_even_while_workers_start(raw_ddsm: Path, tmp_path: Path, script: str) -> None:
    command = [sys.executable, *f"prep/{script}.py --dataset DDSM --workers 2 --out".split(), str(tmp_path / "out")]
    command += ["--raw", str(raw_ddsm)] if script == "make_shards" else ["--num-images", "3000"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True, process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    parent, deadline = psutil.Process(process.pid), time.monotonic() + 60
    while not any("multiprocessing" in " ".join(child.cmdline()) for child in parent.children()):
        assert process.poll() is None and time.monotonic() < deadline, "no worker was started"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "stopped; run the same command to go on" in said
    assert "Traceback" not in said and "KeyboardInterrupt" not in said


def test_ctrl_c_waits_until_processes_are_started_whichever_thread_hears_it() -> None:
    """A progress bar's thread, say: the kernel gives the signal to any that does not block it."""
    ends = threading.Event()
    thread = threading.Thread(target=ends.wait)
    thread.start()
    started = False
    with pytest.raises(KeyboardInterrupt), deaf_to_ctrl_c():
        signal.pthread_kill(thread.ident or 0, signal.SIGINT)
        time.sleep(0.2)
        started = True
    ends.set()
    thread.join()
    assert started


def test_a_second_run_says_done_and_another_set_is_refused(raw_ddsm: Path, tmp_path: Path) -> None:
    first = make(raw_ddsm, tmp_path / "set")
    assert convert(DDSM, raw_ddsm, tmp_path / "set", OPTIONS) == (first, False)
    with pytest.raises(ValueError, match="already holds another finished set"):
        make(raw_ddsm, tmp_path / "set", replace(OPTIONS, seed=5))
    (tmp_path / "set" / "train-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"run prep/check_shards\.py"):
        make(raw_ddsm, tmp_path / "set")


def test_an_unfinished_set_with_other_options_is_replaced(raw_ddsm: Path, tmp_path: Path) -> None:
    make(raw_ddsm, tmp_path / "b", replace(OPTIONS, shard_samples=2))
    (tmp_path / "b" / "manifest.json").unlink()
    make(raw_ddsm, tmp_path / "a")
    make(raw_ddsm, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_two_runs_on_one_folder_and_a_lock_of_the_dead(raw_ddsm: Path, tmp_path: Path) -> None:
    with (
        PrivateFolder(tmp_path / "set").locked(),
        pytest.raises(ValueError, match=rf"another run \(process {os.getpid()}\) is writing"),
    ):
        make(raw_ddsm, tmp_path / "set")
    (tmp_path / "set.private" / "lock").write_text("999999\n")
    assert make(raw_ddsm, tmp_path / "set").name == "DDSM"


def test_a_run_that_is_refused_leaves_the_first_ones_lock_and_salt(
    raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin at once, when there is no folder yet."""
    first, locked = PrivateFolder(tmp_path / "set"), PrivateFolder.locked

    @contextmanager
    def late(self: PrivateFolder) -> Iterator[None]:
        with locked(first):
            first.salt(raw_ddsm / SALT_NAME)
            with locked(self):
                yield

    monkeypatch.setattr(PrivateFolder, "locked", late)
    with pytest.raises(ValueError, match="another run"):
        make(raw_ddsm, tmp_path / "set")
    assert {path.name for path in first.path.iterdir()} == {"lock", "salt"}


def test_a_lock_that_was_removed_before_it_was_taken_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, taken = PrivateFolder(tmp_path / "set"), fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        if not taken:
            shutil.rmtree(folder.path)  # by the run before, as it ends
        taken.append(file)
        real(file, how)

    monkeypatch.setattr("fcntl.flock", flock)
    with folder.locked():
        with pytest.raises(ValueError, match="another run"), PrivateFolder(tmp_path / "set").locked():
            pass
        assert (folder.path / "lock").is_file()


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prep.tasks.ShardWriter, "close", full)
        with pytest.raises(ValueError, match="failed \\(No space left on device\\): free space"):
            make(raw_ddsm, tmp_path / "b")
    make(raw_ddsm, tmp_path / "a")
    make(raw_ddsm, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
