"""CBIS-DDSM as published, the study's patches, folders of conversions: layouts, traps, and what a user is told."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prep.convert import convert
from prep.dicom import pixel_size
from prep.images import PixelOptions, decode
from prep.phantoms import draw_phantoms
from prep.planning import ConvertOptions, read_records
from prep.sources import DATASETS
from prep.sources.cbis_ddsm import CASE, case_and_files
from prep.sources.ddsm import class_in

HEADER = "patient_id,breast_density,left or right breast,image view,abnormality id,abnormality type,pathology,"
HEADER += "image file path,cropped image file path,ROI mask file path"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cbis") / "raw"
    draw_phantoms("CBIS-DDSM", root, 20, size=64, quiet=True)
    return root


@pytest.fixture
def cbis(drawn: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(drawn, tmp_path / "raw"))


def test_each_mammogram_comes_once_though_two_tables_name_it(cbis: Path) -> None:
    rows = [table.read_text().count("P_000") for table in cbis.glob("*.csv")]
    records = list(DATASETS["CBIS-DDSM"].read(cbis))
    assert len(records) == 20 and sum(rows) > 20
    assert len({(record.group, record.source[-3:]) for record in records}) == 20
    assert {record.split for record in records} == {"train", "test"} and all(r.path.is_file() for r in records)
    assert all(CASE.fullmatch(record.source) and record.group in record.source for record in records)


def test_a_mammogram_has_its_worst_finding_and_its_latest_split(cbis: Path) -> None:
    case = "Mass-Training_P_00001_LEFT_CC"
    rows = [
        f"P_00001,3,LEFT,CC,{n},mass,{pathology},{case}/1/2/000000.dcm,{case}_{n}/1/2/000000.dcm,x"
        for n, pathology in enumerate(("BENIGN", "MALIGNANT", "BENIGN_WITHOUT_CALLBACK"), 1)
    ]
    for table in cbis.glob("*.csv"):
        table.unlink()
    (cbis / "mass_case_description_train_set.csv").write_text("\n".join([HEADER, *rows]))
    (cbis / "calc_case_description_test_set.csv").write_text("\n".join([HEADER, rows[0]]))
    (record,) = DATASETS["CBIS-DDSM"].read(cbis)
    assert record.labels == (2,) and record.split == "test"
    (cbis / "calc_case_description_test_set.csv").write_text("\n".join([HEADER, rows[0].replace("BENIGN", "DOE^JANE")]))
    with pytest.raises(ValueError, match=r"the pathology in calc_.*test_set\.csv row 2 is none of BENIGN_W") as error:
        list(DATASETS["CBIS-DDSM"].read(cbis))
    assert "DOE" not in str(error.value)


def test_the_cut_out_is_told_from_the_mask_by_its_size(cbis: Path) -> None:
    records = list(DATASETS["CBIS-DDSM-lesions"].read(cbis))
    assert {record.path.name for record in records} == {"1-1.dcm", "1-2.dcm"}  # in either order, other than the tables
    for record in records:
        whole = next((cbis / "CBIS-DDSM" / record.source.split("_1 ")[0]).rglob("*.dcm"))
        height, width = pixel_size(whole)
        assert pixel_size(record.path) == (2 * height // 3 - height // 3, width // 2)
        values = np.unique(decode(record.path.read_bytes(), 1))
        assert len(values) > 2  # a mask has two


def test_paths_end_in_newlines_bear_backslashes_and_lie_anywhere(cbis: Path) -> None:
    text = "".join(table.read_text() for table in cbis.glob("*.csv"))
    assert '.dcm\n"' in text and "\\" in text
    before = {r.source: r.path.read_bytes() for r in DATASETS["CBIS-DDSM"].read(cbis)}
    (cbis / "CBIS-DDSM").rename(cbis / "manifest 1617")
    assert {r.source: r.path.read_bytes() for r in DATASETS["CBIS-DDSM"].read(cbis)} == before
    folders = {"1.2.3": [Path("a.png")]}
    assert case_and_files("CBIS-DDSM\\jpeg\\1.2.3\\1-1.dcm\n", folders)[1] == [Path("a.png")]


def test_a_missing_mammogram_is_left_out_by_name_of_its_key_alone(cbis: Path, tmp_path: Path) -> None:
    shutil.rmtree(cbis / "CBIS-DDSM" / "Mass-Training_P_00001_LEFT_CC")
    options = ConvertOptions(pixels=PixelOptions(1, 32), max_bad=0.1, quiet=True)
    manifest, _ = convert(DATASETS["CBIS-DDSM"], cbis, tmp_path / "set", options)
    assert [left.reason for left in manifest.left_out] == ["the file is missing"]
    assert "P_0000" not in (tmp_path / "set" / "manifest.json").read_text()
    assert sum(split.samples for split in manifest.splits.values()) == 19
    for table in cbis.glob("*.csv"):
        table.unlink()
    with pytest.raises(ValueError, match=r"lacks mass_case_description_train_set\.csv\. Get the dataset from https"):
        list(DATASETS["CBIS-DDSM"].read(cbis))


def test_sizes_come_from_headers_alone(cbis: Path, tmp_path: Path) -> None:
    Image.new("L", (7, 5)).save(tmp_path / "a.png")
    assert pixel_size(tmp_path / "a.png") == (5, 7)
    (tmp_path / "b.dcm").write_bytes(b"no dicom")
    assert pixel_size(tmp_path / "b.dcm") == (0, 0)


def test_patches_keep_three_classes_where_the_lists_have_them(tmp_path: Path) -> None:
    draw_phantoms("DDSM-patches", tmp_path, 30, size=64, quiet=True)
    dataset = DATASETS["DDSM-patches"]
    three = {record.source: record for record in dataset.read(tmp_path)}
    assert {record.labels[0] for record in three.values()} == {0, 1, 2}
    assert {record.split for record in three.values()} == {"train", "val", "test"}
    assert all(record.path.is_file() and record.group == record.source[:6] for record in three.values())
    shutil.rmtree(tmp_path / "ddsm_labels" / "3class")
    two = {record.source: record for record in dataset.read(tmp_path)}
    view = dataset.views["2class"].mapping
    assert {s: view[str(r.labels[0])] for s, r in two.items()} == {s: view[str(r.labels[0])] for s, r in three.items()}
    listed = tmp_path / "ddsm_labels" / "2class" / "val.txt"
    listed.write_text("DOE_JANE.png 2\n")
    with pytest.raises(ValueError, match=r"2class/val\.txt row 1 is not a path and a label of 0\.\.1") as error:
        list(dataset.read(tmp_path))
    assert "DOE" not in str(error.value)


def test_a_folder_of_conversions_names_the_class_in_a_path(tmp_path: Path) -> None:
    draw_phantoms("DDSM-folder", tmp_path, 16, size=64, quiet=True)
    (tmp_path / "overview.png").write_bytes(b"x")
    records, notes = read_records(DATASETS["DDSM-folder"], tmp_path)
    assert Counter(record.path.suffix for record in records) == {".tif": 6, ".png": 10}
    assert {record.labels[0] for record in records} == {0, 1, 2} and len({record.group for record in records}) == 8
    assert notes == ["1 row left out: no folder and no file name starts with normal, benign or cancer"]
    assert all(record.source.startswith(("normal", "benign", "cancer")[record.labels[0] or 0]) for record in records)


@pytest.mark.parametrize(
    ("path", "label"),
    [("cancers/cancer_05/case.png", 2), ("malignant/a.tif", 2), ("normals/x/benign_1.png", 1), ("train/a.png", None)],
)
def test_the_nearest_name_decides_the_class(path: str, label: int | None) -> None:
    from pathlib import PurePosixPath

    assert class_in(PurePosixPath(path)) == label
