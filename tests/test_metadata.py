"""pytest tests/test_metadata.py"""

import json
import shutil
import struct
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import make_set, tiny_samples

from shards.__main__ import main
from shards.checking import check_set
from shards.index import parse_columns
from shards.joined import JoinedSplit
from shards.manifest import Manifest
from shards.metadata import FIELDS, code_of, decoded
from shards.sets import write_set
from shards.shardset import ShardSet

FIELDS_HELD = ("sex", "age", "pixel_spacing_mm")


def told(number: int) -> dict[str, str | float]:
    """What sample `number` says of itself: every third nothing of its sex, every fifth no spacing."""
    known: dict[str, str | float] = {"age": ("0-9", "50-59", "90+")[number % 3]}
    known |= {"sex": "FM"[number % 2]} if number % 3 else {}
    return known | ({"pixel_spacing_mm": 0.07 + number / 3} if number % 5 else {})


def with_metadata(folder: Path, seed: int = 0, fields: tuple[str, ...] = FIELDS_HELD, **options: object) -> ShardSet:
    sizes = {"train": 30, "val": 8}
    samples = tiny_samples(sizes, 3, 1, "single-label", str(options.pop("encoding", "png")), seed)
    told_of = (
        replace(sample, key=f"s{seed}-{n}", metadata={k: v for k, v in told(n).items() if k in fields})
        for n, sample in enumerate(samples)
    )
    details = {"bits": 8, "classes": ["a", "b", "c"], "channels": 1, "name": f"told{seed}"} | options
    return write_set(folder, told_of, shard_size=7, fields=fields, **details)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def told_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return with_metadata(tmp_path_factory.mktemp("told") / "told")


def test_values_come_back_by_position(told_set: ShardSet) -> None:
    split = told_set.split("train")
    assert split.metadata_fields == ["age", "sex", "pixel_spacing_mm"]
    wanted = [told(n) for n in range(30)]
    assert split.metadata("age").tolist() == [row["age"] for row in wanted]
    assert split.metadata("sex").tolist() == [row.get("sex", "") for row in wanted]
    spacing = [float(f"{row.get('pixel_spacing_mm', np.nan):.6g}") for row in wanted]
    np.testing.assert_array_equal(split.metadata("pixel_spacing_mm"), np.array(spacing, np.float32))
    assert split.metadata("sex", np.array([29, 1, 3])).tolist() == [wanted[29]["sex"], wanted[1]["sex"], ""]
    assert check_set(told_set.path) == []


def test_an_unknown_field_is_answered_with_those_held(told_set: ShardSet, tiny_set: Path) -> None:
    with pytest.raises(ValueError, match=r"'vendor' is not in told0; it has age, sex, pixel_spacing_mm"):
        told_set.split("val").metadata("vendor")
    bare = ShardSet(tiny_set).split("val")
    assert bare.metadata_fields == []
    with pytest.raises(ValueError, match="it has no metadata"):
        bare.metadata("sex")


def test_the_tar_tells_it_to_webdataset(told_set: ShardSet) -> None:
    with (told_set.path / "train-000000.tar").open("rb") as file:
        files = webdataset.tariterators.tar_file_expander([{"url": "a tar", "stream": file}])
        rows = list(webdataset.tariterators.group_by_keys(files))
    assert [json.loads(row["json"])["metadata"]["age"] for row in rows] == [told(n)["age"] for n in range(7)]


def test_the_byte_table_of_version_2(told_set: ShardSet) -> None:
    data = (told_set.path / "train-000000.cols").read_bytes()
    magic, version, labels, n, keys, _, fields = struct.unpack("<8sIIQQQI", data[:44])
    assert (magic, version, labels, n, fields) == (b"MEDSCOLS", 2, 1, 7, 3) and data[44:64] == bytes(20)
    assert len(data) == 64 + n * (4 * 8 + 4 * 4 + 4 * 3 + 2 + 1) + keys
    block = np.frombuffer(data, "<f4", n * 3, 64 + 48 * n).reshape(n, 3)
    assert block[:, 0].tolist() == [FIELDS["age"].values.index(str(told(i)["age"])) for i in range(n)]
    assert np.isnan(block[0, 1]) and block[1, 1] == 1 and block[2, 1] == 0


def test_a_set_without_metadata_is_what_it_was(tiny_set: Path) -> None:
    assert b"metadata" not in (tiny_set / "manifest.json").read_bytes()
    assert (tiny_set / "val-000000.cols").read_bytes()[8:12] == struct.pack("<I", 1)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"name": "DOE"}, "metadata field 'name' is none of this set's"),
        ({"sex": "female"}, "a value of metadata field sex is none of F, M, O"),
        ({"age": "54"}, "a value of metadata field age is none of 0-9"),
        ({"pixel_spacing_mm": "0.1"}, "a value of metadata field pixel_spacing_mm is no number in 1e-06..100"),
        ({"pixel_spacing_mm": float("inf")}, "is no number in"),
    ],
)
def test_what_is_not_on_the_list_does_not_enter(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    sample = replace(next(tiny_samples({"train": 1}, 2, 1, "single-label", "png", 0)), metadata=metadata)
    with pytest.raises(ValueError, match=message):
        write_set(tmp_path / "set", [sample], name="x", classes=["a", "b"], channels=1, fields=FIELDS_HELD)
    assert not list((tmp_path / "set").glob("*"))


@pytest.mark.parametrize(
    "field",
    [{"name": "patient"}, {"name": "sex", "values": ["Jane Doe"]}, {"name": "sex"}, {"name": "age", "values": ["54"]}],
)
def test_a_manifest_with_other_fields_is_refused(told_set: ShardSet, field: dict[str, object]) -> None:
    document = json.loads((told_set.path / "manifest.json").read_text())
    with pytest.raises(ValueError, match="no valid manifest"):
        Manifest.parse(json.dumps(document | {"metadata": [field]}).encode())


def test_resharding_keeps_it_byte_for_byte(told_set: ShardSet, tmp_path: Path) -> None:
    assert main(["reshard", str(told_set.path), str(tmp_path / "new"), "--shard-size", "1MB"]) == 0
    new = ShardSet(tmp_path / "new")
    assert len(new.split("train").shards) == 1 and check_set(new.path) == []
    for field in new.split("train").metadata_fields:
        np.testing.assert_array_equal(new.split("train").metadata(field), told_set.split("train").metadata(field))


def test_merging_keeps_the_fields_of_all_parts(told_set: ShardSet, tmp_path: Path) -> None:
    other = with_metadata(tmp_path / "other", seed=1, fields=("sex",))
    assert main(["merge", str(told_set.path), str(other.path), "--out", str(tmp_path / "both")]) == 0
    both = ShardSet(tmp_path / "both")
    assert check_set(both.path) == []
    ages = both.split("train").metadata("age").tolist()
    assert ages == [*told_set.split("train").metadata("age"), *[""] * 30]
    sexes = [*told_set.split("train").metadata("sex"), *other.split("train").metadata("sex")]
    assert both.split("train").metadata("sex").tolist() == sexes


def test_a_mixture_tells_what_all_its_sets_hold(told_set: ShardSet, tmp_path: Path) -> None:
    other = with_metadata(tmp_path / "other", seed=1, fields=("sex",))
    joined = JoinedSplit([told_set.split("val"), other.split("val")])
    assert joined.metadata_fields == ["sex"]
    values = [*told_set.split("val").metadata("sex"), *other.split("val").metadata("sex")]
    assert joined.metadata("sex").tolist() == values
    assert joined.metadata("sex", np.array([15, 0])).tolist() == [values[15], values[0]]
    with pytest.raises(ValueError, match="'age' is not in all sets of the mixture"):
        joined.metadata("age")


def test_a_raw_multi_label_set_has_it_too(tmp_path: Path) -> None:
    samples = [
        replace(sample, metadata={"side": "left"})
        for sample in tiny_samples({"train": 9}, 2, 1, "multi-label", "raw", 0)
    ]
    made = write_set(
        tmp_path / "set", samples, name="raw", classes=["a", "b"], channels=1, task="multi-label", fields=("side",)
    )
    assert check_set(made.path) == [] and set(made.split("train").metadata("side")) == {"left"}


def test_check_compares_tar_and_index(told_set: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(told_set.path, tmp_path / "set")
    tar = tmp_path / "set" / "val-000000.tar"
    content = tar.read_bytes()
    assert content.count(b'"age":"0-9"') >= 1
    tar.write_bytes(content.replace(b'"age":"0-9"', b'"age":"1-9"', 1))
    problems = [str(problem) for problem in check_set(tmp_path / "set")]
    assert any("is not on the list: a value of metadata field age" in problem for problem in problems)
    tar.write_bytes(content.replace(b'"sex":"F"', b'"sex":"M"', 1))
    problems = [str(problem) for problem in check_set(tmp_path / "set")]
    assert any("differs between the tar and the index" in problem for problem in problems)


def test_an_index_with_other_fields_is_refused(told_set: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(told_set.path, tmp_path / "set")
    path = tmp_path / "set" / "val-000000.cols"
    columns = parse_columns(path.read_bytes(), path.name)
    path.write_bytes(replace(columns, metadata=columns.metadata[:, :2]).to_bytes())
    with pytest.raises(ValueError, match=r"val-000000\.cols holds 2 metadata fields, the manifest says 3"):
        ShardSet(tmp_path / "set").split("val").metadata("sex")
    wrong = columns.metadata.copy()
    wrong[0, 1] = 7
    path.write_bytes(replace(columns, metadata=wrong).to_bytes())
    with pytest.raises(ValueError, match="a value of its sex is outside the manifest's list"):
        ShardSet(tmp_path / "set").split("val").metadata("sex")


def test_every_value_has_a_place_and_comes_back() -> None:
    for name, field in FIELDS.items():
        codes = np.array([code_of(name, value) for value in field.values] + [np.nan], np.float32)
        if field.values:
            assert decoded(codes, field.values).tolist() == [*field.values, ""]
    assert all(len(value) <= 16 for field in FIELDS.values() for value in field.values)


def test_members_of_a_sample_without_metadata_say_nothing(tmp_path: Path) -> None:
    bare = make_set(tmp_path / "bare", train=3, val=1, test=1)
    with tarfile.open(bare.path / "val-000000.tar") as tar:
        assert [name.rpartition(".")[2] for name in tar.getnames()] == ["jpg", "cls"]
