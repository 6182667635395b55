"""What tables and headers tell of patients, in the words of the allow-list alone.

pytest tests/test_subgroups.py
"""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_dicom import written

from prep.convert import convert
from prep.images import PixelOptions, UndecodableImage, prepare
from prep.phantoms import draw_phantoms
from prep.planning import ConvertOptions
from prep.sources import DATASETS
from prep.sources.own_table import TableColumns, table_dataset
from prep.subgroups import DICOM_FIELDS, FROM_TEXT, age, chosen, vendor, view
from shards.checking import check_set
from shards.metadata import FIELDS, code_of
from shards.shardset import ShardSet

RAMP = np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)


@pytest.mark.parametrize(
    ("text", "band"),
    [("54", "50-59"), ("054Y", "50-59"), ("7.0", "0-9"), ("018M", "0-9"), ("104", "90+"), ("90", "90+"),
     ("089Y", "80-89"), ("000Y", None), ("", None), ("unknown", None), ("1964-02-29", None), ("500", None)],
)  # fmt: skip
def test_ages_become_bands(text: str, band: str | None) -> None:
    assert age(text) == band


def test_makers_and_projections() -> None:
    assert vendor("GE MEDICAL SYSTEMS") == "GE" and vendor("FUJIFILM Corporation") == "Fujifilm"
    assert vendor("Gentle Imaging") == "other" and vendor("HOLOGIC, Inc.") == "Hologic" and vendor("") is None
    assert view("l-mlo") == "MLO" and view("LL") == "lateral" and view("Frontal") == "frontal" and view("DOE") is None


@given(st.sampled_from(sorted(FROM_TEXT)), st.text(max_size=20))
def test_whatever_a_cell_holds_the_value_is_on_the_list(field: str, text: str) -> None:
    value = FROM_TEXT[field](text)
    code_of(field, value)  # raises for what is not on the list


def test_a_header_tells_the_list_and_no_more() -> None:
    header = {"PatientName": "DOE^JANE", "PatientAge": "054Y", "PatientSex": "F", "ViewPosition": "MLO"}
    header |= {"ImageLaterality": "R", "Manufacturer": "SIEMENS", "InstitutionName": "StMungos"}
    stored = prepare(written(RAMP, **header, ImagerPixelSpacing=[0.1, 0.1]), PixelOptions(1, 24))
    wanted = {"age": "50-59", "sex": "F", "side": "right", "view": "MLO", "vendor": "Siemens"}
    assert stored.metadata.pop("pixel_spacing_mm") == pytest.approx(0.2)
    assert stored.metadata == wanted
    dates = prepare(written(RAMP, PatientBirthDate="19640229", StudyDate="20240228"), PixelOptions(1, 24))
    assert dates.metadata == {"age": "50-59"}
    assert prepare(written(RAMP), PixelOptions(1, 24)).metadata == {}
    table = prepare(written(RAMP, PatientSex="F"), PixelOptions(1, 24), {"sex": "M"})
    assert table.metadata == {"sex": "M"}  # a curated table goes before a header


def test_burned_in_text_is_refused_unless_told_otherwise() -> None:
    data = written(RAMP, BurnedInAnnotation="YES")
    with pytest.raises(UndecodableImage, match="text is burned into the pixels"):
        prepare(data, PixelOptions(1, 24))
    kept = prepare(data, PixelOptions(1, 24, burned_in="keep"))
    np.testing.assert_array_equal(
        kept.pixels, prepare(written(RAMP, BurnedInAnnotation="NO"), PixelOptions(1, 24)).pixels
    )


def test_fields_are_chosen_by_name() -> None:
    assert chosen(("all",), ("sex", "age")) == ("age", "sex") and chosen(("none",), ("sex",)) == ()
    assert chosen(("sex",), DICOM_FIELDS) == ("sex",)
    with pytest.raises(ValueError, match="does not tell 'skin_type'; it tells age, sex"):
        chosen(("skin_type",), ("sex", "age"))
    with pytest.raises(ValueError, match="'name' is not on the list; known: age, sex"):
        chosen(("name",), ("sex",))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("CheXpert", {"age", "sex", "view"}),
        ("ISIC2019", {"age", "sex", "site"}),
        ("CBIS-DDSM", {"side", "view", "density", *DICOM_FIELDS}),
        ("CBIS-DDSM-lesions", {"side", "view", "density", "lesion", *DICOM_FIELDS}),
        ("DDSM", {"side", "view"}),
    ],
)
def test_each_dataset_tells_what_its_tables_hold(name: str, fields: set[str], tmp_path: Path) -> None:
    drawn = name.removesuffix("-lesions")
    draw_phantoms(drawn, tmp_path / "raw", 40, size=64, quiet=True)
    dataset = DATASETS[name]
    options = ConvertOptions(pixels=PixelOptions(dataset.channels, 32), quiet=True)
    convert(dataset, tmp_path / "raw", tmp_path / "set", options)
    split = ShardSet(tmp_path / "set").split("train")
    assert set(split.metadata_fields) == fields and check_set(tmp_path / "set") == []
    for field in fields - set(DICOM_FIELDS) - {"side", "view"}:
        assert (split.metadata(field) != "").mean() > 0.5, field
    assert set(split.metadata("age")) <= {"", *FIELDS["age"].values} if "age" in fields else True


def test_a_table_of_one_s_own_names_its_columns(tmp_path: Path) -> None:
    rows = [f"{n}.png,{'ab'[n % 2]},{20 + 5 * n},{'FM'[n % 2]},secret {n}" for n in range(12)]
    (tmp_path / "labels.csv").write_text("path,label,years,gender,note\n" + "\n".join(rows))
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((9, 9), number, np.uint8))
    command = [sys.executable, "prep/make_shards.py", "--dataset", "csv", "--raw", str(tmp_path), "--format", "png"]
    command += ["--out", str(tmp_path / "set"), "--metadata", "age=years", "sex=gender"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    split = ShardSet(tmp_path / "set").split("train")
    assert split.metadata_fields == ["age", "sex"] and set(split.metadata("sex")) == {"F", "M"}
    columns = TableColumns(tmp_path / "labels.csv", metadata={"age": "jahre"})
    with pytest.raises(ValueError, match="has no column 'jahre'"):
        table_dataset("mine", columns)
    wrong = subprocess.run([*command[:-2], "name=note"], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert wrong.returncode != 0 and "'name' is not on the list; known: age, sex" in wrong.stderr
