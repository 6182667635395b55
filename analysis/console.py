"""What a script says on the console."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.command_line import tell


def announce(args: argparse.Namespace, path: Path, lines: Sequence[str]) -> None:
    """The result NAME.json on the console: a few lines and where the rest lies, or what --json and --quiet ask for."""
    where = f"{path} and {path.with_suffix('.svg').name}"
    tell(args, json.loads(path.read_text(encoding="utf-8")), "\n".join([*lines, where]))
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
