"""The first import of every script: how it is interrupted while the others are still imported, and how it ends.

    from shards.script import run_cli  # no such module? source .venv/bin/activate

Importing torch takes seconds. Python would answer Ctrl-C in them with a traceback out of somebody else's code; as
nothing has begun, a script ends there as any program does, by the signal. ruff keeps this import above all others.
"""

import select
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

from shards.errors import (
    EXIT_INTERRUPTED,
    EXIT_NOT_READ,
    EXIT_USER_ERROR,
    flush_output,
    in_words,
)
from shards.redaction import hush_libraries, without_secrets

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("prep", "shards", "train", "analysis")


def run_cli(main: Callable[[], int | None], *, debug: bool = False) -> NoReturn:
    """Run `main` and leave the process with its exit code.

    A ValueError or OSError is the user's to mend: its text goes to standard error in one line, exit code 2. Ctrl-C
    exits with 130 and says how to go on. Who reads our output may stop (`… | head`): not a word, 141. Everything else
    is ours and keeps its traceback. None of it, nor what libraries log, holds a secret of a URL or the environment.
    """
    hush_libraries()
    sys.excepthook = _print_traceback
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = _interruptible(main) or 0
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():  # a broken pipe to a process of ours is an error
            flush_output()
            sys.exit(EXIT_NOT_READ)
        if debug:
            _print_traceback(type(error), error, error.__traceback__)
        print("error: " + without_secrets(" ".join(in_words(error).split())), file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code if flush_output() else EXIT_NOT_READ)


def _interruptible(main: Callable[[], int | None]) -> int | None:
    """Run `main`; what C code makes of Ctrl-C (torch, reading a storage: a ValueError) is Ctrl-C again."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        signal.default_int_handler(number, frame)

    python_listens = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if python_listens:
        signal.signal(signal.SIGINT, note)
    try:
        return main()
    except Exception as error:
        if came:
            raise KeyboardInterrupt from error
        raise
    finally:
        if python_listens:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _nobody_reads() -> bool:
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _is_running() -> bool:
    """Whether this process is a script of ours, not a notebook or a test that imports one."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    return file is not None and Path(file).resolve().parent in [ROOT / room for room in ROOMS]


def _begin() -> None:
    if find_spec("numpy") is None:
        print(
            f"error: {sys.executable} has none of the packages: ./launch.sh setup makes an environment that has, and "
            "source .venv/bin/activate enters it",
            file=sys.stderr,
        )
        sys.exit(EXIT_USER_ERROR)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as of nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if _is_running():
    _begin()
