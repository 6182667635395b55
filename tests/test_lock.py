"""One trainer a run directory. Run: pytest tests/test_lock.py"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train import lock

HOLD = (
    "import sys, time; from pathlib import Path; from train.lock import take; held = take(Path(sys.argv[1])); "
    "print('held', flush=True); time.sleep(60)"
)


def write_holder(folder: Path, **changes: object) -> None:
    record = {"host": "node7", "pid": 12, "machine": "another", "since": "2026-01-02 03:04:05", "beats": 3, **changes}
    (folder / lock.LOCK_FILE).write_text(json.dumps(record))


def test_a_second_trainer_is_refused_and_a_dead_ones_place_taken(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"is being trained by process {holder.pid} on .* since .*--name NAME"):
            lock.take(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]
    assert (tmp_path / lock.LOCK_FILE).exists()
    started = time.monotonic()
    lock.take(tmp_path).release()  # at once: the kernel says that the holder is dead
    assert time.monotonic() - started < 5 and not (tmp_path / lock.LOCK_FILE).exists()


def test_a_lock_of_this_process_counts_too(tmp_path: Path) -> None:
    held = lock.take(tmp_path)
    with pytest.raises(ValueError, match="is being trained by process"):
        lock.take(tmp_path)
    held.release()
    lock.take(tmp_path).release()


def test_another_machines_trainer_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_holder(tmp_path)
    said: list[str] = []
    lock.take(tmp_path, patience=0.3, say=said.append).release()  # its counter stood still
    assert said == [f"{tmp_path} was left by a trainer on node7: watching 0 s whether it lives"]
    write_holder(tmp_path)

    def beat(seconds: float) -> None:
        write_holder(tmp_path, beats=4)

    monkeypatch.setattr(time, "sleep", beat)
    with pytest.raises(ValueError, match="is being trained by process 12 on node7 since 2026-01-02 03:04:05"):
        lock.take(tmp_path, patience=0.3)


def test_a_half_written_lock_is_nobodys(tmp_path: Path) -> None:
    (tmp_path / lock.LOCK_FILE).write_text('{"host": "no')
    lock.take(tmp_path).release()


def test_the_holder_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    held = lock.take(tmp_path)
    first = json.loads((tmp_path / lock.LOCK_FILE).read_text())["beats"]
    deadline = time.monotonic() + 10
    while json.loads((tmp_path / lock.LOCK_FILE).read_text() or "{}").get("beats", 0) <= first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    held.release()
