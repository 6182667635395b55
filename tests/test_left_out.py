"""Images that do not decode: left out by name, too many, or mended since."""

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conversions import OPTIONS, digests, images, make, stop

from prep.convert import convert
from prep.finishing import describe
from prep.left_out import LeftOut
from prep.private import PrivateFolder
from prep.sources import DATASETS
from prep.tasks import keep
from shards.checking import check_set


def test_images_that_do_not_decode_are_left_out_and_recorded(own_raw_ddsm: Path, tmp_path: Path) -> None:
    broken, missing = images(own_raw_ddsm)[3], images(own_raw_ddsm)[7]
    broken.write_bytes(broken.read_bytes()[:200])
    missing.unlink()
    manifest = make(own_raw_ddsm, tmp_path / "set", replace(OPTIONS, max_bad=0.05))
    assert {entry.reason for entry in manifest.left_out} == {"the file is truncated", "the file is missing"}
    assert "2 left out (the file is missing 1, the file is truncated 1)" in describe(manifest)
    with (tmp_path / "set.private" / "left_out.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert {row["source"] for row in rows.values()} == {broken.name, missing.name}
    assert set(rows) == {entry.key for entry in manifest.left_out}
    assert sum(split.samples for split in manifest.splits.values()) == 58
    assert not [problem for problem in check_set(tmp_path / "set") if problem.fatal]


def test_too_many_bad_images_and_strict_stop(own_raw_ddsm: Path, tmp_path: Path) -> None:
    images(own_raw_ddsm)[3].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 60 images do not decode, more than --max-bad 0\.01 allows") as error:
        make(own_raw_ddsm, tmp_path / "set")
    assert images(own_raw_ddsm)[3].name not in str(error.value)
    assert not (tmp_path / "set" / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"sample \d{8}-[0-9a-f]{8} does not decode: no known image format"):
        make(own_raw_ddsm, tmp_path / "strict", replace(OPTIONS, strict=True, workers=2))
    assert not [path for path in (tmp_path / "strict").iterdir() if "partial" in path.name]


def test_strict_stops_at_what_an_earlier_run_left_out(own_raw_ddsm: Path, tmp_path: Path) -> None:
    images(own_raw_ddsm)[3].write_bytes(b"no image")
    strict = replace(OPTIONS, strict=True, max_bad=0.05)
    with pytest.raises(ValueError, match="more than --max-bad"):
        make(own_raw_ddsm, tmp_path / "set")
    with pytest.raises(ValueError, match="does not decode: no known image format"):
        make(own_raw_ddsm, tmp_path / "set", strict)
    assert len(make(own_raw_ddsm, tmp_path / "set", replace(OPTIONS, max_bad=0.05)).left_out) == 1
    with pytest.raises(ValueError, match="does not decode: no known image format"):
        make(own_raw_ddsm, tmp_path / "set", strict)


def test_images_mended_since_are_taken_in_and_what_is_broken_still_costs_no_shard(
    own_raw_ddsm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(own_raw_ddsm, tmp_path / "whole")
    broken = images(own_raw_ddsm)[3:6]
    kept = [path.read_bytes() for path in broken]
    for path, content in zip(broken, kept, strict=True):
        path.write_bytes(bytes(len(content)))  # the same size, hence the same plan
    with pytest.raises(ValueError, match="3 of 60 images do not decode"):
        make(own_raw_ddsm, tmp_path / "set", replace(OPTIONS, max_bad=0.04))
    broken[0].write_bytes(kept[0])
    with monkeypatch.context() as patch:
        patch.setattr("prep.convert.make_manifest", stop)
        for made in ("some", "none"):
            patch.setattr("prep.convert.keep", keep if made == "some" else stop)  # the second time, nothing is to do
            with pytest.raises(KeyboardInterrupt):
                make(own_raw_ddsm, tmp_path / "set", replace(OPTIONS, max_bad=0.04))
    for path, content in zip(broken, kept, strict=True):
        path.write_bytes(content)
    make(own_raw_ddsm, tmp_path / "set", replace(OPTIONS, strict=True))
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")
    assert (tmp_path / "set.private" / "left_out.csv").read_text() == "key,source,split,reason\n"


def test_a_shard_without_any_good_image_is_not_written(own_raw_ddsm: Path, tmp_path: Path) -> None:
    for path in images(own_raw_ddsm)[:3]:
        path.write_bytes(b"no image")
    manifest = make(own_raw_ddsm, tmp_path / "set", replace(OPTIONS, shard_samples=1, max_bad=0.5))
    assert sum(len(split.shards) for split in manifest.splits.values()) == 57
    assert not [problem for problem in check_set(tmp_path / "set") if problem.fatal]


def test_rows_that_are_all_left_out_are_an_error_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="lists no image that can be taken: 1 row left out: no folder and no file"):
        convert(DATASETS["DDSM-folder"], tmp_path, tmp_path / "set", OPTIONS)


def test_the_share_of_bad_images_is_not_rounded_down_by_a_float(tmp_path: Path) -> None:
    """.29 * 100 is 28.999… in floats."""
    rows = [(f"{i:08d}", SimpleNamespace(source=f"{i}.png")) for i in range(100)]
    plan, private = SimpleNamespace(num_samples=100, parts={"train": rows}), PrivateFolder(tmp_path / "set")
    private.make()
    book = LeftOut(plan, private, replace(OPTIONS, max_bad=0.29))
    book.add([(key, "the file is missing") for key, _ in rows[:29]])
    with pytest.raises(ValueError, match=r"30 of 100 images do not decode, more than --max-bad 0\.29 allows"):
        book.add([(rows[29][0], "the file is missing")])
