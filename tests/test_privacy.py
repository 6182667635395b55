"""Identifiers planted in file and folder names and DICOM headers reach no byte of a set, no print and no error."""

import csv
import json
import stat
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_dicom import written

from prep.convert import convert
from prep.finishing import describe
from prep.images import PixelOptions
from prep.planning import ConvertOptions
from prep.sources import DATASETS

PLANTED = ("JaneDoe", "DOE^JANE", "MRN4711", "19640229", "StMungos")
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
    command = [
        sys.executable,
        "prep/make_shards.py",
        "--dataset",
        "DDSM",
        "--raw",
        str(raw),
        "--out",
        str(tmp_path / "set"),
    ]
    options = ["--max-bad", "0.2", "--short-side", "32", "--workers", "2"]
    ended = subprocess.run([*command, *options], cwd=Path(__file__).parents[1], capture_output=True, timeout=120)
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
