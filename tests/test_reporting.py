"""The log of a training: python -m pytest tests/test_reporting.py."""

import time
from pathlib import Path
from typing import Any

import pytest
from trainings import train

from shards.running_ahead import Worker
from train.reporting import MOST_WAITING, Reporter, read_metrics


def lines_of(folder: Path, waits: list[float], monkeypatch) -> str:
    folder.mkdir()
    now = [0.0]
    monkeypatch.setattr("train.reporting.time.monotonic", lambda: now[0])
    reporter = Reporter(folder, tensorboard=False, total_steps=10, per_step=8)
    for step, wait in enumerate(waits, 1):
        now[0] += 1.0
        reporter.step(wait)
        reporter.train(step, {"epoch": step / 10, "loss": 1.0, "lr": 0.1}, last_step=10)
    reporter.close()
    return (folder / "log.txt").read_text()


def test_waiting_for_data_is_told_once_with_what_to_change(tmp_path: Path, monkeypatch) -> None:
    text = lines_of(tmp_path / "slow", [0.9, 0.2, 0.3], monkeypatch)
    assert "waited for data 90%" in text and "waited for data 20% of the time, more than 5%" in text
    assert text.count("more than 5%") == 1 and "raise --threads" in text and "python -m shards bench" in text


def test_a_fast_run_and_the_first_record_say_nothing(tmp_path: Path, monkeypatch) -> None:
    assert "more than" not in lines_of(tmp_path / "fast", [0.9, 0.04, 0.0], monkeypatch)


@pytest.mark.usefixtures("one_rank")
def test_a_training_on_a_slow_source_says_so_and_what_to_change(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Worker.next

    def late(self: Worker) -> Any:
        time.sleep(0.5)
        return real(self)

    monkeypatch.setattr(Worker, "next", late)
    run = train(tiny_set, "slow", "--epochs", "1", "--no-tensorboard")
    shares = [each["wait_share"] for each in read_metrics(run / "metrics.jsonl") if each["kind"] == "train"]
    assert len(shares) == 4 and min(shares) > MOST_WAITING and max(shares) <= 1
    log = (run / "log.txt").read_text()
    assert log.count("more than 5%: raise --threads") == 1 and log.count("waited for data") == 5
