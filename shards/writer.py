"""Writing shards: the same samples give the same bytes, and a reader never sees half a shard."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash

from shards.aside import partial_path, sync_folder, write_aside
from shards.identity import check_key, sample_id
from shards.index import ENCODINGS, MAX_PIXELS, MAX_SIDE, columns_of, idx_text
from shards.manifest import BLANK_LABEL, LabelView, ShardInfo, Task
from shards.metadata import Metadata, codes_of, rounded


@dataclass(frozen=True)
class Sample:
    """One image on its way into a set: encoded bytes, source labels, size in pixels, keyed hash of its group."""

    split: str
    key: str
    image: bytes
    encoding: str
    labels: tuple[int, ...]
    height: int
    width: int
    group: int
    metadata: Metadata = field(default_factory=dict)


class ShardWriter:
    """Writes `SPLIT-000000.tar` with its `.idx` and `.cols`; a context manager.

    All three are written aside and renamed on `close`; an exception inside the `with` leaves nothing behind. `info`
    holds the ShardInfo afterwards. `fields` are the set's metadata fields, in the manifest's order. alone False:
    another process may be writing the same shard, as where a cluster holds a worker for lost; each has files of its
    own aside, and who ends last puts the same bytes in place.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        shard_index: int,
        set_id: str,
        *,
        task: Task = "single-label",
        fields: Sequence[str] = (),
        alone: bool = True,
    ):
        self.folder = Path(folder)
        self.stem = f"{split}-{shard_index:06d}"
        self.set_id, self.task, self.fields, self.alone = set_id, task, tuple(fields), alone
        self.info: ShardInfo | None = None
        self._part = partial_path(self.folder / f"{self.stem}.tar", shared=not alone)
        self._file: io.BufferedWriter | None = self._part.open("wb")
        self._sha256, self._position = hashlib.sha256(), 0
        self._keys: dict[str, None] = {}
        self._labels: list[tuple[int, ...]] = []
        self._metadata: list[list[float]] = []
        self._values: dict[str, list[int]] = {
            name: []
            for name in ("offsets", "groups", "hashes", "sample_ids", "sizes", "heights", "widths", "encodings")
        }
        self._components: list[list[tuple[str, int, int, str]]] = []
        self._written: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    @property
    def num_bytes(self) -> int:
        """Bytes written so far: what decides when a shard is full."""
        return self._position

    def __len__(self) -> int:
        return len(self._keys)

    def add(
        self,
        key: str,
        image: bytes,
        encoding: str,
        labels: Sequence[int],
        height: int,
        width: int,
        group: int,
        extra: Mapping[str, Any] | None = None,
        *,
        metadata: Metadata | None = None,
        identity: int | None = None,
    ) -> None:
        """Append one sample. `identity` keeps a sample id that another set gave (reshard, merge).

        Raises:
            ValueError: metadata that is not on the list or none of the set's fields, and whatever else is outside
            FORMAT.md.
        """
        self._check(key, image, encoding, labels, height, width)
        known = rounded(metadata or {})
        codes = codes_of(self.fields, known)
        extra = dict(extra or {}) | ({"metadata": known} if known else {})
        name, (code, extensions) = check_key(key), ENCODINGS[encoding]
        components = [self._member(name, extensions[0], image)]
        offset = components[0][1]
        components += [
            self._member(name, ext, data) for ext, data in self._labels_of(encoding, labels, height, width, extra)
        ]
        self._keys[key] = None
        self._labels.append(tuple(labels))
        self._metadata.append(codes)
        self._components.append(components)
        row = {
            "offsets": offset,
            "groups": group,
            "hashes": xxhash.xxh3_64_intdigest(image),
            "sample_ids": sample_id(self.set_id, key) if identity is None else identity,
            "sizes": len(image),
            "heights": height,
            "widths": width,
            "encodings": code,
        }
        for column, value in row.items():
            self._values[column].append(value)

    def _check(self, key: str, image: bytes, encoding: str, labels: Sequence[int], height: int, width: int) -> None:
        if key in self._keys:
            raise ValueError(f"key {key} stands twice in {self.stem}.tar: keys are unique over the set")
        if encoding not in ENCODINGS:
            raise ValueError(f"encoding {encoding!r} of sample {key} is unknown; known: {', '.join(ENCODINGS)}")
        if not 0 < len(image) < 1 << 32:
            raise ValueError(f"the image of sample {key} has {len(image)} bytes, 1..{(1 << 32) - 1} are allowed")
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
            raise ValueError(f"sample {key} is {height} x {width}; at most {MAX_SIDE} a side and {MAX_PIXELS} pixels")
        wanted = len(self._labels[0]) if self._labels else max(len(labels), 1)
        if len(labels) != wanted or (self.task == "single-label" and wanted != 1):
            raise ValueError(
                f"sample {key} has {len(labels)} labels, {1 if self.task == 'single-label' else wanted} wanted"
            )
        if any(not BLANK_LABEL <= label <= 32767 for label in labels):
            raise ValueError(f"a label of sample {key} is outside -32767..32767: {list(labels)[:8]}")

    def _labels_of(
        self, encoding: str, labels: Sequence[int], height: int, width: int, extra: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, bytes]]:
        document = dict(extra or {})
        if encoding == "raw":  # its bytes do not tell their shape
            document |= {"height": height, "width": width}
        if self.task == "single-label" and labels[0] != BLANK_LABEL:
            yield "cls", str(int(labels[0])).encode()
        if self.task == "multi-label":
            document["labels"] = [None if label == BLANK_LABEL else int(label) for label in labels]
        if document:
            yield "json", json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    def _member(self, key: str, extension: str, data: bytes) -> tuple[str, int, int, str]:
        name = f"{key}.{extension}"
        offset = self._position + tarfile.BLOCKSIZE
        self._write(b"".join((tar_header(name, len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE))))
        return extension, offset, len(data), name

    def _write(self, data: bytes) -> None:
        assert self._file is not None, "the shard is closed"
        self._file.write(data)
        self._sha256.update(data)
        self._position += len(data)

    def close(self) -> ShardInfo:
        """End the tar, write the indices, rename all three (the tar last) and return what the manifest needs.

        Raises:
            ValueError: it would hold no sample.
            OSError: no room, or a broken disk; nothing of the shard stays.
        """
        try:
            if not self._keys:
                raise ValueError(f"{self.stem}.tar would hold no sample: an empty shard is not written")
            self._write(bytes(2 * tarfile.BLOCKSIZE))
            self._write(bytes(-self._position % tarfile.RECORDSIZE))
            assert self._file is not None
            self._file.flush()
            os.fsync(self._file.fileno())
            columns = columns_of(
                list(self._keys),
                self._labels,
                len(self._labels[0]),
                self._values,
                self._metadata,
                len(self.fields),
            ).to_bytes()
            for suffix, data in ((".cols", columns), (".idx", idx_text(self._components).encode())):
                self._written.append(self.folder / f"{self.stem}{suffix}")
                write_aside(self._written[-1], data, shared=not self.alone)
            self._file.close()
            self._part.replace(self.folder / f"{self.stem}.tar")
            sync_folder(self.folder)
        except BaseException:
            self.abort()
            raise
        self._file = None
        self.info = ShardInfo(
            name=f"{self.stem}.tar",
            samples=len(self._keys),
            bytes=self._position,
            sha256=self._sha256.hexdigest(),
            index_sha256=hashlib.sha256(columns).hexdigest(),
        )
        return self.info

    def abort(self) -> None:
        """Leave nothing of this shard behind."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._part.unlink(missing_ok=True)
        for path in self._written if self.alone else []:  # another's files, it may be
            path.unlink(missing_ok=True)


_TEMPLATE = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)  # mtime 0, owner 0 without a name, mode 0644: its defaults
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_FIXED_SUM = sum(_TEMPLATE) - sum(_TEMPLATE[_SIZE]) - sum(_TEMPLATE[_CHECKSUM]) + 8 * ord(" ")


def tar_header(name: str, size: int) -> bytes:
    """What tarfile writes for a plain file in ustar, in a tenth of the time; `name` is ASCII, at most 100 bytes."""
    written, digits = name.encode("ascii"), b"%011o\0" % size
    assert 0 < len(written) <= 100 and len(digits) == 12, "keys and images are checked before"
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(written) + sum(digits))
    middle, end = _TEMPLATE[_SIZE.stop : _CHECKSUM.start], _TEMPLATE[_CHECKSUM.stop :]
    return written.ljust(100, b"\0") + _TEMPLATE[_NAME.stop : _SIZE.start] + digits + middle + checksum + end


def class_counts(labels: np.ndarray, view: LabelView, columns: Sequence[str], task: Task) -> dict[str, int]:
    """Samples of each class of a view (multi-label: positives), from source labels int16[n, L]."""
    counts = dict.fromkeys(view.classes, 0)
    for position, name in enumerate(columns):
        for value, count in zip(*np.unique(labels[:, position], return_counts=True), strict=True):
            index = view.mapping.get("" if value == BLANK_LABEL else str(int(value)))
            if task == "multi-label" and index == 1 and name in counts:
                counts[name] += int(count)
            elif task == "single-label" and index is not None:
                counts[view.classes[index]] += int(count)
    return counts
