"""How every script of this project ends: one line for the user's mistake, a traceback only on request."""

import os
import select
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_NOT_READ = 141  # as of programs that SIGPIPE ends


def run_cli(main: Callable[[], int | None], *, debug: bool = False) -> NoReturn:
    """Run `main` and leave the process with its exit code.

    A ValueError or OSError is the user's to mend: its text goes to standard error in one line, exit code 2. Ctrl-C
    exits with 130 and says how to go on. Who reads our output may stop (`… | head`): not a word, 141. Everything else
    is ours and keeps its traceback.
    """
    try:
        code = main() or 0
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():  # a broken pipe to a process of ours is an error
            flush_output()
            sys.exit(EXIT_NOT_READ)
        if debug:
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code if flush_output() else EXIT_NOT_READ)


def flush_output() -> bool:
    """Send out what was printed; False where nobody reads it any more, and then the rest goes nowhere in silence."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _nobody_reads() -> bool:
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(events & select.POLLERR for _, events in poll.poll(0))
