"""APTOS 2019 blindness detection: 3,662 labelled fundus photographs, diabetic retinopathy 0-4, no official split."""

from collections.abc import Iterator
from pathlib import Path

from prep.records import RawDataset, Record, whole_number
from prep.sources.idrid import VIEWS
from prep.splits import study_shuffle
from prep.tables import read_table

STUDY_HELD_OUT = 0.3


def read(root: Path) -> Iterator[Record]:
    """Yield the rows of train.csv; the test images of the competition have no labels and are not read."""
    APTOS2019.require(root, "train.csv", "train_images")
    for where, row in read_table(root / "train.csv", ("id_code", "diagnosis")):
        source = f"train_images/{row['id_code']}.png"
        grade = whole_number(row["diagnosis"], f"the diagnosis in {where}")
        yield Record(source, root / source, (grade,), source, None, where)


def study_split(root: Path, records: list[Record]) -> list[str]:
    """30 % held out as the published study did."""
    return study_shuffle(root, len(records), STUDY_HELD_OUT)


APTOS2019 = RawDataset(
    name="APTOS2019",
    citation="Asia Pacific Tele-Ophthalmology Society, APTOS 2019 Blindness Detection, Kaggle, 2019",
    licence="the competition's rules: no redistribution",
    where="https://www.kaggle.com/competitions/aptos2019-blindness-detection/data",
    tree=("train.csv (id_code,diagnosis)", "train_images/<id_code>.png"),
    task="single-label",
    label_columns=("diagnosis",),
    views=VIEWS,
    default_view="5 grades",
    target_metric="quadratic_kappa",
    channels=3,
    group_by="image",
    read=read,
    phantoms="APTOS2019",
    study_split=study_split,
    study_cached=True,
    notes=("no patient ids are published: images of one patient cannot be kept together",),
)
