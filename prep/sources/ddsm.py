"""DDSM: the published study's whole mammograms (lists of file names, the class in each) and its patches (lists of path
and label), and any folder of conversions that names the class in a path.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from prep.places import read_text, there
from prep.records import RawDataset, Record, whole_number
from prep.splits import SPLIT_NAMES
from prep.subgroups import of_row
from shards.manifest import LabelView
from shards.metadata import Value

LISTS = "ddsm_raw_image_lists"
SOURCE_LABELS = {"normal": 0, "benign": 1, "cancer": 2}
CONVERSIONS = {".png", ".tif", ".tiff", ".jpg", ".jpeg"}
UNSPECIFIED = 3  # the patches' lists of two classes do not say which of benign and cancer it is
CASE = re.compile(r"([A-D])[_-](\d{4})[_-]\d")  # a scanner's letter and the case number: B_3081_1.LEFT_CC

SIDE_AND_VIEW = re.compile(r"(LEFT|RIGHT)_(CC|MLO)")


def case_of(name: str) -> str:
    """The patient's case, such as "B_3081"; a name without one is a group of its own."""
    found = CASE.search(name)
    return f"{found[1]}_{found[2]}" if found else name


def told_by(name: str) -> dict[str, Value]:
    """Side and view where a name has them, as DDSM's own: B_3081_1.LEFT_CC."""
    found = SIDE_AND_VIEW.search(name)
    return of_row({"side": found[1], "view": found[2]}, {"side": "side", "view": "view"}) if found else {}


def label_of(name: str, where: str) -> int:
    """0 normal, 1 benign, 2 cancer, from the first word of the file name.

    Raises:
        ValueError: another word.
    """
    word = name.split("_")[0].lower()
    if word not in SOURCE_LABELS:
        raise ValueError(f"the file name in {where} starts with none of normal_, benign_, cancer_")
    return SOURCE_LABELS[word]


def read(root: Path) -> Iterator[Record]:
    """Yield train, val and test in list order; NAME.png stands in for a listed file that is missing."""
    DDSM.require(root, "ddsm_raw", *(f"{LISTS}/{split}.txt" for split in ("train", "val", "test")))
    for split in ("train", "val", "test"):
        for number, line in enumerate(read_text(root / LISTS / f"{split}.txt").splitlines(), 1):
            if not (entry := line.strip().replace("\\", "/")):
                continue
            name, where = PurePosixPath(entry).name, f"{split}.txt row {number}"
            path = root / "ddsm_raw" / entry
            if not there(path) and there(path.with_suffix(".png")):
                path = path.with_suffix(".png")
            yield Record(entry, path, (label_of(name, where),), case_of(name), split, where, metadata=told_by(name))


def read_patches(root: Path) -> Iterator[Record]:
    """Yield the patches of ddsm_labels/3class, or of 2class where that is all there is, in list order.

    Raises:
        ValueError: a line is not a path and a label.
    """
    DDSM_PATCHES.require(root, "ddsm_patches")
    three = root / "ddsm_labels" / "3class"
    given = any(there(three / f"{split}.txt") for split in ("train", "val", "test"))
    folder = three if given else root / "ddsm_labels" / "2class"
    DDSM_PATCHES.require(root, *(f"ddsm_labels/{folder.name}/{split}.txt" for split in ("train", "val", "test")))
    known = (0, 1, 2) if folder.name == "3class" else (0, UNSPECIFIED)
    for split in ("train", "val", "test"):
        for number, line in enumerate(read_text(folder / f"{split}.txt").splitlines(), 1):
            if not line.strip():
                continue
            where = f"{folder.name}/{split}.txt row {number}"
            entry, _, cell = line.strip().replace("\\", "/").rpartition(" ")
            label = whole_number(cell, f"the label in {where}")
            if not 0 <= label < len(known) or not entry:
                raise ValueError(
                    f"{where} is not a path and a label of 0..{len(known) - 1}: is this the original list?"
                )
            path = root / "ddsm_patches" / entry.strip()
            if not there(path) and there(path.with_suffix(".png")):
                path = path.with_suffix(".png")
            yield Record(entry.strip(), path, (known[label],), case_of(entry), split, where, metadata=told_by(entry))


def class_in(source: PurePosixPath) -> int | None:
    """The class that the file name or the nearest folder starts with, such as benigns/case0001; None for none."""
    for part in reversed(source.parts):
        for word, label in (*SOURCE_LABELS.items(), ("malignant", SOURCE_LABELS["cancer"])):
            if part.lower().startswith(word):
                return label
    return None


def read_folder(root: Path) -> Iterator[Record]:
    """Yield every image below `root`; a path without a class is left out and counted."""
    DDSM_FOLDER.require(root)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in CONVERSIONS)
    for number, path in enumerate(files, 1):
        source = PurePosixPath(path.relative_to(root).as_posix())
        label = class_in(source)
        split = next((SPLIT_NAMES[part.lower()] for part in source.parts[:-1] if part.lower() in SPLIT_NAMES), None)
        skip = "" if label is not None else "no folder and no file name starts with normal, benign or cancer"
        told = told_by(str(source))
        yield Record(
            str(source), path, (label or 0,), case_of(str(source)), split, f"image {number}", skip, metadata=told
        )


def study_split(root: Path, records: list[Record]) -> list[str]:
    """The lists as they are."""
    return [record.split or "train" for record in records]


VIEWS = {
    "2class": LabelView(
        classes=["normal", "benign or cancer"],
        mapping={"0": 0, "1": 1, "2": 1},
        note="the first class holds normal images alone, the second benign and cancer: the published study's two "
        "classes, of which it calls the second Cancer",
    ),
    "cancer-vs-rest": LabelView(
        classes=["normal or benign", "cancer"],
        mapping={"0": 0, "1": 0, "2": 1},
        note="the first class holds normal and benign, the second cancer alone",
    ),
    "3class": LabelView(classes=["normal", "benign", "cancer"], mapping={"0": 0, "1": 1, "2": 2}),
}


def _dataset(
    name: str, read: Callable[[Path], Iterator[Record]], tree: tuple[str, ...], views: dict[str, LabelView]
) -> RawDataset:
    return RawDataset(
        name=name,
        citation="Heath et al., The Digital Database for Screening Mammography, Proc. 5th Int. Workshop on Digital "
        "Mammography, 212-218, 2001",
        licence="public for research; cite the authors",
        where="http://www.eng.usf.edu/cvprg/mammography/database.html (converted to images)",
        tree=tree,
        task="single-label",
        label_columns=("finding",),
        views=views,
        default_view="2class",
        target_metric="roc_auc",
        channels=1,
        group_by="case",
        read=read,
        metadata=("side", "view"),
        phantoms=name,
        study_split=None if name == "DDSM-folder" else study_split,
    )


_LISTS = (f"{LISTS}/train.txt", f"{LISTS}/val.txt", f"{LISTS}/test.txt (a path relative to ddsm_raw a line)")
DDSM = _dataset("DDSM", read, ("ddsm_raw/{normal,benign,cancer}_*", *_LISTS), VIEWS)
DDSM_PATCHES = _dataset(
    "DDSM-patches",
    read_patches,
    (
        "ddsm_patches/…",
        "ddsm_labels/{2class,3class}/{train,val,test}.txt (a path relative to ddsm_patches and a label)",
    ),
    VIEWS | {"2class": VIEWS["2class"].model_copy(update={"mapping": {"0": 0, "1": 1, "2": 1, str(UNSPECIFIED): 1}})},
)
DDSM_FOLDER = _dataset(
    "DDSM-folder", read_folder, ("{normal,benign,cancer}*/….png, .tif or .jpg, at any depth",), VIEWS
)
