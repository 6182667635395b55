"""Analyses that are stopped or killed at any moment answer in the end as if they had not been.

Run: pytest -m slow tests/test_interrupted_analyses.py. Processes are forked from one that has imported all scripts, so
that a signal meets the work and not the imports.
"""

from shards.script import run_cli

import importlib
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from made_runs import arguments, make_run

SCRIPTS: dict[str, tuple[str, ...]] = {
    "knn": (), "cka": ("--features", "tokens"), "l2": (), "reinit": (), "dimension": ("--split", "train"),
    "saliency": ("--cases", "3"), "probe": (), "embeddings": ("--splits", "test"), "attention": (),
    "fid": ("--split", "train"),
}  # fmt: skip
DISTURBANCES = (signal.SIGINT, signal.SIGKILL) * 2


def work(script: str, flags: list[str], log: str) -> None:
    """What the script does once it is imported, in a process whose Ctrl-C is as of a terminal."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    module, args = importlib.import_module(f"analysis.{script}"), arguments(Path(flags[0]), *flags[1:], script=script)
    run_cli(lambda: module.main(args))


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["made_runs", *(f"analysis.{name}" for name in SCRIPTS)])
    return context


def outcome(folder: Path) -> dict[str, bytes]:
    """What was written, but for its own place."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"") for path in files}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_answers_as_if_nothing_had_been(
    script: str, forks: ForkServerContext, tiny_set: Path, tmp_path: Path
) -> None:
    model = "deit_tiny_patch16_224" if script in ("attention", "cka") else "tf_efficientnet_lite0"
    run = make_run(tmp_path / "run", tiny_set, model, 32)
    chance, log = random.Random(script), tmp_path / "log"

    def started(out: Path) -> Any:
        more = ["--source", str(tiny_set)] if script == "fid" else []
        flags = [str(run), *SCRIPTS[script], *more, "--out", str(out)]
        process = forks.Process(target=work, args=(script, flags, str(log)))
        process.start()
        return process

    def undisturbed(out: Path) -> float:
        begun, process = time.monotonic(), started(out)
        process.join()
        assert process.exitcode == 0, log.read_text()
        return time.monotonic() - begun

    undisturbed(tmp_path / "warm")
    seconds = undisturbed(tmp_path / "calm")
    shutil.rmtree(tmp_path / "warm")
    for number in DISTURBANCES:
        log.unlink(missing_ok=True)
        process = started(tmp_path / "beaten")
        process.join(chance.uniform(0.02, 0.9) * seconds)
        if process.exitcode is None and log.is_file():
            os.kill(process.pid, number)
        process.join()
        said = log.read_text() if log.is_file() else ""
        assert process.exitcode in (0, 130, -signal.SIGKILL), said
        if process.exitcode == 130:
            assert said.endswith("\nstopped; run the same command to go on\n") and "Traceback" not in said
    undisturbed(tmp_path / "beaten")
    assert outcome(tmp_path / "beaten") == outcome(tmp_path / "calm")
