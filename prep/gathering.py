"""Before the shards: what is slow to read at random is read once, in the order of the source, into buckets on disk.

An HDF5 file is unpacked a chunk at a time, however few of its rows are wanted, and neighbouring tiles of a slide share
the tiles of its file: in the shuffled order of the shards a chunk of 32 rows would be unpacked 32 times. So tasks
come in two kinds. A Bucket reads a run of consecutive images and keeps them encoded, sorted by the shards that want
them (prep/buckets.py); then each shard takes its images out of the buckets in its own, shuffled order. Which image
lies in which bucket follows from the plan alone, a bucket is seen when it is whole, and its images are encoded as
without it: the bytes of a set depend neither on workers nor on interruptions.

A worker holds one bucket encoded (at most MAX_BYTES of pixels) and one block of rows as they are read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import ClassVar

import numpy as np

from prep.allocation import one_image_at_a_time
from prep.buckets import Encoded, write_bucket
from prep.hdf5 import layout_of, read_rows
from prep.images import PixelOptions, UndecodableImage, prepare_pixels
from prep.tasks import Item, Outcome, Task, undecodable
from prep.whole_slides import read_tile

BUCKET_BYTES = 1 << 26  # of decoded pixels; a bucket ends at the next beginning of a chunk
MAX_BYTES = 1 << 28  # where chunks are larger than this, they are cut


@dataclass(frozen=True)
class Bucket:
    """One bucket to fill: `items` in the order of the source. `out` is the set's folder, for messages."""

    number: int
    items: tuple[Item, ...]
    folder: Path
    out: Path
    pixels: PixelOptions
    strict: bool
    alone: bool
    compress: ClassVar[bool] = False
    url: ClassVar[None] = None

    @property
    def stem(self) -> str:
        """The name that messages use."""
        return f"bucket-{self.number:06d}"

    @property
    def path(self) -> Path:
        """Where it lies; it is there when it is whole."""
        return self.folder / self.stem

    def run(self, tick: Callable[[int, bool], None]) -> Outcome:
        """Fill it. `tick(raw bytes, decoded)` is called once an image and may raise Stopped.

        Raises:
            ValueError: an image cannot be read and the run is strict.
        """
        one_image_at_a_time()
        outcome, images = Outcome(), []
        for item, image in _encoded(self.items, self.pixels):
            if isinstance(image, str):
                if self.strict:
                    raise undecodable(item.key, image, self.out)
                outcome.left_out.append((item.key, image))
            else:
                outcome.raw_bytes += image.size
            images.append((item.key, image))
            tick(0 if isinstance(image, str) else image.size, not isinstance(image, str))
        write_bucket(self.path, images, alone=self.alone)
        return outcome


def _encoded(items: Iterable[Item], options: PixelOptions) -> Iterator[tuple[Item, Encoded | str]]:
    """Each item with its image as it will be stored, or the reason why there is none."""
    for item, pixels in _read(items):
        if isinstance(pixels, UndecodableImage):
            yield item, str(pixels)
            continue
        prepared = prepare_pixels(pixels, options, item.metadata)
        height, width = prepared.pixels.shape[:2]
        yield item, Encoded(prepared.encoded, height, width, prepared.metadata, pixels.nbytes)


def _read(items: Iterable[Item]) -> Iterator[tuple[Item, np.ndarray | UndecodableImage]]:
    for path, group in groupby(items, key=lambda item: item.path):
        own = list(group)
        if own[0].region is None:
            yield from zip(own, read_rows(path, [item.row or 0 for item in own]), strict=True)
            continue
        for item in own:
            assert item.region is not None
            try:
                yield item, read_tile(path, item.region)
            except UndecodableImage as error:
                yield item, error


def with_buckets(tasks: list[Task], folder: Path) -> tuple[list[Task], list[Bucket]]:
    """The buckets that the tasks want, in the order of the source; and the tasks that know where each image lies.

    Sets of plain files want none.
    """
    wanted = [item for task in tasks for item in task.items if item.row is not None or item.region is not None]
    wanted.sort(key=lambda item: (str(item.path), item.row or 0, _place(item), item.key))
    buckets = [
        Bucket(number, tuple(part), folder, tasks[0].folder, tasks[0].pixels, tasks[0].strict, tasks[0].alone)
        for number, part in enumerate(_cut(wanted))
    ]
    where = {item.key: path for bucket in buckets for path in (bucket.path,) for item in bucket.items}
    told = [replace(item, bucket=where.get(item.key)) for task in tasks for item in task.items] if where else []
    items = iter(told)
    return [replace(task, items=tuple(next(items) for _ in task.items)) if where else task for task in tasks], buckets


def _place(item: Item) -> tuple[float, float]:
    return (item.region.top, item.region.left) if item.region is not None else (0.0, 0.0)


def _cut(items: list[Item]) -> Iterator[list[Item]]:
    """Runs of about BUCKET_BYTES of pixels; no chunk is cut in two unless it is larger than MAX_BYTES."""
    part: list[Item] = []
    held = 0
    for item in items:
        size, begins = _size(item)
        if part and (held + size > MAX_BYTES or (held >= BUCKET_BYTES and begins)):
            yield part
            part, held = [], 0
        part.append(item)
        held += size
    if part:
        yield part


def _size(item: Item) -> tuple[int, bool]:
    """(bytes of the decoded pixels, whether a bucket may begin with it)."""
    if item.region is not None:
        return 3 * item.region.size**2, True
    row_bytes, chunk_rows = layout_of(item.path)
    return row_bytes, (item.row or 0) % chunk_rows == 0
