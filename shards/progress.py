"""A bar on a terminal, a line every half minute in a log, nothing where quiet is asked for."""

import io
import sys
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30
LINE = "{desc}: {n_fmt}/{total_fmt} {unit}s, {rate_fmt}{postfix}, {elapsed} gone, {remaining} left"


class LogLines(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm that writes whole lines, for files and pipes."""

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """A line of its own, once there is something to tell."""
        if self.n > self.initial:
            print(msg or str(self), file=self.fp, flush=True)
        return True

    def close(self) -> None:
        """The last line; what tqdm itself writes at the end is for a terminal."""
        if not self.disable:
            self.display()
            self.fp = io.StringIO()
        super().close()


def progress(total: int | None, what: str, unit: str, *, already: int = 0, quiet: bool = False) -> Any:
    """A progress bar on standard error for `total` units (None: not known), `already` of them done; use as tqdm's, with
    `update`.
    """
    options: dict[str, Any] = {"total": total, "initial": already, "desc": what, "unit": unit, "disable": quiet}
    if sys.stderr.isatty():
        return tqdm(**options, file=sys.stderr, smoothing=0.1)
    return LogLines(**options, file=sys.stderr, mininterval=LINE_SECONDS, maxinterval=1e9, bar_format=LINE)
