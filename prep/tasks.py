"""The unit of work of a conversion: one shard, from raw files to a finished tar and a small record of what it holds.

A task depends on nothing but its own fields, so any number of workers, in any order, after any interruption, writes
the same bytes. A worker holds one file and its pixels at a time (8 bytes a pixel), of a store's files READ_AHEAD more.
Images of HDF5 files and of slides come out of buckets, where they lie encoded (prep/gathering.py).
"""

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import connection, parent_process
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import simplejpeg
import xxhash

from prep.allocation import one_image_at_a_time
from prep.buckets import Buckets, Encoded
from prep.delivery import deliver
from prep.hdf5 import read_row
from prep.images import PixelOptions, UndecodableImage, prepare, prepare_pixels, read_file
from prep.near_duplicates import descriptor, packed
from prep.whole_slides import Region, read_tile
from shards.aside import write_aside
from shards.decoding import decode
from shards.manifest import ShardInfo, file_sha256
from shards.metadata import Metadata
from shards.packing import pack
from shards.writer import ShardWriter

READ_AHEAD = 4  # files of a store


@dataclass(frozen=True)
class Item:
    """One sample of a task: its key, raw file, source labels (blanks as in the index), group hash, and what its table
    tells of the allow-list. `bucket`: where it lies encoded, if it does.
    """

    key: str
    path: Path
    labels: tuple[int, ...]
    group: int
    row: int | None = None
    region: Region | None = None
    metadata: Metadata = field(default_factory=dict)
    bucket: Path | None = None


@dataclass(frozen=True)
class Task:
    """One shard to write. `fields` are the metadata fields that the set holds."""

    split: str
    shard: int
    items: tuple[Item, ...]
    folder: Path
    outcomes: Path
    set_id: str
    kind: Literal["single-label", "multi-label"]
    pixels: PixelOptions
    strict: bool
    compress: bool = False  # a .tar.zst in place of the tar
    url: str | None = None  # where the files go instead of `folder`
    alone: bool = True  # False: another worker may come to write the same shard
    fields: tuple[str, ...] = ()
    near_duplicates: bool = False  # describe each image, so that they can be looked for

    @property
    def names(self) -> list[str]:
        """The shard's files."""
        return [f"{self.stem}.tar{'.zst' if self.compress else ''}", f"{self.stem}.cols", f"{self.stem}.idx"]

    @property
    def stem(self) -> str:
        """The shard's file name without its extension."""
        return f"{self.split}-{self.shard:06d}"

    def run(self, tick: Callable[[int, bool], None]) -> "Outcome":
        """Write it: see run_task."""
        return run_task(self, tick)


@dataclass
class Outcome:
    """What one finished shard holds. `info` is None where no image of it decoded.

    `left_out` are (key, reason); `sums` and `squares` are exact sums over all stored pixels, a number a channel;
    `several_frames` counts files of which only the first frame is stored; `hashes` are xxh3_64 of each stored image's
    pixels, in stored order; so are `descriptors`, where asked for.
    """

    info: dict[str, Any] | None = None
    idx_sha256: str = ""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    raw_bytes: int = 0
    num_pixels: int = 0
    sums: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)
    several_frames: int = 0

    def measure(self, stored: np.ndarray) -> None:
        """Add one stored image, uint8|uint16[h, w, c], to the sums and hashes."""
        self.num_pixels += stored.shape[0] * stored.shape[1]
        sums, squares = exact_sums(stored)
        self.sums = [a + b for a, b in zip(self.sums or [0] * len(sums), sums, strict=True)]
        self.squares = [a + b for a, b in zip(self.squares or [0] * len(sums), squares, strict=True)]
        digest = xxhash.xxh3_64(np.array(stored.shape, "<u4").tobytes())
        digest.update(np.ascontiguousarray(stored).data)
        self.hashes.append(digest.intdigest())


def exact_sums(stored: np.ndarray) -> tuple[list[int], list[int]]:
    """Sums and sums of squares of uint8|uint16[h, w, c], an integer a channel, without rounding.

    OpenCV sums uint8 some forty times sooner than numpy does in 64 bits. It returns doubles; at most 2^28 pixels of
    squares below 2^16 stay under 2^44, where a double's error, even of a root squared again, is far below a half.
    """
    planes = cv2.split(np.ascontiguousarray(stored))
    if stored.dtype == np.uint8:
        sums = [round(cv2.sumElems(plane)[0]) for plane in planes]
        return sums, [round(cv2.norm(plane, cv2.NORM_L2SQR)) for plane in planes]
    wide = [plane.astype(np.uint64) for plane in planes]
    return [int(plane.sum()) for plane in wide], [int((plane * plane).sum()) for plane in wide]


class Stopped(Exception):
    """The run ends early; the shard under work is dropped."""


def run_task(task: Task, tick: Callable[[int, bool], None]) -> Outcome:
    """Write one shard. `tick(raw bytes, decoded)` is called once an image and may raise Stopped.

    Raises:
        ValueError: an image does not decode and the task is strict.
    """
    one_image_at_a_time()
    if task.url is None:
        return _write(task, task.folder, tick)
    with TemporaryDirectory(prefix="medshard-") as folder:
        outcome = _write(task, Path(folder), tick)
        if outcome.info is not None:
            deliver(Path(folder), task.names, task.url)
        return outcome


def _write(task: Task, folder: Path, tick: Callable[[int, bool], None]) -> Outcome:
    outcome = Outcome()
    fields = task.fields
    writer = ShardWriter(folder, task.split, task.shard, task.set_id, task=task.kind, fields=fields, alone=task.alone)
    try:
        with Buckets() as buckets:
            for item, read in reading(task.items):
                own = partial(encoded, item, read, task.pixels)
                make = own if item.bucket is None else partial(buckets.take, item.bucket, item.key)
                _add(writer, item, make, task, outcome, tick)
        if len(writer):
            info = writer.close()
            outcome.info = (pack(folder, info, alone=task.alone) if task.compress else info).model_dump()
            outcome.idx_sha256 = file_sha256(folder / f"{task.stem}.idx")
        else:
            writer.abort()
    except BaseException:
        writer.abort()
        raise
    return outcome


def keep(task: Task, outcome: Outcome) -> None:
    """Record a finished task, so that a later run need not repeat it."""
    write_aside(task.outcomes / f"{task.stem}.json", json.dumps(asdict(outcome)).encode())


def reading(items: tuple[Item, ...]) -> Iterator[tuple[Item, Callable[[], bytes]]]:
    """Each item with what reads its file; files of a store are read a few ahead, since each costs a round trip."""
    if all(isinstance(item.path, Path) for item in items):
        yield from ((item, partial(read_file, item.path)) for item in items)
        return
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        waiting: deque[tuple[Item, Callable[[], bytes]]] = deque()
        for item in items:
            whole = item.row is None and item.region is None and item.bucket is None
            waiting.append((item, pool.submit(read_file, item.path).result if whole else partial(read_file, item.path)))
            if len(waiting) > READ_AHEAD:
                yield waiting.popleft()
        yield from waiting


def _add(
    writer: ShardWriter,
    item: Item,
    make: Callable[[], Encoded],
    task: Task,
    outcome: Outcome,
    tick: Callable[[int, bool], None],
) -> None:
    try:
        data, height, width, metadata, size, frames = make()
    except UndecodableImage as error:
        if task.strict:
            raise undecodable(item.key, str(error), task.folder) from None
        outcome.left_out.append((item.key, str(error)))
        tick(0, False)
        return
    told = {name: value for name, value in metadata.items() if name in task.fields}
    # Read back what was written: the statistics are those of the stored pixels, and a broken encoder is seen here.
    stored = read_back(data, task.pixels, height, width)
    outcome.measure(stored)
    if task.near_duplicates:
        outcome.descriptors.append(packed(descriptor(stored)))
    writer.add(item.key, data, task.pixels.format, item.labels, height, width, item.group, metadata=told)
    outcome.raw_bytes += size
    outcome.several_frames += frames > 1
    tick(size, True)


def encoded(item: Item, read: Callable[[], bytes], pixels: PixelOptions) -> Encoded:
    """An image as it will be stored, made from its source, whether it lies in a bucket or not. `read` gives its file.

    Raises:
        UndecodableImage: there is none, with the reason.
    """
    if item.row is None and item.region is None:
        data = read()
        size, prepared = len(data), prepare(data, pixels, item.metadata)
    else:
        raw = read_tile(item.path, item.region) if item.region else read_row(item.path, item.row or 0)
        size, prepared = raw.nbytes, prepare_pixels(raw, pixels, item.metadata)
    height, width = prepared.pixels.shape[:2]
    return Encoded(prepared.encoded, height, width, prepared.metadata, size, prepared.frames)


def read_back(encoded: bytes, options: PixelOptions, height: int, width: int) -> np.ndarray:
    """Stored pixels uint8|uint16[h, w, c] as a loader decodes them; ValueError where they do not decode."""
    if options.format == "jpeg":  # OpenCV's pixels, sooner
        image: np.ndarray = simplejpeg.decode_jpeg(encoded, "RGB" if options.channels == 3 else "GRAY")
        if image.shape != (height, width, options.channels):
            raise ValueError(f"the encoder wrote {image.shape} for {height} x {width} x {options.channels}")
        return image
    return decode(encoded, options.format, options.channels, height, width, options.bits)


def undecodable(key: str, reason: str, out: Path) -> ValueError:
    """What stops a strict run."""
    return ValueError(
        f"sample {key} does not decode: {reason}. Its source stands in {out.name}.private/sources.csv; without "
        "--strict such samples are left out and recorded"
    )


def finished(task: Task, there: Collection[str] = ()) -> Outcome | None:
    """The outcome of a task that an earlier run finished, if its files still are what they were; else None.

    `there`: the files at the task's URL, where it has one; they were seen whole when they were put there.
    """
    path = task.outcomes / f"{task.stem}.json"
    if not path.is_file():
        return None
    document = json.loads(path.read_bytes())
    document["left_out"] = [tuple(pair) for pair in document["left_out"]]
    outcome = Outcome(**document)
    if outcome.info is None:
        return outcome
    if task.near_duplicates and len(outcome.descriptors) != len(outcome.hashes):
        return None  # that run was not asked for them
    if task.url is not None:
        return outcome if all(name in there for name in task.names) else None
    info = ShardInfo.model_validate(outcome.info)
    wanted = (info.packed_sha256 if task.compress else info.sha256, info.index_sha256, outcome.idx_sha256)
    files = {task.folder / name: digest for name, digest in zip(task.names, wanted, strict=True)}
    intact = all(file.is_file() and file_sha256(file) == digest for file, digest in files.items())
    return outcome if intact else None


# --- inside a worker process: what the pool hands over once, at its start

_shared: dict[str, Any] = {}


def start_worker(stop: Any, counters: Any) -> None:
    """Pool initializer: a worker ends with its parent, however that ends."""
    _shared.update(stop=stop, counters=counters)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


class Work(Protocol):
    """What workers can run: a shard, or a bucket."""

    @property
    def stem(self) -> str:
        """Its name in messages."""

    @property
    def folder(self) -> Path:
        """Where what it makes goes, unless there is a `url`."""

    @property
    def url(self) -> str | None:
        """Where a store gets what it makes."""

    @property
    def compress(self) -> bool:
        """Whether zstd packs it."""

    @property
    def items(self) -> tuple[Item, ...]:
        """Its images."""

    def run(self, tick: Callable[[int, bool], None]) -> Outcome:
        """Do it. `tick(raw bytes, decoded)` is called once an image and may raise Stopped."""


def run_in_worker(task: Work) -> Outcome:
    """A task in a pool: progress goes to the shared counters (images, raw bytes, failures)."""

    def tick(size: int, decoded: bool) -> None:
        if _shared["stop"].is_set():
            raise Stopped
        with _shared["counters"].get_lock():
            for position, value in enumerate((1, size, int(not decoded))):
                _shared["counters"][position] += value

    return task.run(tick)
