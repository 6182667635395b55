"""pytest tests/test_writer.py — webdataset, tarfile and DALI's own reader are the oracles."""

import gc
import hashlib
import importlib
import io
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.identity import MAX_KEY_BYTES, make_key, sample_id
from shards.manifest import Manifest
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.writer import Sample, ShardWriter, tar_header

MakeSet = Callable[..., ShardSet]
SET_ID = "00112233445566778899aabbccddeeff"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_samples_give_the_same_bytes(make_set: MakeSet, tiny_set: Path, tmp_path: Path) -> None:
    make_set(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tiny_set)


def test_headers_hold_nothing_of_this_machine(tiny_set: Path) -> None:
    path = tiny_set / "train-000000.tar"
    assert path.stat().st_size % 10_240 == 0
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == 0o644 and member.isreg()
        assert tar.pax_headers == {}


def test_manifest_has_the_hashes_of_the_files(tiny_set: Path) -> None:
    for split in Manifest.read(tiny_set).splits.values():
        for info in split.shards:
            assert hashlib.sha256((tiny_set / info.name).read_bytes()).hexdigest() == info.sha256
            assert hashlib.sha256((tiny_set / f"{info.stem}.cols").read_bytes()).hexdigest() == info.index_sha256


def test_mean_and_std_are_those_of_the_training_pixels(tiny_set: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    images = [cv2.imdecode(np.frombuffer(split.read(i), np.uint8), 1)[:, :, ::-1] for i in range(split.num_samples)]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    np.testing.assert_allclose(split.manifest.mean, pixels.mean(0), atol=1e-7)
    np.testing.assert_allclose(split.manifest.std, pixels.std(0), atol=1e-7)


def test_webdataset_and_tarfile_read_every_sample(tiny_set: Path) -> None:
    webdataset = importlib.import_module("webdataset")
    split = ShardSet(tiny_set).split("train")
    tars = [str(tiny_set / info.name) for info in split.shards]
    with warnings.catch_warnings():  # it leaves its files to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        read = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False))
        gc.collect()
    assert [sample["__key__"] for sample in read] == [split.key(i) for i in range(60)]
    assert [sample["jpg"] for sample in read] == [bytes(split.read(i)) for i in range(60)]
    assert [int(sample["cls"]) for sample in read] == split.labels().tolist()
    by_tarfile = []
    for path in tars:
        with tarfile.open(path) as tar:
            by_tarfile += [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]  # type: ignore[union-attr]
    assert by_tarfile == [sample["jpg"] for sample in read]


def test_dali_reads_every_sample_by_the_text_index(tiny_set: Path) -> None:
    dali = importlib.import_module("nvidia.dali")
    split = ShardSet(tiny_set).split("test")
    tars = [str(tiny_set / info.name) for info in split.shards]

    @dali.pipeline_def(batch_size=split.num_samples, num_threads=1, device_id=None)
    def pipeline() -> object:
        data, label = dali.fn.readers.webdataset(
            paths=tars, index_paths=[path.replace(".tar", ".idx") for path in tars], ext=["jpg", "cls"]
        )
        return data, label, dali.fn.decoders.image(data, jpeg_fancy_upsampling=True)

    built = pipeline()
    built.build()
    data, labels, images = built.run()
    for i in range(split.num_samples):
        assert bytes(np.array(data[i])) == bytes(split.read(i))
        assert int(bytes(np.array(labels[i]))) == split.labels()[i]
        ours = cv2.imdecode(np.frombuffer(split.read(i), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
        np.testing.assert_array_equal(np.array(images[i]), ours)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("written")
    multi = data.draw(st.booleans())
    count = data.draw(st.integers(1, 12))
    label = st.integers(-32768, 32767) if multi else st.sampled_from([0, 1])
    keys = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,78}", fullmatch=True)
    samples = [
        Sample(
            split=data.draw(st.sampled_from(["train", "val"])),
            key=key,
            image=data.draw(st.binary(min_size=1, max_size=1500)),
            encoding=data.draw(st.sampled_from(["jpeg", "png", "tiff"])),
            labels=tuple(data.draw(st.lists(label, min_size=3, max_size=3))) if multi else (data.draw(label),),
            height=data.draw(st.integers(1, 4000)),
            width=data.draw(st.integers(1, 4000)),
            group=data.draw(st.integers(0, 2**64 - 1)),
        )
        for key in data.draw(st.lists(keys, unique=True, min_size=count, max_size=count))
    ]
    with mock.patch("os.fsync"):  # waiting for the disk is most of the time
        written = write_set(
            folder,
            samples,
            name="x",
            classes=["a", "b", "c"] if multi else ["a", "b"],
            task="multi-label" if multi else "single-label",
            shard_size=data.draw(st.integers(1, 5)),
            mean=[0.5] * 3,
            std=[0.2] * 3,
        )
    for name in written.split_names:
        split, wanted = written.split(name), [sample for sample in samples if sample.split == name]
        rows = split.rows(np.arange(split.num_samples))
        assert [bytes(split.read(i)) for i in range(split.num_samples)] == [sample.image for sample in wanted]
        assert [split.key(i) for i in range(split.num_samples)] == [sample.key for sample in wanted]
        assert rows.labels.tolist() == [list(sample.labels) for sample in wanted]
        assert rows.groups.tolist() == [sample.group for sample in wanted]
        assert list(zip(rows.heights, rows.widths, strict=True)) == [(s.height, s.width) for s in wanted]
        assert rows.sample_ids.tolist() == [sample_id(written.manifest.set_id, sample.key) for sample in wanted]


GOOD = {"key": "k", "image": b"x", "encoding": "png", "labels": [1], "height": 2, "width": 3, "group": 4}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "k" * (MAX_KEY_BYTES + 1)}, "is not allowed: 1..79 ASCII letters"),
        ({"key": "a b"}, "key 'a b' is not allowed"),
        ({"key": "ü"}, "is not allowed"),
        ({"key": "a.b"}, "is not allowed"),
        ({"key": "../a"}, "is not allowed"),
        ({"key": "first"}, "key first stands twice"),
        ({"encoding": "gif"}, "encoding 'gif' of sample k is unknown; known: jpeg, png"),
        ({"labels": [40_000]}, "outside -32767..32767"),
        ({"labels": [1, 2]}, "sample k has 2 labels, 1 wanted"),
        ({"labels": []}, "sample k has 0 labels, 1 wanted"),
        ({"image": b""}, "has 0 bytes"),
        ({"height": 0}, "sample k is 0 x 3"),
        ({"height": 65_000, "width": 65_000}, "at most 65535 a side"),
    ],
)
def test_bad_samples_are_refused_and_nothing_is_left(tmp_path: Path, change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words), ShardWriter(tmp_path, "train", 0, SET_ID) as writer:
        writer.add(**(GOOD | {"key": "first"}))  # type: ignore[arg-type]
        writer.add(**(GOOD | change))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(moment, fail)
    with pytest.raises(OSError, match="disk full"), ShardWriter(tmp_path, "train", 0, SET_ID) as writer:
        writer.add(**GOOD)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_set_is_taken_away(tmp_path: Path) -> None:
    def samples() -> object:
        for i in range(5):
            yield Sample("train", f"k{i}", b"x", "png", (0,), 1, 1, i)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_set(tmp_path, samples(), name="x", classes=["a"], shard_size=2, mean=[0] * 3, std=[1] * 3)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_empty_shard_and_an_empty_set_are_not_written(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"train-000000\.tar would hold no sample"),
        ShardWriter(tmp_path, "train", 0, SET_ID),
    ):
        pass
    with pytest.raises(ValueError, match="a set needs at least one"):
        write_set(tmp_path, [], name="x", classes=["a"])
    assert list(tmp_path.iterdir()) == []


def test_extra_and_raw_shape_go_into_the_json(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "train", 0, SET_ID) as writer:
        writer.add("k", bytes(12), "raw", [1], 3, 4, 0, {"laterality": "left"})
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        found = {m.name: io.BytesIO(tar.extractfile(m).read()).read() for m in tar}  # type: ignore[union-attr]
    assert found == {"k.raw": bytes(12), "k.cls": b"1", "k.json": b'{"height":3,"laterality":"left","width":4}'}


def test_keys_are_numbered_and_hashed_with_the_salt() -> None:
    key = make_key(17, "/data/patient 4/left.png", bytes(32))
    assert key.startswith("00000017-") and len(key) == 17 and key == make_key(17, "/data/patient 4/left.png", bytes(32))
    assert key != make_key(17, "/data/patient 4/left.png", b"\1" * 32)
    with pytest.raises(ValueError, match=r"sample number 100000000 is outside 0\.\.99999999"):
        make_key(10**8, "x", bytes(32))


@given(
    st.text("abcXYZ019_-", min_size=1, max_size=79), st.sampled_from(["jpg", "cls", "json"]), st.integers(0, 8**11 - 1)
)
def test_a_header_is_the_one_that_tarfile_writes(key: str, extension: str, size: int) -> None:
    wanted = tarfile.TarInfo(f"{key}.{extension}")
    wanted.size = size
    assert tar_header(wanted.name, size) == wanted.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
