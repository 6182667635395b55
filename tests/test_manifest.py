"""pytest tests/test_manifest.py"""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.manifest import MAX_MANIFEST_BYTES, Manifest


def changed(path: Path, **fields: object) -> bytes:
    return json.dumps(json.loads((path / "manifest.json").read_bytes()) | fields).encode()


def test_reading_gives_what_was_written(tiny_set: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(tiny_set)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path / "manifest.json") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_digest_does_not_depend_on_how_the_file_is_laid_out(tiny_set: Path) -> None:
    manifest = Manifest.read(tiny_set)
    document = json.loads((tiny_set / "manifest.json").read_bytes())
    backwards = json.dumps(dict(reversed(document.items())), indent=7).encode()
    assert Manifest.parse(backwards).digest == manifest.digest
    assert Manifest.parse(changed(tiny_set, knn_k=20)).digest != manifest.digest


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "medshard-9"}, "format 'medshard-9' is unknown, this release reads 'medshard-1'"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"label_view": "other"}, "default view 'other' is not among the views"),
        ({"classes": ["a"]}, "classes differ from the default view's"),
        ({"mean": [0.5]}, "mean and std need 3 numbers each"),
        ({"std": [0.1, 0.0, 0.1]}, "std must be above 0"),
        ({"mean": [0.1, float("nan"), 0.1]}, "mean.1"),
        ({"set_id": "../../etc"}, "set_id"),
        ({"knn_k": 0}, "knn_k"),
    ],
)
def test_wrong_fields_are_named_in_one_line(tiny_set: Path, fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        Manifest.parse(changed(tiny_set, **fields))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../train-000000.tar", "/etc/passwd", "a/b.tar", "train.idx", ".tar", "x\n.tar"])
def test_a_shard_name_cannot_leave_the_folder(tiny_set: Path, name: str) -> None:
    document = json.loads((tiny_set / "manifest.json").read_bytes())
    document["splits"]["val"]["shards"][0]["name"] = name
    with pytest.raises(ValueError, match=r"splits\.val\.shards\.0\.name"):
        Manifest.parse(json.dumps(document).encode())


def test_counts_must_agree(tiny_set: Path) -> None:
    document = json.loads((tiny_set / "manifest.json").read_bytes())
    document["splits"]["val"]["samples"] = 18
    with pytest.raises(ValueError, match="the shards hold 17 samples, the split says 18"):
        Manifest.parse(json.dumps(document).encode())


def test_missing_and_oversized_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no manifest at"):
        Manifest.read(tmp_path)
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ValueError, match="a manifest has at most"):
        Manifest.read(tmp_path)
    with pytest.raises(ValueError, match="a manifest has at most 5000000"):
        Manifest.parse(b"[" + b"[]," * 5_000_001 + b"[]]")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_mutated_bytes_are_read_rightly_or_refused(tiny_set: Path, data: st.DataObject) -> None:
    content = bytearray((tiny_set / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        how = data.draw(st.sampled_from(["set", "cut", "double"]))
        if how == "set":
            content[place] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del content[place : place + data.draw(st.integers(1, 40))]
        else:
            content[place:place] = content[place : place + 40]
    try:
        manifest = Manifest.parse(bytes(content))
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
    else:
        assert Manifest.parse(manifest.model_dump_json().encode()).digest == manifest.digest


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"[" * 100_000, b'{"format": []}', b"\xff\xfe", b"1e999"])
def test_other_json_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        Manifest.parse(content)
