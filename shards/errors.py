"""What errors become on the command line: exit codes, the system's errors in words, output that nobody reads."""

import errno
import os
import sys

from shards.redaction import without_secrets

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_NOT_READ = 141  # as of programs that SIGPIPE ends

NEXT_STEPS = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "your quota is used up; free some of it, then run the same command again",
    errno.EFBIG: "free some space, then run the same command again",
    errno.EROFS: "choose another place (--out, or the folder that is named)",
    errno.EACCES: "choose another place, or have its rights changed",
    errno.EPERM: "choose another place, or have its rights changed",
    errno.EEXIST: "choose another place, or move it away",
    errno.ENOTDIR: "a file stands where a folder is wanted; choose another place",
    errno.EISDIR: "a folder stands where a file is wanted; choose another place",
    errno.ENOENT: "look for a mistake in the path",
    errno.EMFILE: "raise the limit of open files (ulimit -n 65536), then run the same command again",
}


def in_words(error: ValueError | OSError) -> str:
    """An error's text; one of the system's with its place and what to do instead of its number."""
    if not isinstance(error, OSError) or error.errno not in NEXT_STEPS:
        return str(error)
    place = f"{error.filename}: " if error.filename is not None else ""
    return f"{place}{error.strerror}: {NEXT_STEPS[error.errno]}"


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of an error's text that says something, without secrets, at most so many letters; its kind where
    it has none.
    """
    lines = [line.strip() for line in without_secrets(str(error)).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:most]


def flush_output() -> bool:
    """Send out what was printed; False where nobody reads it any more, and then the rest goes nowhere in silence.

    A full disk under our output ends the process with one line.
    """
    if sys.stdout is None:  # closed by who started us: what we print goes nowhere
        return True
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return False
        print(f"error: the output cannot be written: {in_words(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    return True
