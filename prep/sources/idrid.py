"""IDRiD, disease grading: 413 + 103 fundus photographs, diabetic retinopathy 0-4, official test split.

File names repeat across the two folders (both have IDRiD_001.jpg), the training table has nine empty columns, and one
header ends in a blank. No patient ids are published, so every image is a group of its own.
"""

from collections.abc import Iterator
from pathlib import Path

from prep.records import RawDataset, Record, whole_number
from prep.tables import read_table
from shards.manifest import LabelView

BASE = "B. Disease Grading"
PARTS = (
    ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv", "train"),
    ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv", "test"),
)
GRADES = ["no DR", "mild DR", "moderate DR", "severe DR", "proliferative DR"]
VIEWS = {
    "5 grades": LabelView(classes=GRADES, mapping={str(i): i for i in range(5)}),
    "referable": LabelView(
        classes=["grade 0-1", "grade 2-4"],
        mapping={str(i): int(i >= 2) for i in range(5)},
        note="referable retinopathy: moderate or worse",
    ),
}


def read(root: Path) -> Iterator[Record]:
    """Yield both official parts in table order."""
    base = root if root.name == BASE else root / BASE
    IDRID.require(root)
    IDRID.require(base, *(f"2. Groundtruths/{table}" for _, table, _ in PARTS), "1. Original Images")
    for folder, table, split in PARTS:
        for where, row in read_table(base / "2. Groundtruths" / table, ("Image name", "Retinopathy grade")):
            source = f"{folder}/{row['Image name']}.jpg"
            grade = whole_number(row["Retinopathy grade"], f"the grade in {where}")
            yield Record(source, base / "1. Original Images" / source, (grade,), source, split, where)


IDRID = RawDataset(
    name="IDRiD",
    citation="Porwal et al., Indian Diabetic Retinopathy Image Dataset (IDRiD), Data 3(3):25, 2018",
    licence="CC BY 4.0",
    where="https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",
    tree=tuple(f"{BASE}/1. Original Images/{f}/IDRiD_001.jpg" for f, _, _ in PARTS)
    + tuple(f"{BASE}/2. Groundtruths/{t}" for _, t, _ in PARTS),
    task="single-label",
    label_columns=("Retinopathy grade",),
    views=VIEWS,
    default_view="5 grades",
    target_metric="quadratic_kappa",
    channels=3,
    group_by="image",
    read=read,
    phantoms="IDRiD",
    notes=("no patient ids are published: images of one patient cannot be kept together",),
)
