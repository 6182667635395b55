"""A wish to stop (SIGTERM, Slurm's SIGUSR1, a first Ctrl-C), noted from the start of a run to its end.

The training asks for it between steps and parts of an evaluation, on all ranks together, and stops with a checkpoint.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shards.errors import EXIT_INTERRUPTED

EXIT_PREEMPTED = 75
NOTED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(Exception):
    """A signal asked the run to stop; a checkpoint lies ready."""


class Wish:
    """Notes the signals instead of dying of them, for as long as it is entered. A second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Wish":
        self._old = {number: signal.signal(number, self._note) for number in NOTED}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGUSR1, which launch.sh makes of every wish to stop, end the process: what it does leaves nothing half-done.

    It comes ignored from launch.sh.
    """
    old = signal.signal(signal.SIGUSR1, lambda *_: os._exit(EXIT_PREEMPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, old)


@contextmanager
def ending_while_waiting() -> Iterator[None]:
    """Let any of these signals end the process while it waits for the other ranks, with nothing written so far.

    That wait is in C, where no handler of Python's runs until it is over: half an hour, where the others have died.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(reading, 1)[0]:
            if number in NOTED:
                print("stopped while waiting for the other ranks; nothing had begun", file=sys.stderr, flush=True)
                os._exit(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_PREEMPTED)

    watching = threading.Thread(target=watch, name="signals", daemon=True)
    watching.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, b"\0")
        watching.join()
        os.close(reading)
        os.close(writing)
