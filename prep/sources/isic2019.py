"""ISIC 2019 training set: 25,331 dermoscopy images of 8 classes; metadata with lesion ids; no official split."""

from collections.abc import Iterator
from pathlib import Path

from prep.records import RawDataset, Record, whole_number
from prep.splits import study_shuffle
from prep.subgroups import of_row
from prep.tables import read_table
from shards.manifest import LabelView

TRUTH, METADATA = "ISIC_2019_Training_GroundTruth.csv", "ISIC_2019_Training_Metadata.csv"
CODES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
CLASSES = [
    "melanoma",
    "melanocytic nevus",
    "basal cell carcinoma",
    "actinic keratosis",
    "benign keratosis",
    "dermatofibroma",
    "vascular lesion",
    "squamous cell carcinoma",
]
STUDY_HELD_OUT = 0.2
TOLD = {"age": "age_approx", "sex": "sex", "site": "anatom_site_general"}


def find_images(root: Path) -> dict[str, Path]:
    """Every .jpg below `root` by its stem, whatever folders the archive was unpacked into."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg"):
            found.setdefault(path.stem, path)
    return found


def read(root: Path) -> Iterator[Record]:
    """Yield the rows of the ground truth. UNK rows are marked to be left out; a blank lesion id is its own group.

    Raises:
        ValueError: a row does not mark exactly one class.
    """
    ISIC2019.require(root, TRUTH, METADATA)
    rows = {row["image"]: row for _, row in read_table(root / METADATA, ("image", "lesion_id"))}
    images = find_images(root)
    for where, row in read_table(root / TRUTH, ("image", *CODES)):
        name = row["image"]
        marks = [whole_number(row.get(code) or "0", f"{code} in {where}") for code in (*CODES, "UNK")]
        if sorted(marks) != [0] * 8 + [1]:
            raise ValueError(f"{where} does not mark exactly one class: is this the original table?")
        skip = "class UNK" if marks[-1] else ""
        label = 0 if skip else marks.index(1)
        path = images.get(name, root / f"{name}.jpg")
        about = rows.get(name, {})
        lesion, told = about.get("lesion_id") or name, of_row(about, TOLD)
        yield Record(f"{name}.jpg", path, (label,), lesion, None, where, skip, metadata=told)


def study_split(root: Path, records: list[Record]) -> list[str]:
    """20 % held out as the published study did; it did not look at lesions."""
    return study_shuffle(root, len(records), STUDY_HELD_OUT)


ISIC2019 = RawDataset(
    name="ISIC2019",
    citation="Tschandl et al., The HAM10000 dataset, Sci. Data 5:180161, 2018; Codella et al., ISBI 2018; "
    "Combalia et al., BCN20000, arXiv:1908.02288",
    licence="CC BY-NC 4.0",
    where="https://challenge.isic-archive.com/data/#2019",
    tree=(TRUTH, METADATA, "ISIC_2019_Training_Input/ISIC_*.jpg (one or several folders of any name)"),
    task="single-label",
    label_columns=("diagnosis",),
    views={
        "8class": LabelView(classes=CLASSES, mapping={str(i): i for i in range(8)}),
        "malignant": LabelView(
            classes=["benign", "malignant or pre-malignant"],
            mapping={str(i): int(i in (0, 2, 3, 7)) for i in range(8)},
            note="melanoma, basal cell carcinoma, actinic keratosis and squamous cell carcinoma against the rest",
        ),
    },
    default_view="8class",
    target_metric="recall",
    channels=3,
    group_by="lesion",
    read=read,
    metadata=tuple(TOLD),
    phantoms="ISIC2019",
    study_split=study_split,
    study_cached=True,
)
