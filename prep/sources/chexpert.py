"""CheXpert: 224,316 chest radiographs with 14 labels of 1, 0, -1 (uncertain) or blank; full and -small sets.

The index keeps the values of the table. What to do with -1 and blank is a view. "No Finding" depends on the other
labels under each policy, which no map of single values can say, so each policy has a derived column for it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from prep.places import there
from prep.records import RawDataset, Record, whole_number
from prep.subgroups import of_row
from prep.tables import read_table
from shards.manifest import LabelView
from shards.metadata import Value

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
POLICIES = {"U-Zeros": 0, "U-Ones": 1, "U-Ignore": None}  # what -1 becomes; blank is 0 in all of them
TOLD = {"age": "Age", "sex": "Sex"}
PATIENT = re.compile(r"patient\d+")


def no_finding(values: tuple[int | None, ...], uncertain: int | None) -> int:
    """ "No Finding" under a policy: as given, or 1 where every label is 0 after it; -1 where that stays uncertain."""
    if values[0] == 1:
        return 1
    after = [uncertain if value == -1 else (value or 0) for value in values]
    if any(value == 1 for value in after):
        return 0
    return -1 if None in after else 1


def reader(view: str) -> Callable[[Path], Iterator[Record]]:
    """The reader of "all", "frontal" or "lateral" images."""

    def read(root: Path) -> Iterator[Record]:
        CHEXPERT.require(root, "train.csv")
        for table, split in (("train.csv", "train"), ("valid.csv", "val")):
            if not there(root / table, table):
                continue
            for where, row in read_table(root / table, ("Path", *FINDINGS)):
                if view != "all" and row.get("Frontal/Lateral", view).lower() != view:
                    continue
                yield _record(root, row, split, where)

    return read


def _record(root: Path, row: dict[str, str], split: str, where: str) -> Record:
    source = PurePosixPath(row["Path"])
    patient = PATIENT.search(row["Path"])
    if patient is None:
        raise ValueError(f"the Path in {where} names no patient: is this the original table?")
    cells = ((name, row[name]) for name in FINDINGS)
    values = tuple(whole_number(cell, f"{name} in {where}") if cell else None for name, cell in cells)
    derived = tuple(no_finding(values, uncertain) for uncertain in POLICIES.values())
    # The first folder of Path is the archive's own name, which users rename.
    path = root.joinpath(*source.parts[1:])
    told = of_row(row, TOLD)
    return Record(str(source), path, (*values, *derived), patient[0], split, where, metadata=told | _view(row))


def _view(row: dict[str, str]) -> dict[str, Value]:
    """AP or PA where the table says so, else frontal or lateral."""
    return of_row(row, {"view": "AP/PA"}) or of_row(row, {"view": "Frontal/Lateral"})


def study_split(root: Path, records: list[Record]) -> list[str]:
    """The published study's cuts: train.csv sorted by Path, sliced by row *labels*, ends included.

    T = int(.2 N) + 15. Held out is all up to the row labelled T, train starts at that row; val ends at the row labelled
    half of the held out, test starts there. Those two rows were in two splits each: here they go to test, under
    `--split study-exact` to both (`study_twice`). valid.csv is not used.
    """
    place, threshold, half = _study_cuts(records)
    splits = [""] * len(records)
    for label, position in place.items():
        splits[label] = "train" if position > place[threshold] else "val" if position < place[half] else "test"
    return splits


def study_twice(root: Path, records: list[Record]) -> list[tuple[int, str]]:
    """The two rows at the cuts, which the study had in train and test, and in val and test."""
    _, threshold, half = _study_cuts(records)
    return [(threshold, "train"), (half, "val")]


def _study_cuts(records: list[Record]) -> tuple[dict[int, int], int, int]:
    """Place after the sort of each row of train.csv, and the rows where train begins and where test begins."""
    own = [i for i, record in enumerate(records) if record.split == "train"]
    order = sorted(own, key=lambda i: records[i].source)
    place = {label: position for position, label in enumerate(order)}
    threshold = int(len(own) * 0.2) + 15
    if threshold not in place:
        raise ValueError(f"the study's split needs more than {threshold} images, train.csv has {len(own)}")
    half = (place[threshold] + 1) // 2
    if half not in place or place[half] > place[threshold]:
        raise ValueError("the study's cut falls outside its held-out part: this is not the original train.csv")
    return place, threshold, half


def _views() -> dict[str, LabelView]:
    notes = {"U-Zeros": "uncertain is negative, as in the published study", "U-Ones": "uncertain is positive"}
    views = {}
    for name, uncertain in POLICIES.items():
        mapping = {"1": 1, "0": 0, "": 0} | ({} if uncertain is None else {"-1": uncertain})
        classes = [f"No Finding ({name})", *FINDINGS[1:]]
        views[name] = LabelView(classes=classes, mapping=mapping, note=notes.get(name, "uncertain is ignored"))
    return views


def _dataset(name: str, view: str) -> RawDataset:
    return RawDataset(
        name=name,
        citation="Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels, AAAI 2019",
        licence="Stanford University Dataset Research Use Agreement: no redistribution",
        where="https://stanfordmlgroup.github.io/competitions/chexpert/",
        tree=("train.csv", "valid.csv", "train/patient00001/study1/view1_frontal.jpg"),
        task="multi-label",
        label_columns=FINDINGS + tuple(f"No Finding ({policy})" for policy in POLICIES),
        views=_views(),
        default_view="U-Zeros",
        target_metric="roc_auc",
        channels=1,
        group_by="patient",
        read=reader(view),
        metadata=(*TOLD, "view"),
        phantoms="CheXpert",
        study_split=study_split if view == "all" else None,
        study_twice=study_twice if view == "all" else None,
    )


CHEXPERT = _dataset("CheXpert", "all")
CHEXPERT_FRONTAL = _dataset("CheXpert-frontal", "frontal")
CHEXPERT_LATERAL = _dataset("CheXpert-lateral", "lateral")
