"""One training of a study, as a process: done, stopped, or ended with its last words."""

import json
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import EXIT_INTERRUPTED
from train.lock import LOCK_FILE
from train.reporting import read_metrics
from train.rundir import METRICS_FILE, RESULTS_FILE
from train.stopping import EXIT_PREEMPTED

ROOT = Path(__file__).resolve().parents[1]
TAIL = 400  # characters of a failed run's last words
CHECKPOINT_SECONDS = 80  # submitit warns 90 seconds before the end
ALIVE_SECONDS = 30  # a trainer touches its lock every five
STOPS = (EXIT_PREEMPTED, EXIT_INTERRUPTED, -signal.SIGINT)  # of launch.sh; the last before it has begun a training
STOPPED = "stopped by a signal; the same command goes on"
_children: "set[subprocess.Popen[str]]" = set()  # of this process, for submitit's warning


@dataclass(frozen=True)
class Run:
    """One combination. `flags`: the trainer's, by field name; calling it runs it, or goes on with it."""

    name: str
    folder: Path
    flags: tuple[tuple[str, Any], ...]
    command: tuple[str, ...]  # what comes before the flags

    @property
    def results(self) -> dict[str, Any] | None:
        """What the run wrote at its end; None before."""
        path = self.folder / RESULTS_FILE
        return json.loads(path.read_text()) if path.is_file() else None

    @property
    def state(self) -> str:
        """ "done", "running" (here or on another machine), "stopped" before its end, or "waiting" for its start."""
        if self.results is not None:
            return "done"
        try:
            alive = time.time() - (self.folder / LOCK_FILE).stat().st_mtime < ALIVE_SECONDS
        except FileNotFoundError:
            alive = False
        return "running" if alive else "stopped" if self.folder.is_dir() else "waiting"

    @property
    def step(self) -> int:
        """The newest step on record; 0 before the first."""
        path = self.folder / METRICS_FILE
        return max((int(each["step"]) for each in read_metrics(path)), default=0) if path.is_file() else 0

    def __call__(self) -> str:
        """Run to the end. Returns "", STOPPED, or the last words of a failure."""
        if self.results is not None:
            return ""
        if self.folder.is_dir():
            words = ["--resume", str(self.folder)]
        else:
            words = [word for name, value in self.flags for word in flag(name, value)]
            words += ["--out", str(self.folder.parent), "--name", self.name]
        pipe = subprocess.PIPE
        with subprocess.Popen([*self.command, *words], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
            _children.add(process)
            told, wrong = process.communicate()
            _children.discard(process)
        if process.returncode in (0, *STOPS):
            return STOPPED if process.returncode else ""
        return (wrong.strip() or told.strip())[-TAIL:] or "no word"

    def checkpoint(self) -> Any:
        """Slurm takes the machine back: the run writes a checkpoint, and submitit submits it again, which goes on."""
        from submitit.helpers import DelayedSubmission

        under_way = list(_children)
        for process in under_way:
            process.send_signal(signal.SIGUSR1)
        for process in under_way:
            process.wait(CHECKPOINT_SECONDS)
        return DelayedSubmission(self)


def flag(name: str, value: Any) -> list[str]:
    """A field as words of the command line."""
    dashed = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{dashed}" if value else f"--no-{dashed}"]
    if isinstance(value, list) and all(isinstance(each, int | float) for each in value):
        value = ",".join(map(str, value))
    return [f"--{dashed}", json.dumps(value) if isinstance(value, list | dict) else str(value)]
