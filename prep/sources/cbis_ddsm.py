"""CBIS-DDSM as published: DICOM files and four case description tables; full mammograms, or lesions cut out of them.

Traps that its users report, all met here: paths in the tables end in a stray newline or bear Windows backslashes; the
file names in them (000000.dcm) are not those on disk (1-1.dcm); the two files in a lesion's folder, the cut-out and
the mask, have changed places in many rows. So a row is matched by the folder of its case, else by that of its series,
whatever lies above and below; and the mask is the file with the size of the whole mammogram. One mammogram stands in
a row a finding, and in both the tables of masses and of calcifications: it is taken once, with its worst finding.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from prep.dicom import pixel_size
from prep.places import there
from prep.records import RawDataset, Record
from prep.subgroups import of_row
from prep.tables import read_table
from shards.manifest import LabelView
from shards.metadata import Value

TABLES = {f"{kind}_case_description_{split}_set.csv": split for kind in ("mass", "calc") for split in ("train", "test")}
PATHOLOGIES = {"BENIGN_WITHOUT_CALLBACK": 0, "BENIGN": 1, "MALIGNANT": 2}
CASE = re.compile(r"(Mass|Calc)-(Training|Test)_P_\d+_(LEFT|RIGHT)_(CC|MLO)(_\d+)?")
IMAGES = {".dcm", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}
COLUMNS = (
    "patient_id",
    "left or right breast",
    "image view",
    "pathology",
    "image file path",
    "cropped image file path",
)
Folders = dict[str, list[Path]]


def folders_of(root: Path) -> Folders:
    """Every image below `root`, under the name of each folder that it lies in, sorted."""
    found: Folders = {}
    for path in root.rglob("*"):
        if path.suffix.lower() in IMAGES:
            for part in path.relative_to(root).parts[:-1]:
                found.setdefault(part, []).append(path)
    return {name: sorted(paths) for name, paths in found.items()}


def case_and_files(cell: str, folders: Folders) -> tuple[str, list[Path]]:
    """The case that a path of a table names, and the images in its folder, or in that of its series."""
    parts = "".join(cell.split()).replace("\\", "/").split("/")
    case = next((part for part in parts if CASE.fullmatch(part)), parts[0])
    series = parts[-2] if len(parts) > 1 else ""
    return case, folders.get(case) or folders.get(series) or []


def _area(path: Path) -> int:
    height, width = pixel_size(path)
    return height * width


def full_image(files: list[Path]) -> Path | None:
    """The mammogram of a case: the only file of its folder, or the largest."""
    return files[0] if len(files) == 1 else max(files, key=_area, default=None)


def cut_out(files: list[Path], full: Path | None) -> Path | None:
    """The lesion among the files of its folder: the smallest that has not the whole mammogram's size, as a mask has."""
    whole = pixel_size(full) if full else None
    smaller = [file for file in files if pixel_size(file) != whole]
    return min(smaller, key=_area, default=None) if full or len(files) > 1 else None


def _label(row: dict[str, str], where: str) -> int:
    if row["pathology"] not in PATHOLOGIES:
        raise ValueError(f"the pathology in {where} is none of {', '.join(PATHOLOGIES)}: is this the original table?")
    return PATHOLOGIES[row["pathology"]]


def _told(row: dict[str, str]) -> dict[str, Value]:
    """The tables of masses say breast_density, those of calcifications breast density."""
    named = {"side": "left or right breast", "view": "image view", "density": "breast density"}
    return of_row({"breast density": row.get("breast_density", "")} | {k: v for k, v in row.items() if v}, named)


def rows_of(root: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(where, official split, row) of each table that lies in `root`; one of the four is enough."""
    tables = {table: split for table, split in TABLES.items() if there(root / table, table)}
    if not tables:
        CBIS_DDSM.require(root, next(iter(TABLES)))
    for table, split in tables.items():
        for where, row in read_table(root / table, COLUMNS):
            yield where, split, row


def read_full(root: Path) -> Iterator[Record]:
    """Yield each mammogram once, with its worst finding."""
    CBIS_DDSM.require(root)
    folders, found = folders_of(root), dict[tuple[str, str, str], Record]()
    for where, split, row in rows_of(root):
        place = (row["patient_id"], row["left or right breast"], row["image view"])
        label, known = _label(row, where), found.get(place)
        if known is None or not there(known.path):
            case, files = case_and_files(row["image file path"], folders)
            path = full_image(files) or root / case / "missing.dcm"
            before = known.labels[0] or 0 if known else 0
            later = "test" if known and known.split == "test" else split
            told = _told(row)
            found[place] = Record(case, path, (max(label, before),), row["patient_id"], later, where, metadata=told)
        else:
            labels = (max(label, known.labels[0] or 0),)
            found[place] = replace(known, labels=labels, split="test" if split == "test" else known.split)
    yield from found.values()


def read_lesions(root: Path) -> Iterator[Record]:
    """Yield the cut-out of each row."""
    CBIS_DDSM.require(root)
    folders = folders_of(root)
    for where, split, row in rows_of(root):
        full = full_image(case_and_files(row["image file path"], folders)[1])
        case, files = case_and_files(row["cropped image file path"], folders)
        path = cut_out(files, full) or root / case / "missing.dcm"
        told = _told(row) | of_row(row, {"lesion": "abnormality type"})
        yield Record(f"{case} lesion", path, (_label(row, where),), row["patient_id"], split, where, metadata=told)


VIEWS = {
    "cancer-vs-rest": LabelView(
        classes=["benign", "cancer"],
        mapping={"0": 0, "1": 0, "2": 1},
        note="benign holds benign findings with and without callback: no mammogram of CBIS-DDSM is without a finding",
    ),
    "3class": LabelView(
        classes=["benign without callback", "benign", "cancer"], mapping={"0": 0, "1": 1, "2": 2}
    ),
}  # fmt: skip


def _dataset(name: str, read: Callable[[Path], Iterator[Record]], tree: str, *more: str) -> RawDataset:
    return RawDataset(
        name=name,
        citation="Lee et al., A curated mammography data set for use in computer-aided detection and diagnosis "
        "research, Sci. Data 4:170177, 2017",
        licence="CC BY 3.0",
        where="https://www.cancerimagingarchive.net/collection/cbis-ddsm/",
        tree=(*TABLES, tree),
        task="single-label",
        label_columns=("pathology",),
        views=VIEWS,
        default_view="cancer-vs-rest",
        target_metric="roc_auc",
        channels=1,
        group_by="patient",
        read=read,
        metadata=("side", "view", "density", *more),
        phantoms="CBIS-DDSM",
    )


CBIS_DDSM = _dataset("CBIS-DDSM", read_full, "…/Mass-Training_P_00001_LEFT_CC/…/*.dcm (at any depth)")
CBIS_DDSM_LESIONS = _dataset(
    "CBIS-DDSM-lesions", read_lesions, "…/Mass-Training_P_00001_LEFT_CC_1/…/*.dcm (at any depth)", "lesion"
)
