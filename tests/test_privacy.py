"""Identifiers planted in names of files and folders, DICOM headers, cells of tables and HDF5 attributes reach no byte
of a set, no print and no error.
"""

import csv
import json
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from conversions import command
from faulty_server import Fault, serve
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_dicom import written

from prep import places
from prep.convert import convert
from prep.finishing import describe
from prep.images import PixelOptions
from prep.make_shards import main, parse_args
from prep.phantoms import draw_phantoms
from prep.places import StoreFailed
from prep.planning import ConvertOptions
from prep.sources import DATASETS
from shards.metadata import FIELDS
from shards.shardset import ShardSet

PLANTED = ("JaneDoe", "DOE^JANE", "MRN4711", "19640229", "StMungos")
ROOT = Path(__file__).resolve().parents[1]
OPTIONS = ConvertOptions(pixels=PixelOptions(1, 32), max_bad=0.2, quiet=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    (root / "ddsm_raw_image_lists").mkdir(parents=True)
    folder = root / "ddsm_raw" / "JaneDoe_StMungos"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(20):
        name = f"{('normal', 'cancer')[number % 2]}_01-A_{1000 + number}_MRN4711.dcm"
        values = rng.integers(0, 4096, (40, 50), dtype=np.uint16)
        header = {"PatientName": "DOE^JANE", "PatientID": "MRN4711", "PatientBirthDate": "19640229"}
        data = written(values, **header, InstitutionName="StMungos", StudyDescription="for JaneDoe")
        (folder / name).write_bytes(data if number != 3 else data[:-2000])
        lines.append(f"JaneDoe_StMungos/{name}")
    for split, part in (("train", lines[:12]), ("val", lines[12:16]), ("test", lines[16:])):
        (root / "ddsm_raw_image_lists" / f"{split}.txt").write_text("\n".join(part))
    return root


def assert_clean(data: bytes) -> None:
    for word in PLANTED:
        assert word.encode() not in data and word.lower().encode() not in data.lower()


def test_set_messages_and_errors_hold_no_identifier(raw: Path, tmp_path: Path) -> None:
    dataset = DATASETS["DDSM"]
    for kind in ("jpeg", "png", "raw"):
        out = tmp_path / f"set-{kind}"
        manifest, _ = convert(dataset, raw, out, replace(OPTIONS, pixels=PixelOptions(1, 32, kind)))  # type: ignore[arg-type]
        assert len(manifest.left_out) == 1
        for path in out.rglob("*"):
            assert_clean(path.name.encode() + path.read_bytes())
        assert_clean(describe(manifest).encode())
    with pytest.raises(ValueError) as error:
        convert(dataset, raw, tmp_path / "strict", replace(OPTIONS, strict=True))
    assert_clean(str(error.value).encode())
    with pytest.raises(ValueError) as error:
        convert(dataset, raw, tmp_path / "bad", replace(OPTIONS, max_bad=0.0))
    assert_clean(str(error.value).encode())


def test_the_command_prints_no_identifier(raw: Path, tmp_path: Path) -> None:
    words = command(raw, tmp_path / "set")
    options = ["--max-bad", "0.2", "--short-side", "32", "--workers", "2"]
    ended = subprocess.run([*words, *options], cwd=Path(__file__).parents[1], capture_output=True, timeout=120)
    assert ended.returncode == 0
    assert_clean(ended.stdout + ended.stderr)


def test_the_way_back_lies_in_the_private_folder_alone(raw: Path, tmp_path: Path) -> None:
    manifest, _ = convert(DATASETS["DDSM"], raw, tmp_path / "set", OPTIONS)
    private = tmp_path / "set.private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    with (private / "sources.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20 and all("JaneDoe" in row["source"] for row in rows)
    assert (private / "salt").read_bytes() not in (tmp_path / "set" / "manifest.json").read_bytes()
    assert len((private / "salt").read_bytes()) == 32
    assert manifest.grouping.by == "case"
    text = json.dumps(manifest.model_dump())
    assert not any(row["group"] in text for row in rows)


def test_members_bear_nobodys_name_or_time(raw: Path, tmp_path: Path) -> None:
    convert(DATASETS["DDSM"], raw, tmp_path / "set", OPTIONS)
    for shard in (tmp_path / "set").glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def _files(tmp_path: Path, make: Callable[[Path], list[str]], *arguments: str) -> tuple[Path, bytes]:
    """Convert what `make` writes by the command line; the set's folder, and all that was printed."""
    raw = tmp_path / "JaneDoe raw"
    raw.mkdir()
    given = [*make(raw), *arguments]
    command = [sys.executable, "prep/make_shards.py", "--raw", str(raw), "--out", str(tmp_path / "set"), *given]
    ended = subprocess.run(
        [*command, "--max-bad", "0.4", "--short-side", "32"], cwd=ROOT, capture_output=True, timeout=200
    )
    assert ended.returncode == 0, ended.stderr
    more = [["prep/check_shards.py", "set"], ["-m", "shards", "info", "set"], ["prep/show_shards.py", "set"]]
    said = ended.stdout + ended.stderr
    for script, *rest in more:
        places = [str(tmp_path / "set") if word == "set" else word for word in rest]
        script = str(ROOT / script) if script.endswith(".py") else script
        done = subprocess.run([sys.executable, script, *places], cwd=tmp_path, capture_output=True, timeout=200)
        said += done.stdout + done.stderr
    return tmp_path / "set", said.replace(str(tmp_path / "set").encode(), b"")


def _own_table(raw: Path) -> list[str]:
    rng = np.random.default_rng(1)
    rows = ["file,finding,who,years,gender,report"]
    for number in range(24):
        name = f"StMungos/JaneDoe_{number}.dcm"
        (raw / name).parent.mkdir(exist_ok=True)
        header = {"PatientName": "DOE^JANE", "PatientID": "MRN4711", "PatientBirthDate": "19640229"}
        header |= {
            "StudyDate": "20240229",
            "PatientSex": "F",
            "Manufacturer": "JaneDoe Imaging",
            "ViewPosition": "MRN4711",
        }
        header |= {"PatientComments": "StMungos", "ImageComments": "MRN4711", "PatientAge": "060Y"}
        values = rng.integers(0, 4096, (40, 50), dtype=np.uint16)
        data = written(values, **header, BurnedInAnnotation="YES" if number == 3 else "NO")
        (raw / name).write_bytes(data[:-900] if number == 5 else data)
        rows.append(
            f"{name},{'ab'[number % 2]},MRN4711-{number},{('JaneDoe', '54')[number % 4 > 0]},DOE^JANE,for StMungos"
        )
    (raw / "labels.csv").write_text("\n".join(rows))
    named = ["--path-column", "file", "--label-columns", "finding", "--group-column", "who"]
    return [
        "--dataset",
        "csv",
        "--name",
        "mine",
        *named,
        "--metadata",
        "age=years",
        "sex=gender",
        "--channels",
        "1",
        "--near-duplicates",
    ]


def _cbis(raw: Path) -> list[str]:
    draw_phantoms("CBIS-DDSM", raw, 24, size=64, quiet=True)
    for table in raw.glob("*.csv"):
        text = table.read_text().replace("P_00001", "P_MRN4711")
        table.write_text(text.replace("\n", ",note\n", 1).replace("calcification", "calcification,DOE^JANE"))
    return ["--dataset", "CBIS-DDSM", "--crop", "breast", "--mirror"]


def _slides(raw: Path) -> list[str]:
    draw_phantoms("Camelyon-slides", raw, 10, size=512, quiet=True)
    for path in sorted(raw.rglob("*.tif")):
        path.rename(path.with_name(f"JaneDoe {path.name}"))
    return ["--dataset", "slides", "--name", "mine", "--tile-size", "64"]


def _hdf5(raw: Path) -> list[str]:
    import h5py

    draw_phantoms("Camelyon", raw, 40, quiet=True)
    for path in raw.glob("*.h5"):
        with h5py.File(path, "a") as file:
            file.attrs["patient"] = "DOE^JANE"
            file[next(iter(file))].attrs["id"] = "MRN4711"
    for path in raw.glob("*_meta.csv"):
        path.write_text(path.read_text().replace("camelyon16", "JaneDoe16"))
    return ["--dataset", "Camelyon", "--format", "raw"]


def _outlined_slides(raw: Path) -> list[str]:
    draw_phantoms("Camelyon-slides", raw, 10, size=1024, quiet=True)
    for path in sorted([*raw.rglob("*.tif"), *raw.rglob("*.xml")]):
        path.rename(path.with_stem(f"{path.stem}_JaneDoe"))
    for path in raw.rglob("*.xml"):
        text = path.read_text()
        assert "<Annotation Name=" in text
        path.write_text(text.replace('<Annotation Name="', '<Annotation Note="MRN4711" Name="for DOE^JANE '))
    return ["--dataset", "Camelyon-slides", "--tile-size", "64", "--tiles-per-slide", "9"]


def _photographs(raw: Path) -> list[str]:
    """Identifiers in EXIF, in comments and in text chunks; what comes out is encoded anew from the pixels."""
    draw_phantoms("csv", raw, 12, size=64, quiet=True)
    rows = (raw / "labels.csv").read_text().splitlines()
    for number, row in enumerate(rows[1:]):
        name = row.split(",")[0]
        with Image.open(raw / name) as image:
            texts, exif = PngInfo(), Image.Exif()
            texts.add_text("Comment", "JaneDoe MRN4711")
            texts.add_itxt("XML:com.adobe.xmp", "<x>DOE^JANE, born 19640229</x>")
            exif[0x010E], exif[0x013B] = "DOE^JANE", "StMungos"  # ImageDescription, Artist
            if number % 2:
                image.save(raw / name, pnginfo=texts, exif=exif)
            else:
                image.convert("RGB").save(raw / f"{name}.jpg", exif=exif, comment=b"JaneDoe MRN4711")
                (raw / name).unlink()
                rows[number + 1] = row.replace(name, f"{name}.jpg")
    (raw / "labels.csv").write_text("\n".join(rows))
    return ["--dataset", "csv", "--name", "mine", "--group-column", "patient", "--format", "png"]


SLOW = [pytest.param(make, marks=pytest.mark.slow) for make in (_cbis, _slides, _hdf5, _outlined_slides, _photographs)]


@pytest.mark.parametrize("make", [_own_table, *SLOW])
def test_no_kind_of_source_leaks(make: Callable[[Path], list[str]], tmp_path: Path) -> None:
    folder, said = _files(tmp_path, make)
    said = said.replace(b"JaneDoe raw", b"")  # the user's own --raw
    assert_clean(said)
    files = [path for path in folder.rglob("*") if path.is_file()] + list(tmp_path.glob("*.png"))
    assert len(files) > 4
    for path in files:
        assert_clean(path.name.encode() + path.read_bytes())
    split = ShardSet(folder).split("train")
    for field in split.metadata_fields:
        values = set(split.metadata(field).tolist())
        assert not FIELDS[field].values or values <= {"", *FIELDS[field].values}


MISTAKES = {  # a table, flags, and what is told
    "no header": (
        "JaneDoe,MRN4711,a.png,1\n",
        "",
        "has no column 'path'; none of its 4: does it begin with their names?",
    ),
    "an id as label": ("path,label,id\na.png,1,47114711\n", "--label-columns label id", "label in labels.csv row 2 is"),
    "too long a name": (f"path,label\na.png,1\n{'JaneDoe' * 50}.png,0\n", "", "(the file cannot be read (OSError))"),
    "a NUL": ("path,label\na.png,1\nMRN4711\0.png,0\n", "", "(the file cannot be read (ValueError))"),
    "missing": ("path,label\na.png,1\nJaneDoe.png,0\n", "", "(the file is missing)"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_mistake_prints_an_identifier(mistake: str, tmp_path: Path) -> None:
    table, flags, told = MISTAKES[mistake]
    (tmp_path / "a.png").write_bytes(_png())
    (tmp_path / "labels.csv").write_text(table)
    given = ["--dataset", "csv", "--raw", str(tmp_path), "--out", str(tmp_path / "set"), "--split", "none", "--quiet"]
    with pytest.raises(ValueError) as error:
        main(parse_args([*given, "--workers", "1", *flags.split()]))
    assert told in str(error.value)
    assert_clean(str(error.value).encode())


def test_raw_data_named_as_the_output_are_not_listed(raw: Path) -> None:
    with pytest.raises(ValueError, match="holds files that are not a shard set's") as error:
        convert(DATASETS["DDSM"], raw, raw / "ddsm_raw" / "JaneDoe_StMungos", OPTIONS)
    assert_clean(str(error.value).replace(str(raw / "ddsm_raw" / "JaneDoe_StMungos"), "").encode())


def test_a_list_of_unreadable_names_is_one_line_without_them(raw: Path, tmp_path: Path) -> None:
    with (raw / "ddsm_raw_image_lists" / "test.txt").open("a") as file:
        file.write(f"\nnormal_JaneDoe{'x' * 300}.dcm\n")
    with pytest.raises(
        ValueError, match=r"a file or folder in .*raw cannot be read \(OSError: File name too long\)"
    ) as error:
        convert(DATASETS["DDSM"], raw, tmp_path / "set", OPTIONS)
    assert_clean(str(error.value).encode())


def test_a_store_that_fails_is_told_without_the_name_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "FIRST_WAIT_SECONDS", 0.01)
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("a.png", "JaneDoe.png"):
        (raw / name).write_bytes(_png())
    (raw / "labels.csv").write_text("path,label\na.png,1\nJaneDoe.png,0\n")
    with serve(raw) as server:
        server.faults["JaneDoe.png"] = [Fault("status", times=1000)]
        given = ["--dataset", "csv", "--raw", server.url, "--table", str(raw / "labels.csv"), "--split", "none"]
        with pytest.raises(
            (ValueError, StoreFailed), match="a raw file: ClientResponseError: 503; gave up after 5 tries"
        ) as error:
            main(parse_args([*given, "--out", str(tmp_path / "set"), "--workers", "1", "--quiet"]))
    assert_clean(str(error.value).encode())


def _png() -> bytes:
    return cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes()
