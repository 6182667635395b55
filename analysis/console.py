"""What a script says on the console."""

import sys
from collections.abc import Sequence
from pathlib import Path


def announce(path: Path, lines: Sequence[str]) -> None:
    """The result on the console: a few lines, and where the rest lies."""
    for line in lines:
        print(line)
    print(f"{path} and {path.with_suffix('.svg').name}")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text as aligned lines, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
