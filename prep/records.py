"""What a reader of a raw dataset yields, and what it states of the dataset."""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from prep.places import is_far, there
from prep.whole_slides import Region
from shards.manifest import LabelView
from shards.metadata import Metadata
from shards.redaction import shown

PHANTOM_MARKER = "PHANTOM.txt"  # in a raw folder: what lies here is synthetic


@dataclass(frozen=True)
class Record:
    """One image of a raw dataset.

    `source` names it within the raw folder and is private, like `group` (patient, lesion or slide; images of one group
    never part). `labels` are source values, one a label column, None for a blank. `split` is the official one, if any.
    `where` tells the user which row it came from ("train.csv row 7") without giving anything private away.
    A record with a reason in `skip` is left out and counted. `row` is the image's row where `path` is an HDF5 file,
    `region` the tile's place where it is a slide. `metadata` is what the table tells of shards/metadata.py's list.
    """

    source: str
    path: Path
    labels: tuple[int | None, ...]
    group: str
    split: str | None = None
    where: str = ""
    skip: str = ""
    row: int | None = None
    region: Region | None = None
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class RawDataset:
    """One public dataset: how to read it, and all that the manifest tells of it.

    `read(root)` yields records in a fixed order; `study_split(root, records)`, where the published study had its own
    rule, gives a split a record; `study_twice` the records (by number) that it had in a second split, and in which;
    `study_cached`: a val_ids.json in the raw folder wins. `tree` is the expected layout, one path a line, `phantoms`
    the layout that prep/phantoms.py can draw in its stead, `unpack(root)`, where there is one, unpacks once what cannot
    be read packed; `auto_split` is what `--split auto` means here; `metadata` are the fields that its
    tables tell.
    """

    name: str
    citation: str
    licence: str
    where: str
    tree: tuple[str, ...]
    task: Literal["single-label", "multi-label"]
    label_columns: tuple[str, ...]
    views: dict[str, LabelView]
    default_view: str
    target_metric: str
    channels: Literal[1, 3]
    group_by: str
    read: Callable[[Path], Iterator[Record]]
    study_split: Callable[[Path, list[Record]], list[str]] | None = None
    study_cached: bool = False
    study_twice: Callable[[Path, list[Record]], list[tuple[int, str]]] | None = None
    knn_k: int = 200
    notes: tuple[str, ...] = field(default=())
    phantoms: str = ""
    unpack: Callable[[Path], None] | None = None
    auto_split: Literal["auto", "none"] = "auto"
    metadata: tuple[str, ...] = ()

    @property
    def source_values(self) -> set[int | None]:
        """Every label value that some view knows."""
        values = {value for view in self.views.values() for value in view.mapping}
        return {int(value) if value else None for value in values}

    def require(self, root: Path, *paths: str) -> None:
        """ValueError in one line, with where to get the data, unless all `paths` exist under `root` and it is not
        empty.
        """
        if is_far(root):  # a web server without listings shows files, no folders
            missing = [path for path in paths if "." in path and not there(root / path, f"{shown(str(root))}/{path}")]
            if not missing:
                return
            problem = f"{shown(str(root))} lacks {missing[0]}"
        elif not root.is_dir():
            problem = f"there is no folder {root}"
        elif not any(root.iterdir()):
            problem = f"the folder {root} is empty"
        elif missing := [path for path in paths if not (root / path).exists()]:
            problem = f"{root} lacks {missing[0]}"
        else:
            return
        stand_in = ""
        if self.phantoms and not is_far(root):
            command = shlex.join(["python", "prep/phantoms.py", "--dataset", self.phantoms, "--out", str(root)])
            stand_in = f" As a stand-in, draw phantoms: {command}"
        tree = " | ".join(self.tree)
        raise ValueError(f"{self.name}: {problem}. Get the dataset from {self.where}; expected: {tree}.{stand_in}")


def whole_number(text: Any, what: str) -> int:
    """A label from a table cell: '3' and '3.0' are 3; ValueError naming `what` (never the cell: it may be private)."""
    try:
        number = float(text)
    except (TypeError, ValueError):
        raise ValueError(f"{what} is not a number: is this the original table?") from None
    if not number.is_integer():  # nor are infinity and "nan"
        raise ValueError(f"{what} is not a whole number: is this the original table?")
    return int(number)
