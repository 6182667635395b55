"""Every parser of the command line, as the scripts make it."""

import contextlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

from shards.__main__ import COMMANDS
from shards.__main__ import main as shards_main
from shards.command_line import Parser

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("prep", "train", "analysis")


def scripts() -> list[str]:
    """The scripts of the rooms, as `prep/make_shards.py`."""
    found = [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]
    return [path.relative_to(ROOT).as_posix() for path in found if '__name__ == "__main__"' in path.read_text()]


def every_parser() -> dict[str, Parser]:
    """Script, or `shards TOOL` → its parser."""
    made = {script: _asked(script, [script, "--help"]) for script in scripts()}
    return made | {f"shards {tool}": _asked(None, ["shards/__main__.py", tool, "--help"]) for tool in COMMANDS}


def _asked(script: str | None, argv: list[str]) -> Parser:
    """The parser whose help was asked for last: a tool's own comes after that of `python -m shards`."""
    met: list[Parser] = []

    def helped(self: Parser) -> str:
        met.append(self)
        return ""

    with patch.object(Parser, "format_help", helped), patch.object(sys, "argv", argv), _ended():
        if script is None:
            shards_main(argv[1:])
        else:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return met[-1]


@contextlib.contextmanager
def _ended() -> Iterator[None]:
    with contextlib.suppress(SystemExit):
        yield
