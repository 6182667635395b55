"""`--dataset csv`: any folder of images with a table of paths and labels, so that a user's own data need no code."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from prep.places import there
from prep.records import RawDataset, Record, whole_number
from prep.splits import SPLIT_NAMES, SPLITS
from prep.subgroups import of_row
from prep.tables import read_table
from shards.command_line import nearest
from shards.manifest import LabelView

METRICS = {  # those that training knows
    "single-label": (
        "accuracy", "balanced_accuracy", "precision", "recall", "f1", "kappa", "quadratic_kappa", "roc_auc",
        "roc_auc_ovr", "average_precision",
    ),
    "multi-label": ("accuracy", "precision", "recall", "f1", "roc_auc", "average_precision"),
}  # fmt: skip
MAX_CLASSES = 10_000
NUMBER = re.compile(r"-?\d+(\.\d+)?")
FEW_CLASSES, FEW_ROWS = 20, 5  # above so many classes, so many rows each, or they are taken for ids


@dataclass(frozen=True)
class TableColumns:
    """Which columns hold what. One label column makes classes, several make a multi-label set of 0, 1, -1 and blank.
    `metadata` takes fields of shards/metadata.py to columns.
    """

    table: Path
    path: str = "path"
    labels: tuple[str, ...] = ("label",)
    group: str | None = None
    split: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def required(self) -> tuple[str, ...]:
        """Every column that the table must have."""
        return (self.path, *self.labels, *filter(None, (self.group, self.split)), *self.metadata.values())


def class_names(columns: TableColumns) -> list[str]:
    """The distinct values of the one label column: numbers in their order, words in the alphabet's.

    Raises:
        ValueError: no value or too many; or so many for the rows that they look like ids, which class names would carry
            into the manifest.
    """
    name = columns.labels[0]
    counts = Counter(row[name] for _, row in read_table(columns.table, columns.required))
    del counts[""]
    if not counts or len(counts) > MAX_CLASSES:
        raise ValueError(f"column {name!r} has {len(counts)} values: 1 to {MAX_CLASSES} make classes")
    rows = counts.total()
    if rows < 2 * len(counts) > 4 or (len(counts) > FEW_CLASSES and rows < FEW_ROWS * len(counts)):
        raise ValueError(
            f"column {name!r} has {len(counts)} values in {rows} rows, which looks like ids or free text, and class "
            f"names travel with the set: classes want 2 rows each on average, {FEW_ROWS} where they are more than "
            f"{FEW_CLASSES}; name another --label-columns (ids go to --group-column)"
        )
    numbers = all(NUMBER.fullmatch(value) for value in counts)
    return sorted(counts, key=lambda value: (float(value), value)) if numbers else sorted(counts)


def table_dataset(
    name: str, columns: TableColumns, *, channels: Literal[1, 3] = 3, target_metric: str | None = None
) -> RawDataset:
    """A dataset from a table; ValueError where the table or a column is missing.

    Blank labels of a single-label table are left out and counted; of a multi-label one they are kept, and ignored by
    the view, as -1 is.
    """
    _check_roles(columns)
    if not there(columns.table, columns.table.name):
        raise ValueError(f"there is no table {columns.table}: name it with --table")
    single = len(columns.labels) == 1
    _check_metric(target_metric, METRICS["single-label" if single else "multi-label"])
    classes = class_names(columns) if single else list(columns.labels)
    if single:
        view = LabelView(classes=classes, mapping={str(i): i for i in range(len(classes))})
    else:
        view = LabelView(classes=classes, mapping={"0": 0, "1": 1}, note="blank and -1 are ignored")
    views = {"default": view}
    if not single:
        views["U-Zeros"] = LabelView(classes=classes, mapping={"0": 0, "1": 1, "": 0, "-1": 0})

    def read(root: Path) -> Iterator[Record]:
        dataset.require(root)
        for where, row in read_table(columns.table, columns.required):
            yield _record(root, row, columns, classes, where)

    dataset = RawDataset(
        name=name,
        citation="",
        licence="the owner's",
        where="your own folder",
        tree=(f"{columns.table.name} with columns {', '.join(columns.required)}", "images at the paths of the table"),
        task="single-label" if single else "multi-label",
        label_columns=columns.labels,
        views=views,
        default_view="default",
        target_metric=target_metric or ("balanced_accuracy" if single else "roc_auc"),
        channels=channels,
        metadata=tuple(columns.metadata),
        group_by=columns.group or "image",
        read=read,
        notes=() if columns.group else ("no group column was named: images of one patient are not kept together",),
    )
    return dataset


def _check_metric(given: str | None, known: tuple[str, ...]) -> None:
    if given is not None and given not in known:
        raise ValueError(f"--target-metric {given!r} is none of {', '.join(known)}{nearest(given, known)}")


def _check_roles(columns: TableColumns) -> None:
    """ValueError where one column is named as two of path, labels, group and split."""
    named = Counter((columns.path, *columns.labels, *filter(None, (columns.group, columns.split))))
    if twice := [name for name, count in named.items() if count > 1]:
        raise ValueError(
            f"column {twice[0]!r} is named twice among --path-column, --label-columns, --group-column, --split-column"
        )


def _record(root: Path, row: dict[str, str], columns: TableColumns, classes: list[str], where: str) -> Record:
    source = row[columns.path].replace("\\", "/")
    cells = [row[name] for name in columns.labels]
    skip = ""
    labels: tuple[int | None, ...]
    if len(cells) == 1:
        skip = "" if cells[0] else "blank label"
        labels = (classes.index(cells[0]),) if cells[0] else (0,)
    else:
        named = zip(columns.labels, cells, strict=True)
        labels = tuple(whole_number(cell, f"{name} in {where}") if cell else None for name, cell in named)
    group = (row[columns.group] if columns.group else "") or source
    told = of_row(row, columns.metadata)
    return Record(source, root / source, labels, group, _split(row, columns, where), where, skip, metadata=told)


def _split(row: dict[str, str], columns: TableColumns, where: str) -> str | None:
    if columns.split is None:
        return None
    name = SPLIT_NAMES.get(row[columns.split].lower())
    if name is None:
        raise ValueError(f"the split in {where} is none of {', '.join(SPLITS)}")
    return name
