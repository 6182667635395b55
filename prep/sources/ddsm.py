"""DDSM, whole mammograms in the layout of the published study: three lists of file names, the class in each name."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from prep.records import RawDataset, Record
from shards.manifest import LabelView

LISTS = "ddsm_raw_image_lists"
SOURCE_LABELS = {"normal": 0, "benign": 1, "cancer": 2}
CASE = re.compile(r"([A-D])[_-](\d{4})[_-]\d")  # a scanner's letter and the case number: B_3081_1.LEFT_CC


def case_of(name: str) -> str:
    """The patient's case, such as "B_3081"; a name without one is a group of its own."""
    found = CASE.search(name)
    return f"{found[1]}_{found[2]}" if found else name


def label_of(name: str, where: str) -> int:
    """0 normal, 1 benign, 2 cancer, from the first word of the file name."""
    word = name.split("_")[0].lower()
    if word not in SOURCE_LABELS:
        raise ValueError(f"the file name in {where} starts with none of normal_, benign_, cancer_")
    return SOURCE_LABELS[word]


def read(root: Path) -> Iterator[Record]:
    """Yield train, val and test in list order; NAME.png stands in for a listed file that is missing."""
    DDSM.require(root, "ddsm_raw", *(f"{LISTS}/{split}.txt" for split in ("train", "val", "test")))
    for split in ("train", "val", "test"):
        for number, line in enumerate((root / LISTS / f"{split}.txt").read_text().splitlines(), 1):
            if not (entry := line.strip().replace("\\", "/")):
                continue
            name, where = PurePosixPath(entry).name, f"{split}.txt row {number}"
            path = root / "ddsm_raw" / entry
            if not path.exists() and path.with_suffix(".png").exists():
                path = path.with_suffix(".png")
            yield Record(entry, path, (label_of(name, where),), case_of(name), split, where)


def study_split(root: Path, records: list[Record]) -> list[str]:
    """The lists as they are."""
    return [record.split or "train" for record in records]


VIEWS = {
    "2class": LabelView(
        classes=["normal", "benign or cancer"],
        mapping={"0": 0, "1": 1, "2": 1},
        note="the published study's two classes; it calls the second one Cancer, though benign findings are in it",
    ),
    "cancer-vs-rest": LabelView(classes=["normal or benign", "cancer"], mapping={"0": 0, "1": 0, "2": 1}),
    "3class": LabelView(classes=["normal", "benign", "cancer"], mapping={"0": 0, "1": 1, "2": 2}),
}

DDSM = RawDataset(
    name="DDSM",
    citation="Heath et al., The Digital Database for Screening Mammography, Proc. 5th Int. Workshop on Digital "
    "Mammography, 212-218, 2001",
    licence="public for research; cite the authors",
    where="http://www.eng.usf.edu/cvprg/mammography/database.html (converted to images, with the lists of the study)",
    tree=(
        "ddsm_raw/{normal,benign,cancer}_*",
        f"{LISTS}/train.txt",
        f"{LISTS}/val.txt",
        f"{LISTS}/test.txt (a path relative to ddsm_raw a line)",
    ),
    task="single-label",
    label_columns=("finding",),
    views=VIEWS,
    default_view="2class",
    target_metric="roc_auc",
    channels=1,
    group_by="case",
    read=read,
    phantoms="DDSM",
    study_split=study_split,
)
