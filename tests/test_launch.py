"""launch.sh's own part of a run: what it sends to other nodes, and how it stops. Run: pytest tests/test_launch.py

Its functions run under bash with commands of the test's in the place of deepspeed, pdsh and ssh; tests/test_ssh.py has
the real ones.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.run import words

ROOT = Path(__file__).resolve().parents[1]


def bash(code: str, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
    """Bash code behind the functions of launch.sh, in a group of its own."""
    functions = (ROOT / "launch.sh").read_text().split("\ncommand=${1:-help}\n")[0]
    functions = functions.replace("${BASH_SOURCE[0]}", str(ROOT / "launch.sh"))
    return subprocess.Popen(
        ["bash", "-c", f"{functions}\n{code}", "launch.sh", *arguments],
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def output_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=60)
        return process.returncode, text
    finally:
        process.kill()


@pytest.mark.parametrize(
    "sent", [[], [""], ["--train-operators", '[{"op": "Resize", "size": 8}]', "--name", "50%ü\n", ""]]
)
def test_flags_reach_other_nodes_whole(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = output_of(bash('remote_settings "$@"; grep ^MEDSHARD_WORDS= "$DS_ENV_FILE"; rm "$DS_ENV_FILE"', *sent))
    assert code == 0, text
    monkeypatch.setenv("MEDSHARD_WORDS", text.strip().removeprefix("MEDSHARD_WORDS="))
    assert words(["--local_rank=1"]) == ["--local_rank=1", *sent]
    assert words(["--seed", "1"]) == ["--seed", "1"]  # for this process alone
