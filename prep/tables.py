"""Reading the csv tables of raw datasets, with the blanks, empty columns and byte-order marks that they come with."""

import csv
import difflib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from prep.places import is_far, read_text


def read_table(path: Path, required: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("NAME.csv row 7", {column: cell}) a row; headers and cells are stripped, empty columns and rows dropped.

    Raises:
        ValueError: a required column is missing, or the file is no text table. No cell is ever quoted, nor a first
        row that may be no header: it may be private.
    """
    with open_table(path) as file:
        rows = csv.reader(file)
        try:
            header = [" ".join(name.split()) for name in next(rows, [])]
            if missing := [name for name in required if name not in header]:
                raise ValueError(f"{path.name} has no column {missing[0]!r}; {_has(header, missing[0], required)}")
            for row in rows:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    cells += [""] * (len(header) - len(cells))
                    yield f"{path.name} row {rows.line_num}", {n: c for n, c in zip(header, cells, strict=False) if n}
        except (csv.Error, UnicodeDecodeError):
            raise ValueError(f"{path.name} is not a csv table in UTF-8: is this the original file?") from None


def open_table(path: Path) -> TextIO:
    """The text of a table; of a store's, all of it at once.

    Raises:
        ValueError: no csv table in UTF-8.
    """
    if not is_far(path):
        return path.open(newline="", encoding="utf-8-sig")
    try:
        return io.StringIO(read_text(path), newline="")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not a csv table in UTF-8: is this the original file?") from None


def _has(header: list[str], wanted: str, required: tuple[str, ...]) -> str:
    """The columns where the first row surely is a header, since it has one of those wanted; else only what is near."""
    if set(header) & set(required):
        return f"it has {', '.join(filter(None, header))}"
    lower = {name.lower(): name for name in header}
    near = [lower[name] for name in difflib.get_close_matches(wanted.lower(), lower, n=1, cutoff=0.75)]
    return f"did you mean {near[0]!r}?" if near else f"none of its {len(header)}: does it begin with their names?"
