"""HDF5 files and slides are read once, in source order, into buckets. Run: pytest tests/test_gathering.py"""

import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conversions import digests

import prep.convert
import prep.gathering
import prep.hdf5
from prep.buckets import Buckets, Encoded, left_out_of, write_bucket
from prep.convert import convert
from prep.images import PixelOptions, UndecodableImage
from prep.phantoms import SALT_NAME, draw_phantoms
from prep.planning import ConvertOptions
from prep.slide_layouts import MICRONS
from prep.sources import DATASETS
from prep.sources.slides import with_tiles
from prep.tasks import Item
from prep.whole_slides import Region, TileOptions
from shards.checking import check_set
from shards.manifest import Manifest

CAMELYON = DATASETS["Camelyon"]
OPTIONS = ConvertOptions(pixels=PixelOptions(3, None, "raw"), shard_samples=25, quiet=True)
CHUNK = 8


def write_patches(root: Path, **layout: Any) -> None:
    rng = np.random.default_rng(0)
    root.mkdir()
    for part, count in (("train", 100), ("valid", 21), ("test", 21)):
        stem = f"camelyonpatch_level_2_split_{part}"
        with h5py.File(root / f"{stem}_x.h5", "w") as file:
            file.create_dataset("x", data=rng.integers(0, 256, (count, 12, 12, 3), np.uint8), **layout)
        with h5py.File(root / f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
    (root / SALT_NAME).write_bytes(bytes(32))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    prep.hdf5._opened.cache_clear()
    prep.hdf5.layout_of.cache_clear()
    write_patches(tmp_path / "raw", chunks=(CHUNK, 12, 12, 3), compression="gzip")
    return tmp_path / "raw"


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prep.gathering, "BUCKET_BYTES", 20 * 12 * 12 * 3)
    monkeypatch.setattr(prep.hdf5, "BLOCK_ROWS", CHUNK)


def make(raw: Path, out: Path, options: ConvertOptions = OPTIONS) -> Manifest:
    return convert(CAMELYON, raw, out, options, raw / SALT_NAME)[0]


def make_directly(monkeypatch: pytest.MonkeyPatch, raw: Path, out: Path, dataset: Any = CAMELYON) -> dict[str, str]:
    """The set without buckets, each image read where the shard wants it."""
    with monkeypatch.context() as patch:
        patch.setattr(prep.convert, "with_buckets", lambda tasks, folder: (tasks, []))
        convert(dataset, raw, out, OPTIONS, raw / SALT_NAME)
    return digests(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_single_reads(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    wanted = make_directly(monkeypatch, raw, tmp_path / "direct")
    make(raw, tmp_path / "set", replace(OPTIONS, workers=workers))
    assert digests(tmp_path / "set") == wanted
    assert {path.name for path in (tmp_path / "set.private").iterdir()} == {
        "salt", "sources.csv", "left_out.csv", "lock",
    }  # fmt: skip


class Spy:
    """A data set that notes what is read of it."""

    def __init__(self, data: Any):
        self.data, self.read = data, []
        self.shape, self.dtype, self.chunks = data.shape, data.dtype, data.chunks

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: Any) -> Any:
        self.read.append(rows)
        return self.data[rows]


def test_each_chunk_is_unpacked_once(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, spies = prep.hdf5.open_images, {}

    def spied(path: Path, name: str = "x") -> Any:
        return real(path, name) if name == "y" else spies.setdefault(path, Spy(real(path, name)))

    monkeypatch.setattr(prep.hdf5, "open_images", spied)
    make(raw, tmp_path / "set")
    assert len(spies) == 3
    for spy in spies.values():
        chunks = [chunk for part in spy.read for chunk in range(part.start // CHUNK, -(-part.stop // CHUNK))]
        assert chunks == list(range(-(-len(spy.data) // CHUNK)))  # each once, in the order of the file


def test_an_interrupted_run_reads_no_bucket_again(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = make_directly(monkeypatch, raw, tmp_path / "direct")
    real, written = prep.gathering.write_bucket, []

    def failing(path: Path, images: Any, **given: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        real(path, images, **given)
        written.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(prep.gathering, "write_bucket", failing)
        with pytest.raises(KeyboardInterrupt):
            make(raw, tmp_path / "set")
    (folder,) = (tmp_path / "set.private" / "buckets").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == written
    (folder / ".bucket-000003.partial").write_bytes(b"of a killed run")
    again: list[str] = []
    monkeypatch.setattr(
        prep.gathering, "write_bucket", lambda path, images, **given: (again.append(path.name), real(path, images))[1]
    )
    make(raw, tmp_path / "set")
    assert digests(tmp_path / "set") == wanted
    assert again and not set(again) & set(written)
    assert not (tmp_path / "set.private" / "buckets").exists()


def test_buckets_of_other_options_go(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("prep.tasks.ShardWriter.close", full)
        for seed in (0, 1):
            with pytest.raises(ValueError, match="No space left on device"):
                make(raw, tmp_path / "set", replace(OPTIONS, seed=seed))
            assert len(list((tmp_path / "set.private" / "buckets").iterdir())) == 1


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes, as it does when a disk is full."""
    old, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


def test_no_room_for_a_bucket_is_one_line_and_the_run_goes_on(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make_directly(monkeypatch, raw, tmp_path / "direct")
    with (
        files_up_to(12_000),
        pytest.raises(ValueError, match=r"writing .*set failed \(.*\): free space or mend the disk, then run the same"),
    ):
        make(raw, tmp_path / "set")
    assert not list((tmp_path / "set.private").rglob("*partial"))
    make(raw, tmp_path / "set")
    assert digests(tmp_path / "set") == wanted


def break_chunk(path: Path) -> bytes:
    """Break rows 16 to 23; returns what stood there before."""
    whole = path.read_bytes()
    with h5py.File(path) as file:
        place = file["x"].id.get_chunk_info(2).byte_offset
    path.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
    return whole


def test_rows_of_a_broken_chunk_are_left_out_and_the_others_kept(raw: Path, tmp_path: Path) -> None:
    path = raw / "camelyonpatch_level_2_split_train_x.h5"
    break_chunk(path)
    with pytest.raises(ValueError, match=r"\d+ of 142 images do not decode, more than --max-bad"):
        make(raw, tmp_path / "set")
    with pytest.raises(ValueError, match=r"sample \d{8}-[0-9a-f]{8} does not decode: the row cannot be read"):
        make(raw, tmp_path / "strict", replace(OPTIONS, strict=True, max_bad=0.1))
    manifest = make(raw, tmp_path / "set", replace(OPTIONS, max_bad=0.1))
    assert {entry.reason for entry in manifest.left_out} == {"the row cannot be read (OSError)"}
    rows = [line.split(",")[1] for line in (tmp_path / "set.private" / "left_out.csv").read_text().splitlines()[1:]]
    assert sorted(rows, key=lambda row: int(row.split()[-1])) == [f"{path.name} row {n}" for n in range(16, 24)]
    assert manifest.splits["train"].samples == 92
    assert not [problem for problem in check_set(tmp_path / "set") if problem.fatal]


def test_too_many_broken_rows_are_told_before_all_is_read_and_a_mended_file_is_read_again(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make_directly(monkeypatch, raw, tmp_path / "direct")
    path = raw / "camelyonpatch_level_2_split_train_x.h5"
    whole = break_chunk(path)
    real, filled = prep.gathering.write_bucket, []
    monkeypatch.setattr(
        prep.gathering,
        "write_bucket",
        lambda path, *given, **more: (filled.append(path.name), real(path, *given, **more)),
    )
    for _ in range(2):  # what is broken still is not read again
        with pytest.raises(ValueError, match="8 of 142 images do not decode, more than --max-bad"):
            make(raw, tmp_path / "set")
        assert filled == ["bucket-000000", "bucket-000001"]
    path.write_bytes(whole)
    make(raw, tmp_path / "set", replace(OPTIONS, strict=True))
    assert filled[2:4] == ["bucket-000001", "bucket-000002"] and digests(tmp_path / "set") == wanted
    assert (tmp_path / "set.private" / "left_out.csv").read_text() == "key,source,split,reason\n"


def test_tiles_of_slides_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_phantoms("Camelyon-slides", tmp_path / "raw", 20, size=512, quiet=True)
    dataset = with_tiles(DATASETS["Camelyon-slides"], TileOptions(32, 4 * MICRONS))
    wanted = make_directly(monkeypatch, tmp_path / "raw", tmp_path / "direct", dataset)
    convert(dataset, tmp_path / "raw", tmp_path / "set", OPTIONS, tmp_path / "raw" / SALT_NAME)
    assert digests(tmp_path / "set") == wanted


def test_a_bucket_gives_back_what_was_put_in(tmp_path: Path) -> None:
    image = Encoded(b"\0\xff" * 9, 3, 6, {"sex": "female", "pixel_spacing_mm": 0.25}, 54)
    write_bucket(tmp_path / "bucket", [("b", image), ("a", "it is broken")])
    with Buckets() as buckets:
        assert buckets.take(tmp_path / "bucket", "b") == image
        with pytest.raises(UndecodableImage, match="it is broken"):
            buckets.take(tmp_path / "bucket", "a")


def test_images_of_a_bucket_share_its_path(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Path of its own for each of ten million tiles took gigabytes."""
    real, found = prep.convert.with_buckets, []

    def with_buckets(*given: Any) -> Any:
        found.append(real(*given))
        return found[0]

    monkeypatch.setattr(prep.convert, "with_buckets", with_buckets)
    make(raw, tmp_path / "set")
    ((tasks, buckets),) = found
    assert len({id(item.bucket) for task in tasks for item in task.items}) == len(buckets) == 7


def test_a_file_put_in_the_place_of_an_open_one_is_read(tmp_path: Path) -> None:
    """A worker of a cluster lives on while somebody mends a raw file."""
    for name in "ab":
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = np.full((2, 4, 4, 3), ord(name), np.uint8)
    assert prep.hdf5.read_row(tmp_path / "a", 0).max() == ord("a")
    (tmp_path / "b").replace(tmp_path / "a")
    assert prep.hdf5.read_row(tmp_path / "a", 0).max() == ord("b")


def test_what_is_no_whole_bucket_is_filled_again(tmp_path: Path) -> None:
    assert left_out_of(tmp_path / "bucket") is None
    write_bucket(tmp_path / "bucket", [("b", Encoded(b"", 1, 1, {}, 1)), ("a", "it is broken")])
    assert left_out_of(tmp_path / "bucket") == [("a", "it is broken")]
    (tmp_path / "bucket").write_bytes(b"of a broken disk" * 99)
    assert left_out_of(tmp_path / "bucket") is None


def test_two_hosts_may_write_one_bucket_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may have the same number."""
    monkeypatch.setattr("os.getpid", lambda: 7)
    path, image = tmp_path / "bucket", Encoded(b"\1" * 9, 3, 3, {}, 9)

    def images() -> Iterator[tuple[str, Encoded]]:
        write_bucket(path, [("a", image)], alone=False)
        yield "a", image

    write_bucket(path, images(), alone=False)
    assert [found.name for found in tmp_path.iterdir()] == ["bucket"]
    with Buckets() as buckets:
        assert buckets.take(path, "a") == image


def open_files(folder: Path) -> list[str]:
    """The files below `folder` that this process holds open, deleted ones too."""
    links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(folder))]


def test_two_threads_write_the_shards_and_no_bucket_stays_open(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Dask worker with two threads, which lives on when the set is finished."""
    wanted = make_directly(monkeypatch, raw, tmp_path / "direct")
    monkeypatch.setattr("prep.buckets.MAX_OPEN", 2)

    def run_threads(tasks: list[Any], workers: int, progress: Any, done: Any) -> None:
        with ThreadPoolExecutor(2) as pool:
            for task, outcome in zip(tasks, pool.map(lambda task: task.run(lambda *_: None), tasks), strict=True):
                done(task, outcome)

    monkeypatch.setattr(prep.convert, "run_tasks", run_threads)
    make(raw, tmp_path / "set")
    assert digests(tmp_path / "set") == wanted
    assert not open_files(tmp_path / "set.private")


@pytest.mark.parametrize(("most", "lengths"), [(1 << 28, [24, 24, 24, 24, 4]), (9 * 432, [9] * 11 + [1])])
def test_buckets_begin_with_chunks_and_are_bounded(
    raw: Path, monkeypatch: pytest.MonkeyPatch, most: int, lengths: list[int]
) -> None:
    monkeypatch.setattr(prep.gathering, "MAX_BYTES", most)
    path = raw / "camelyonpatch_level_2_split_train_x.h5"
    items = [Item(f"{row}", path, (0,), 0, row) for row in range(100)]
    assert [len(part) for part in prep.gathering._cut(items)] == lengths
    tiles = [Item(f"{n}", path, (0,), 0, None, Region(0, n, 9.0, 12)) for n in range(100)]
    assert {len(part) for part in prep.gathering._cut(tiles)} <= {20, 9, 1}


def test_chunks_too_large_to_hold_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_patches(tmp_path / "raw", chunks=(20, 3, 4, 1), compression="gzip")
    path = tmp_path / "raw" / "camelyonpatch_level_2_split_train_x.h5"
    monkeypatch.setattr(prep.hdf5, "BLOCK_BYTES", 10 * 432)
    with h5py.File(path) as file:
        wanted = file["x"][:]
    np.testing.assert_array_equal(list(prep.hdf5.read_rows(path, range(100))), wanted)
    np.testing.assert_array_equal(list(prep.hdf5.read_rows(path, [3, 50, 99])), wanted[[3, 50, 99]])
