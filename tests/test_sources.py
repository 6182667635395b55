"""Readers: the layouts and their traps, and what a user is told when the raw folder is not what it should be."""

from collections import Counter
from pathlib import Path

import pytest

from prep.phantoms import draw_phantoms
from prep.sources import DATASETS, find_dataset
from prep.sources.ddsm import case_of
from prep.tables import read_table
from shards.manifest import LabelView


def test_unknown_dataset_names_the_nearest_and_all() -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'aptos': did you mean APTOS2019\? known: .*DDSM.*IDRiD"):
        find_dataset("aptos")


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_states_what_a_manifest_needs(name: str) -> None:
    dataset = DATASETS[name]
    assert dataset.citation and dataset.licence and dataset.where and dataset.tree
    assert isinstance(dataset.views[dataset.default_view], LabelView)
    assert dataset.source_values


@pytest.mark.parametrize("name", ["APTOS2019", "DDSM", "IDRiD"])
@pytest.mark.parametrize("state", ["missing", "empty", "wrong"])
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
    assert f"python prep/phantoms.py --dataset {name} --out " in text


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
    with pytest.raises(ValueError, match=r"t\.csv has no column 'label'; it has Image name, Grade"):
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
