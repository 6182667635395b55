"""pytest tests/test_index.py"""

import hashlib
import importlib
import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.__main__ import main
from shards.checking import check_set
from shards.identity import group_hash, salt_digest
from shards.index import HEADER, parse_columns, read_columns
from shards.indexing import build, entries_of
from shards.manifest import Manifest
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.writer import Sample

MakeSet = Callable[..., ShardSet]


def write_tar(path: Path, members: dict[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def an_image(tiny_set: Path) -> bytes:
    return bytes(ShardSet(tiny_set).split("val").read(0))


def test_columns_survive_the_file(tiny_set: Path) -> None:
    path = tiny_set / "train-000001.cols"
    columns = read_columns(path, (tiny_set / "train-000001.tar").stat().st_size)
    assert len(columns) == 23 and columns.key(0) == columns.all_keys()[0]
    assert columns.to_bytes() == path.read_bytes()


def test_the_byte_table_of_the_format(tiny_set: Path) -> None:
    # Read by hand, so that a change of layout without a change of version is seen.
    data = (tiny_set / "val-000000.cols").read_bytes()
    magic, version, num_labels, n, key_bytes, _ = struct.unpack("<8sIIQQQ", data[:40])
    assert (magic, version, num_labels, n) == (b"MEDSCOLS", 1, 1, 17) and data[40:64] == bytes(24)
    assert len(data) == 64 + n * (4 * 8 + 4 * 4 + 2 + 1) + key_bytes
    rows = ShardSet(tiny_set).split("val").rows(np.arange(17))
    places = {"offsets": (0, "<u8"), "groups": (8, "<u8"), "hashes": (16, "<u8"), "sample_ids": (24, "<u8")}
    places |= {"sizes": (32, "<u4"), "heights": (36, "<u4"), "widths": (40, "<u4"), "encodings": (50, "u1")}
    for name, (start, dtype) in places.items():
        np.testing.assert_array_equal(np.frombuffer(data, dtype, n, 64 + start * n), getattr(rows, name))
    assert data[-key_bytes:].startswith(ShardSet(tiny_set).split("val").key(0).encode())


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_mutated_index_is_refused(tiny_set: Path, data: st.DataObject) -> None:
    good = (tiny_set / "train-000000.cols").read_bytes()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(len(content) - 1, data.draw(st.sampled_from([63, 10**6])))))
        if data.draw(st.booleans()):
            content[place] ^= data.draw(st.integers(1, 255))
        else:
            del content[place : place + data.draw(st.integers(1, 100))]
        if not content:
            break
    if bytes(content) != good:
        with pytest.raises(ValueError, match=r"^train-000000\.cols"):
            parse_columns(bytes(content), "train-000000.cols", 10**6)


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 2**64 - 1), labels=st.integers(0, 2**32 - 1), keys=st.integers(0, 2**64 - 1))
def test_a_header_cannot_ask_for_memory(n: int, labels: int, keys: int) -> None:
    with pytest.raises(ValueError):
        parse_columns(HEADER.pack(b"MEDSCOLS", 1, labels, n, keys, 0, 0) + bytes(100), "x.cols")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("offsets", 2**64 - 1, "lies outside its tar"),
        ("sizes", 2**32 - 1, "lies outside its tar"),
        ("heights", 0, "or empty"),
        ("widths", 70_000, "larger than 65535 a side"),
        ("encodings", 99, "an encoding is unknown"),
        ("key_ends", 2**32 - 1, "a key is empty, longer than"),
    ],
)
def test_values_out_of_bounds_with_a_right_digest(tiny_set: Path, column: str, value: int, words: str) -> None:
    columns = read_columns(tiny_set / "train-000000.cols")
    array = getattr(columns, column).copy()
    array[3] = value
    forged = type(columns)(**(vars(columns) | {column: array})).to_bytes()
    with pytest.raises(ValueError, match=words):
        parse_columns(forged, "train-000000.cols", 40_000)


def test_building_gives_what_the_writer_wrote(tiny_set: Path) -> None:
    manifest = Manifest.read(tiny_set)
    written = read_columns(tiny_set / "train-000001.cols")
    groups = dict(zip(written.all_keys(), written.groups.tolist(), strict=True))
    columns, text = build(tiny_set / "train-000001.tar", manifest.set_id, groups)
    assert columns.to_bytes() == (tiny_set / "train-000001.cols").read_bytes()
    assert text == (tiny_set / "train-000001.idx").read_text()


def test_the_text_index_is_the_one_that_wds2idx_writes(tiny_set: Path, tmp_path: Path) -> None:
    module = importlib.import_module("wds2idx")
    with module.IndexCreator(str(tiny_set / "train-000001.tar"), str(tmp_path / "x.idx"), verbose=False) as creator:
        creator.create_index()
    assert (tmp_path / "x.idx").read_text() == (tiny_set / "train-000001.idx").read_text()


def test_mending_needs_the_groups_and_gives_the_same_bytes(make_set: MakeSet, tmp_path: Path) -> None:
    salt = bytes(range(32))
    plain = make_set(tmp_path / "plain", val=0, test=0, train=8)
    keys = [plain.split("train").key(position) for position in range(8)]
    folder, private = tmp_path / "set", tmp_path / "set.private"

    def regrouped() -> list[Sample]:
        split = plain.split("train")
        rows, made = split.rows(np.arange(8)), []
        for i, key in enumerate(keys):
            size = int(rows.heights[i]), int(rows.widths[i])
            image = bytes(split.read(i))
            made.append(Sample("train", key, image, "jpeg", (i % 3,), *size, group_hash(f"patient {i // 2}", salt)))
        return made

    write_set(folder, regrouped(), name="set", classes=["a", "b", "c"], shard_size=5)
    cols, idx = folder / "train-000001.cols", folder / "train-000000.idx"
    before = cols.read_bytes(), idx.read_bytes()
    cols.unlink()
    idx.write_text("v1.2 0\n")
    with pytest.raises(ValueError, match=r"without the groups in .*set\.private: give --private DIR"):
        main(["index", str(folder)])
    private.mkdir()
    (private / "salt").write_bytes(salt)
    lines = [f"{key},/secret/{i}.png,patient {i // 2},train" for i, key in enumerate(keys)]
    (private / "sources.csv").write_text("\n".join(["key,source,group,split", *lines]))
    assert main(["index", str(folder)]) == 0
    assert (cols.read_bytes(), idx.read_bytes()) == before
    assert check_set(folder) == [] and len(salt_digest(salt)) == 32


def test_foreign_tars_open_to_our_loader(tiny_set: Path, tmp_path: Path) -> None:
    image = an_image(tiny_set)
    members = {f"a/ü{i}.{ext}": data for i in range(4) for ext, data in (("JPG", image), ("cls", b"%d" % (i % 2)))}
    write_tar(tmp_path / "train_0.tar", members)
    write_tar(tmp_path / "test.tar", {f"{'x' * 200}/{i}.{ext}": d for i in range(3) for ext, d in
                                      (("json", b'{"label": 1}'), ("jpeg", image))}, tarfile.GNU_FORMAT)  # fmt: skip
    assert main(["index", str(tmp_path), "--classes", "no,yes"]) == 0
    shard_set = ShardSet(tmp_path)
    assert shard_set.classes == ["no", "yes"] and list(shard_set.manifest.splits) == ["train", "test"]
    train = shard_set.split("train")
    assert train.key(1) == "a/ü1" and bytes(train.read(3)) == image and train.labels().tolist() == [0, 1, 0, 1]
    assert shard_set.split("test").labels().tolist() == [1, 1, 1]
    assert [problem for problem in check_set(tmp_path) if problem.fatal] == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a b.jpg"], "member 'a b.jpg' has a blank"),
        (["a.jpg", "b.jpg", "a.cls"], "key 'a' comes twice"),
        (["a.jpg", "a.jpg"], "member 'a.jpg' comes twice"),
        (["README"], "holds no sample"),
        (["a.cls"], "sample a has no image"),
        (["a.jpg", "a.png"], "has 2 components of one kind"),
        (["k" * 1100 + ".jpg"], "is too long"),
    ],
)
def test_what_cannot_be_read_rightly_is_refused_by_name(
    tiny_set: Path, tmp_path: Path, names: list[str], words: str
) -> None:
    with tarfile.open(tmp_path / "odd.tar", "w") as tar:
        for name in names:
            data = b"1" if name.endswith("cls") else an_image(tiny_set)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ValueError, match=words):
        main(["index", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["odd.tar"]


def test_real_tars_of_every_dialect(real_data: Path, tmp_path: Path) -> None:
    tars = real_data / "hard" / "tar"
    with pytest.raises(ValueError, match=r"member 'ustar/symtype' is a symbolic link"):
        entries_of(_renamed(tars / "testtar.tar", tmp_path))
    for name, count, first in (("testgz", 1000, None), ("mpdata", 100, "000000"), ("tendata", 100, "000000"),
                               ("compressed", 3, "compressed/0001")):  # fmt: skip
        entries = entries_of(tars / f"{name}.tar")
        assert len(entries) == count and first in (None, entries[0].key)
        with tarfile.open(tars / f"{name}.tar") as archive, (tars / f"{name}.tar").open("rb") as file:
            for entry in entries[:20]:
                for _, offset, size, member in entry.components:
                    file.seek(offset)
                    assert file.read(size) == archive.extractfile(member).read()  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="has no image"):  # they hold text, message packs and tensors
            build(tars / f"{name}.tar", hashlib.md5(b"").hexdigest())
    assert {path.stem for path in tars.iterdir()} == {"testtar", "testgz", "mpdata", "tendata", "compressed"}


def _renamed(path: Path, folder: Path) -> Path:
    """A copy; the reader must not depend on where a tar lies."""
    copy = folder / path.name
    copy.write_bytes(path.read_bytes())
    return copy
