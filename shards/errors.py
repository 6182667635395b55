"""How every script of this project ends: one line for the user's mistake, a traceback only on request."""

import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run_cli(main: Callable[[], int | None], *, debug: bool = False) -> NoReturn:
    """Run `main` and leave the process with its exit code.

    A ValueError or OSError is the user's to mend: its text goes to standard error in one line, exit code 2. Ctrl-C
    exits with 130 and says how to go on. Everything else is ours and keeps its traceback.
    """
    try:
        code = main() or 0
    except (ValueError, OSError) as error:
        if debug:
            traceback.print_exc()
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nstopped; run the same command to go on", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.exit(code)
