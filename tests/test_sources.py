"""Readers: the layouts and their traps, and what a user is told when the raw folder is not what it should be."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from prep.phantoms import draw_phantoms
from prep.planning import read_records
from prep.records import Record, whole_number
from prep.sources import DATASETS, find_dataset
from prep.sources.chexpert import FINDINGS, no_finding, study_split, study_twice
from prep.sources.ddsm import case_of
from prep.subgroups import DICOM_FIELDS
from prep.tables import read_table
from shards.manifest import LabelView


def test_unknown_dataset_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'aptos': did you mean APTOS2019\? known: .*DDSM.*IDRiD"):
        find_dataset("aptos")


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_states_what_a_manifest_needs(name: str) -> None:
    dataset = DATASETS[name]
    assert (dataset.citation or name == "slides") and dataset.licence and dataset.where and dataset.tree
    assert isinstance(dataset.views[dataset.default_view], LabelView)
    assert dataset.source_values


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", DATASETS)
def test_the_page_says_of_every_dataset_what_its_reader_says(name: str) -> None:
    page, dataset = flat((Path(__file__).parents[1] / "docs" / "datasets.md").read_text()), DATASETS[name]
    for text in (f"`{name}`", dataset.citation, dataset.licence, dataset.where.split(" ")[0]):
        assert text in page, f"docs/datasets.md lacks {text!r} of {name}"
    for view in dataset.views:
        assert f"`{view}`" in page, f"docs/datasets.md lacks view {view} of {name}"


@pytest.mark.parametrize("name", DATASETS)
def test_the_page_says_which_metadata_each_dataset_tells(name: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text()
    assert f"| `{name}` | {', '.join(DATASETS[name].metadata) or 'none'} |" in page
    assert f"tell {', '.join(DICOM_FIELDS)} where" in page


def test_a_view_that_joins_classes_says_what_is_in_each() -> None:
    for name in ("DDSM", "DDSM-patches", "DDSM-folder"):
        views = DATASETS[name].views
        assert "first class holds normal images alone, the second benign and cancer" in views["2class"].note
        assert "first class holds normal and benign, the second cancer alone" in views["cancer-vs-rest"].note
        assert [views["cancer-vs-rest"].mapping[label] for label in "012"] == [0, 0, 1]


ANY_FOLDER = {"DDSM-folder", "slides", "Camelyon-slides"}  # which have no table that could be missing
STATES = [(name, state) for name in DATASETS for state in ("missing", "empty", "wrong")[: 3 - (name in ANY_FOLDER)]]


@pytest.mark.parametrize(("name", "state"), STATES)
def test_a_raw_folder_that_is_not_there_says_where_to_get_it(name: str, state: str, tmp_path: Path) -> None:
    root = tmp_path / name
    if state != "missing":
        root.mkdir()
    if state == "wrong":
        (root / "readme.txt").write_text("")
    with pytest.raises(ValueError) as error:
        list(DATASETS[name].read(root))
    text = str(error.value)
    assert DATASETS[name].where in text
    assert DATASETS[name].tree[0] in text
    assert f"python prep/phantoms.py --dataset {DATASETS[name].phantoms} --out " in text


def test_the_stand_in_is_a_command_to_paste(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--dataset DDSM --out '.*/my data'"):
        list(DATASETS["DDSM"].read(tmp_path / "my data"))


@pytest.mark.parametrize("cell", ["", "x", "nan", "inf", "-inf", "1.5"])
def test_a_cell_that_is_no_whole_number_is_named_by_its_place(cell: str) -> None:
    with pytest.raises(ValueError, match=r"the grade in row 3 is not a (whole )?number: is this the original table\?"):
        whole_number(cell, "the grade in row 3")


def test_idrid_real_files(real_data: Path) -> None:
    records = list(DATASETS["IDRiD"].read(real_data / "idrid-256"))
    assert Counter(record.split for record in records) == {"train": 413, "test": 103}
    assert len({record.source for record in records}) == 516  # names repeat across the folders, sources do not
    assert all(record.path.is_file() for record in records)
    train = Counter(record.labels[0] for record in records if record.split == "train")
    assert [train[grade] for grade in range(5)] == [134, 20, 136, 74, 49]
    inside = list(DATASETS["IDRiD"].read(real_data / "idrid-256" / "B. Disease Grading"))
    assert [r.source for r in inside] == [r.source for r in records]


def test_ddsm_cases_stay_together_and_labels_come_from_names(tmp_path: Path) -> None:
    draw_phantoms("DDSM", tmp_path, 30, size=64, quiet=True)
    records = list(DATASETS["DDSM"].read(tmp_path))
    assert {record.labels[0] for record in records} == {0, 1, 2}
    for record in records:
        assert record.source.startswith(("normal", "benign", "cancer")[record.labels[0] or 0])
    assert case_of("cancer_05-C_0073_1.RIGHT_CC.png") == "C_0073"
    assert case_of("benign_3.png") == "benign_3.png"


def test_ddsm_name_without_a_class_is_told_by_row_not_by_name(tmp_path: Path) -> None:
    draw_phantoms("DDSM", tmp_path, 12, size=64, quiet=True)
    listed = tmp_path / "ddsm_raw_image_lists" / "val.txt"
    listed.write_text(listed.read_text() + "\nDOE_JANE_1.png\n")
    row = len(listed.read_text().splitlines())
    with pytest.raises(ValueError, match=f"val.txt row {row}") as error:
        list(DATASETS["DDSM"].read(tmp_path))
    assert "DOE" not in str(error.value)


def test_ddsm_png_stands_in_and_windows_slashes_are_read(tmp_path: Path) -> None:
    draw_phantoms("DDSM", tmp_path, 12, size=64, quiet=True)
    folder = tmp_path / "ddsm_raw" / "cases"
    folder.mkdir()
    (folder / "cancer_1.png").write_bytes(b"x")
    (tmp_path / "ddsm_raw_image_lists" / "val.txt").write_text("cases\\cancer_1.LJPEG\n")
    record = next(r for r in DATASETS["DDSM"].read(tmp_path) if r.split == "val")
    assert record.path == folder / "cancer_1.png"


def test_tables_with_blanks_marks_and_empty_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("\ufeffImage name, Grade ,,\r\n a ,3,,\r\n,,,\r\nb,1\r\n".encode())
    assert list(read_table(path, ("Image name", "Grade"))) == [
        ("t.csv row 2", {"Image name": "a", "Grade": "3"}),
        ("t.csv row 4", {"Image name": "b", "Grade": "1"}),
    ]
    with pytest.raises(ValueError, match=r"t\.csv has no column 'label'; none of its 4: does it begin"):
        list(read_table(path, ("label",)))
    path.write_bytes(b"a\xff\xfe,b\n")
    with pytest.raises(ValueError, match="is not a csv table"):
        list(read_table(path, ("a",)))


def test_a_grade_that_is_no_number_is_told_without_quoting_it(tmp_path: Path) -> None:
    draw_phantoms("APTOS2019", tmp_path, 10, size=64, quiet=True)
    table = tmp_path / "train.csv"
    table.write_text(table.read_text() + "zz,Jane Doe\n")
    with pytest.raises(ValueError, match=r"the diagnosis in train\.csv row 12 is not a number") as error:
        list(DATASETS["APTOS2019"].read(tmp_path))
    assert "Jane" not in str(error.value)


def test_isic_leaves_out_unknowns_counts_them_and_keeps_lesions_together(tmp_path: Path) -> None:
    draw_phantoms("ISIC2019", tmp_path, 24, size=64, quiet=True)
    truth = tmp_path / "ISIC_2019_Training_GroundTruth.csv"
    text = truth.read_text()
    assert "0.0,1.0" in text
    truth.write_text(text.replace("0.0", "0").replace("1.0", "1") + "ISIC_9999999" + ",0" * 8 + ",1\n")
    records, notes = read_records(DATASETS["ISIC2019"], tmp_path)
    assert len(records) == 24 and notes == ["1 row left out: class UNK"]
    assert {record.labels[0] for record in records} == set(range(8))
    assert all(record.path.is_file() for record in records)
    assert {record.group[:4] for record in records} <= {"HAM_", "ISIC"}
    truth.write_text(text + "ISIC_9999998" + ",1" * 2 + ",0" * 7 + "\n")
    with pytest.raises(ValueError, match="row 26 does not mark exactly one class"):
        read_records(DATASETS["ISIC2019"], tmp_path)


@pytest.mark.parametrize(
    ("values", "zeros", "ones", "ignore"),
    [
        ({}, 1, 1, 1),
        ({"Edema": 1}, 0, 0, 0),
        ({"Edema": -1}, 1, 0, -1),
        ({"Edema": -1, "Fracture": 1}, 0, 0, 0),
        ({"No Finding": 1, "Support Devices": 1}, 1, 1, 1),
    ],
)
def test_no_finding_under_each_policy(values: dict[str, int], zeros: int, ones: int, ignore: int) -> None:
    row = tuple(values.get(name) for name in FINDINGS)
    assert [no_finding(row, uncertain) for uncertain in (0, 1, None)] == [zeros, ones, ignore]


def test_chexpert_keeps_source_values_and_patients(tmp_path: Path) -> None:
    draw_phantoms("CheXpert", tmp_path, 40, size=64, quiet=True)
    records = list(DATASETS["CheXpert"].read(tmp_path))
    assert {None, -1, 0, 1} == {value for record in records for value in record.labels}
    assert Counter(record.split for record in records) == {"train": 37, "val": 3}
    assert all(record.group in record.source and record.path.is_file() for record in records)
    table = tmp_path / "train.csv"
    table.write_text(table.read_text().replace("Frontal,AP", "Lateral,", 1))
    views = {view: list(DATASETS[f"CheXpert-{view}"].read(tmp_path)) for view in ("frontal", "lateral")}
    assert {view: len(records) for view, records in views.items()} == {"frontal": 34, "lateral": 6}
    assert len(list(DATASETS["CheXpert"].read(tmp_path))) == 40


def label_slice(rows: list[int], start: int | None, stop: int | None) -> list[int]:
    """What pandas' .loc[start:stop] gives on an index in this order: from label to label, both ends included."""
    first = 0 if start is None else rows.index(start)
    last = len(rows) - 1 if stop is None else rows.index(stop)
    return rows[first : last + 1]


def test_chexpert_study_cuts_are_slices_by_label_after_the_sort(tmp_path: Path) -> None:
    compared = 0
    for seed in range(12):
        names = [f"p{n:05d}" for n in np.random.default_rng(seed).permutation(300)]
        records = [Record(name, tmp_path, (0,), name, "train") for name in names]
        rows = sorted(range(300), key=lambda row: names[row])
        held = label_slice(rows, None, 75)
        if len(held) // 2 not in held:
            with pytest.raises(ValueError, match="outside its held-out part"):
                study_split(tmp_path, records)
            continue
        compared += 1
        test = set(label_slice(held, len(held) // 2, None))
        splits = study_split(tmp_path, [*records, Record("v", tmp_path, (0,), "v", "val")])
        assert {row for row, split in enumerate(splits) if split == "test"} == test
        assert {row for row, split in enumerate(splits) if split == "val"} == set(
            label_slice(held, None, len(held) // 2)
        ) - test
        assert {row for row, split in enumerate(splits) if split == "train"} == set(label_slice(rows, 75, None)) - test
        assert splits[300] == ""
        for split, wanted in (("train", label_slice(rows, 75, None)), ("val", label_slice(held, None, len(held) // 2))):
            exact = {row for row, own in enumerate(splits) if own == split}
            exact |= {row for row, own in study_twice(tmp_path, records) if own == split}
            assert exact == set(wanted)
    assert compared
