"""Tab, as a person presses it: an interactive bash in a terminal of its own."""

import os
import pty
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_SECONDS = 120
PROMPT = "ready> "


class Terminal:
    """A bash that has read `./launch.sh completion`."""

    def __init__(self) -> None:
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.chdir(ROOT)
            os.environ |= {"TERM": "dumb", "INPUTRC": "/dev/null", "PS1": PROMPT, "HISTFILE": ""}
            os.execvp("bash", ["bash", "--norc", "--noprofile", "-i"])
        self.type("source <(./launch.sh completion)\n", f"completion\\)\r*\n.*{PROMPT}")

    def type(self, keys: str, wanted: str) -> str:
        """What the terminal shows from these keys on until it matches `wanted`, or until patience ends."""
        os.write(self.file, keys.encode())
        shown, end = "", time.monotonic() + PATIENCE_SECONDS
        while not re.search(wanted, shown, re.S) and time.monotonic() < end:
            if select.select([self.file], [], [], 0.2)[0]:
                shown += os.read(self.file, 4096).decode(errors="replace")
        return shown

    def close(self) -> None:
        """End the shell."""
        os.write(self.file, b"\x15exit\n")
        os.waitpid(self.process, 0)
        os.close(self.file)


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("./launch.sh do", "ctor "),
        ("./launch.sh doctor --host", "file "),
        ("python train/run.py --ba", "lance "),
        ("python -m shards res", "hard "),
        ("python -m shards view --pre", "set "),
        ("python -m shards view data --preset hist", "ology "),
        ("python prep/make_shards.py --dataset IDR", "iD "),
        ("python prep/phantoms.py --out x --dataset CheX", "pert "),
        ("python pypro", "ject.toml"),  # what is not ours is the shell's
    ],
)
def test_tab_completes_the_word(terminal: Terminal, typed: str, completed: str) -> None:
    shown = terminal.type(f"{typed}\t", re.escape(typed + completed))
    terminal.type("\x15\n", f"\n{PROMPT}")
    assert typed + completed in shown, shown


def test_two_tabs_show_what_there_is(terminal: Terminal) -> None:
    shown = terminal.type("python -m shards \t\t", "view")
    shown += terminal.type("\x15\n", f"\n{PROMPT}")
    for tool in ("info", "check", "index", "plan", "bench", "view", "sheet", "reshard", "split", "merge"):
        assert re.search(rf"\b{tool}\b", shown), shown
    assert "rror" not in shown and "sage" not in shown
