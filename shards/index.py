"""The two indices beside each tar: DALI's text `.idx` and our columns `.cols`. Byte tables are in FORMAT.md.

A `.cols` file is untrusted input: every size is checked against the file's own length before arrays are laid over it, a
digest covers the payload, and every offset lies inside the tar, so a damaged file ends in a ValueError of one line.
"""

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import xxhash

MAGIC = b"MEDSCOLS"
VERSION, VERSION_WITH_METADATA = 1, 2  # a set without metadata stays readable by releases that know none
# magic, version, labels a sample, samples, bytes of keys, xxh3_64 of the payload, metadata fields a sample
HEADER = struct.Struct("<8sIIQQQI20x")
MAX_LABELS = 10_000
MAX_FIELDS = 64
MAX_SIDE = 65_535
MAX_PIXELS = 1 << 28
MAX_STORED_KEY_BYTES = 1024

# encoding -> (code in the index, extensions in the tar; the first is the one we write)
ENCODINGS: dict[str, tuple[int, tuple[str, ...]]] = {
    "jpeg": (1, ("jpg", "jpeg")),
    "png": (2, ("png",)),
    "raw": (3, ("raw",)),
    "tiff": (4, ("tif", "tiff")),
    "jpeg2000": (5, ("jp2", "j2k")),
    "htj2k": (6, ("jph",)),
    "webp": (7, ("webp",)),
    "bmp": (8, ("bmp",)),
    "pnm": (9, ("pgm", "ppm", "pnm")),
}
ENCODING_NAMES = {code: name for name, (code, _) in ENCODINGS.items()}
EXTENSION_ENCODINGS = {ext: name for name, (_, extensions) in ENCODINGS.items() for ext in extensions}

# name, dtype of one value; labels have num_labels values a sample, metadata num_fields. Widest first, so that every
# column is aligned.
LAYOUT = (
    ("offsets", "<u8"),
    ("groups", "<u8"),
    ("hashes", "<u8"),
    ("sample_ids", "<u8"),
    ("sizes", "<u4"),
    ("heights", "<u4"),
    ("widths", "<u4"),
    ("key_ends", "<u4"),
    ("metadata", "<f4"),
    ("labels", "<i2"),
    ("encodings", "u1"),
)
BYTES_A_SAMPLE = 4 * 8 + 4 * 4 + 1  # without metadata (4 bytes each), labels (2 bytes each) and keys


@dataclass(frozen=True)
class Columns:
    """The index of one tar, a row a sample in stored order.

    offsets, groups, hashes, sample_ids: uint64[n]; sizes, heights, widths, key_ends: uint32[n]; metadata: float32[n, F]
    (codes or numbers, NaN is unknown); labels: int16[n, L] (-32768 is blank); encodings: uint8[n] (codes of ENCODINGS);
    keys: the UTF-8 of all keys, key i ends at key_ends[i].
    """

    offsets: np.ndarray
    groups: np.ndarray
    hashes: np.ndarray
    sample_ids: np.ndarray
    sizes: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    key_ends: np.ndarray
    metadata: np.ndarray
    labels: np.ndarray
    encodings: np.ndarray
    keys: bytes | memoryview

    def __len__(self) -> int:
        return len(self.offsets)

    def key(self, row: int) -> str:
        """The key of one row."""
        start = int(self.key_ends[row - 1]) if row else 0
        return bytes(self.keys[start : int(self.key_ends[row])]).decode()

    def all_keys(self) -> list[str]:
        """Every key, in stored order."""
        blob, ends = bytes(self.keys), [0, *self.key_ends.tolist()]
        return [blob[start:end].decode() for start, end in pairwise(ends)]

    def to_bytes(self) -> bytes:
        """The `.cols` file: header and payload."""
        parts = [np.ascontiguousarray(getattr(self, name), dtype).tobytes() for name, dtype in LAYOUT]
        payload = b"".join([*parts, bytes(self.keys)])
        digest, fields = xxhash.xxh3_64_intdigest(payload), self.metadata.shape[1]
        version = VERSION_WITH_METADATA if fields else VERSION
        return HEADER.pack(MAGIC, version, self.labels.shape[1], len(self), len(self.keys), digest, fields) + payload


def columns_of(
    keys: Sequence[str],
    labels: Sequence[Sequence[int]],
    num_labels: int,
    values: Mapping[str, Sequence[int]],
    metadata: Sequence[Sequence[float]] = (),
    num_fields: int = 0,
) -> Columns:
    """Columns from Python lists; `values` holds one list for each further column of LAYOUT but key_ends."""
    encoded = [key.encode() for key in keys]
    arrays = {name: np.asarray(values[name], dtype) for name, dtype in LAYOUT if name in values}
    ends = np.cumsum([len(key) for key in encoded], dtype=np.uint64).astype("<u4")
    table = np.asarray(labels, "<i2").reshape(len(keys), num_labels)
    fields = np.asarray(metadata, "<f4").reshape(len(keys), num_fields)
    return Columns(**arrays, key_ends=ends, metadata=fields, labels=table, keys=b"".join(encoded))


def read_columns(path: Path, tar_bytes: int | None = None) -> Columns:
    """Map a `.cols` file and check it: ValueError in one line if it is not whole or points outside its tar."""
    if not path.is_file():
        raise ValueError(f"no index {path.name} beside its tar: make it with `python -m shards index {path.parent}`")
    if path.stat().st_size < HEADER.size:
        raise _damaged(path.name, f"has {path.stat().st_size} bytes, a header alone has {HEADER.size}")
    with path.open("rb") as file:
        return parse_columns(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), path.name, tar_bytes)


def parse_columns(data: bytes | mmap.mmap, name: str, tar_bytes: int | None = None) -> Columns:
    """Check the bytes of a `.cols` file and lay arrays over them (no copy). `tar_bytes` bounds the offsets.

    Raises:
        ValueError: the bytes are no index, of a later version, damaged, or point outside the tar.
    """
    view = memoryview(data)
    if len(view) < HEADER.size:
        raise _damaged(name, f"has {len(view)} bytes, a header alone has {HEADER.size}")
    magic, version, num_labels, samples, key_bytes, digest, num_fields = HEADER.unpack(view[: HEADER.size])
    if magic != MAGIC or any(view[44:64]):
        raise _damaged(name, "does not begin with the header of an index")
    if version not in (VERSION, VERSION_WITH_METADATA):
        raise ValueError(
            f"{name}: index version {version} is unknown, this release reads {VERSION} and {VERSION_WITH_METADATA}"
        )
    if (num_fields > 0) != (version == VERSION_WITH_METADATA) or num_fields > MAX_FIELDS:
        raise _damaged(name, f"has {num_fields} metadata fields in version {version}")
    wanted = HEADER.size + samples * (BYTES_A_SAMPLE + 4 * num_fields + 2 * num_labels) + key_bytes
    if wanted != len(view) or num_labels > MAX_LABELS or samples == 0:
        raise _damaged(name, f"its header promises {wanted} bytes, the file has {len(view)}")
    if xxhash.xxh3_64_intdigest(view[HEADER.size :]) != digest:
        raise _damaged(name, "its bytes do not match its digest")
    columns = _lay_out(view, samples, {"labels": num_labels, "metadata": num_fields})
    _check_columns(columns, name, tar_bytes)
    return columns


def _lay_out(view: memoryview, samples: int, tables: dict[str, int]) -> Columns:
    """Arrays over the payload; `tables` are the columns of several values a sample, and how many."""
    arrays, position = {}, HEADER.size
    for name, dtype in LAYOUT:
        count = samples * tables.get(name, 1)
        arrays[name] = np.frombuffer(view, dtype, count, position)
        position += count * np.dtype(dtype).itemsize
        if name in tables:
            arrays[name] = arrays[name].reshape(samples, tables[name])
    return Columns(**arrays, keys=view[position:])


def _check_columns(columns: Columns, name: str, tar_bytes: int | None) -> None:
    ends = columns.key_ends.astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if lengths.min() < 1 or lengths.max() > MAX_STORED_KEY_BYTES or ends[-1] != len(columns.keys):
        raise _damaged(name, f"a key is empty, longer than {MAX_STORED_KEY_BYTES} bytes, or outside the file")
    try:
        bytes(columns.keys).decode()
    except UnicodeDecodeError:
        raise _damaged(name, "its keys are not UTF-8") from None
    sides = np.stack([columns.heights, columns.widths]).astype(np.int64)
    if sides.min() < 1 or sides.max() > MAX_SIDE or (sides[0] * sides[1]).max() > MAX_PIXELS:
        raise _damaged(name, f"an image is larger than {MAX_SIDE} a side or {MAX_PIXELS} pixels, or empty")
    if not np.isin(columns.encodings, list(ENCODING_NAMES)).all():
        raise _damaged(name, "an encoding is unknown")
    if tar_bytes is not None:
        limit = np.uint64(tar_bytes)
        inside = (columns.offsets <= limit) & (columns.sizes <= limit - np.minimum(columns.offsets, limit))
        if not inside.all():
            raise _damaged(
                name, f"sample {columns.key(int(np.argmin(inside)))} lies outside its tar of {tar_bytes} bytes"
            )


def _damaged(name: str, what: str) -> ValueError:
    return ValueError(f"{name} {what}: the index is damaged; make it again with `python -m shards index`")


def idx_text(samples: Sequence[Sequence[tuple[str, int, int, str]]]) -> str:
    """DALI's index (v1.2) for samples whose components are (extension, offset, size, member name)."""
    lines = [" ".join(f"{ext} {offset} {size} {name}" for ext, offset, size, name in parts) for parts in samples]
    return "\n".join([f"v1.2 {len(lines)}", *lines, ""])
