"""Buckets: consecutive images of an HDF5 file or of slides, encoded as they will be stored, in one small database each.

A bucket is filled once, in the order of the source, and then asked for single images in the order of the shards. Its
rows lie in the order of the keys, which is that of the shards: what one shard wants of a bucket lies together.
"""

import errno
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Self

from prep.images import UndecodableImage
from shards.aside import aside
from shards.metadata import Metadata

MAX_OPEN = 128  # a task
TABLES = """
create table images (key text primary key, height int, width int, size int, told text, data blob);
create table left_out (key text primary key, reason text);
"""


class Encoded(NamedTuple):
    """One image as it will be stored: its encoding, pixels a side, metadata, and the bytes that were read for it.

    `frames`: of the file, which has several only where it is DICOM.
    """

    data: bytes
    height: int
    width: int
    told: Metadata
    size: int
    frames: int = 1


def write_bucket(path: Path, images: Iterable[tuple[str, Encoded | str]], *, alone: bool = True) -> None:
    """Write (key, image or the reason why there is none), sorted by key, whole or not at all.

    alone False: another worker may come to write the same bucket.

    Raises:
        OSError: no room, or a broken disk.
    """
    try:
        with aside(path, shared=not alone) as part, closing(sqlite3.connect(part, isolation_level=None)) as database:
            database.executescript(f"pragma journal_mode=off; pragma synchronous=off; begin; {TABLES}")
            for key, image in sorted(images):
                if isinstance(image, str):
                    database.execute("insert into left_out values (?, ?)", (key, image))
                else:
                    database.execute("insert into images values (?, ?, ?, ?, ?, ?)", _row(key, image))
            database.execute("commit")
    except sqlite3.Error as error:
        raise OSError(errno.EIO, str(error)) from None


def _row(key: str, image: Encoded) -> tuple[object, ...]:
    return key, image.height, image.width, image.size, json.dumps(dict(image.told)), image.data


def left_out_of(path: Path) -> list[tuple[str, str]] | None:
    """(key, reason) of the images that a bucket could not be given; None where there is no whole bucket."""
    if not path.is_file():
        return None
    try:
        with closing(_connect(path)) as database:
            return database.execute("select key, reason from left_out order by key").fetchall()
    except sqlite3.Error:
        return None


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?immutable=1", uri=True)


class Buckets:
    """Buckets that one task reads, in the thread that runs it. They are closed with it: a deleted file that is open
    keeps its room, and a folder that holds one cannot be removed from NFS.
    """

    def __init__(self) -> None:
        self._open: OrderedDict[Path, sqlite3.Connection] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def take(self, path: Path, key: str) -> Encoded:
        """One image of a bucket.

        Raises:
            UndecodableImage: there was none, with the reason.
            OSError: the bucket cannot be read.
        """
        try:
            bucket = self._connection(path)
            found = bucket.execute("select * from images where key = ?", (key,)).fetchone()
            reason = found or bucket.execute("select reason from left_out where key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error)) from None
        assert reason is not None, f"{key} is not in {path.name}"
        if found is None:
            raise UndecodableImage(reason[0])
        _, height, width, size, told, data = found
        return Encoded(data, height, width, json.loads(told), size)

    def _connection(self, path: Path) -> sqlite3.Connection:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        self._open[path] = _connect(path)
        self._open[path].execute("pragma cache_size=-64")  # 64 KiB each: a row is read once
        return self._open[path]
