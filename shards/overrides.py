"""Labels and splits by key from csv files, put over a set at load time: k-fold, other labels, another study's split."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from shards.identity import sample_ids
from shards.manifest import BLANK_LABEL, Manifest

MAX_FILE_BYTES = 1 << 30
SPLIT_ORDER: list[str] = ["train", "val", "test"]


def _read_table(path: str | Path, columns: list[str]) -> tuple[list[dict[str, str]], str]:
    """Rows of a csv that has a header with `columns`, and the sha256 of the file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}: give a csv with the columns {', '.join(columns)}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes, at most {MAX_FILE_BYTES} are read")
    data = path.read_bytes()
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), skipinitialspace=True)
        names = [(name or "").strip() for name in reader.fieldnames or []]
        reader.fieldnames = names
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"{path} lacks the column {missing[0]!r}; it has {', '.join(names[:20])}")
        rows = [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no csv in UTF-8: {error}") from None
    return rows, hashlib.sha256(data).hexdigest()


def _ids_in_order(
    rows: list[dict[str, str]], path: str | Path, set_ids: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted sample ids of all rows, and the row of each. In a merged set a key has an id under every part's set id."""
    if not rows:
        raise ValueError(f"{path} names no sample")
    keys = [row["key"] for row in rows]
    ids = np.concatenate([sample_ids(set_id, keys) for set_id in set_ids])
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(twice):
        raise ValueError(f"{path} names the key {keys[int(order[twice[0]]) % len(keys)]!r} twice")
    return ids[order], order % len(keys)


def _find(ids: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted id stands among sorted ids, and whether it does."""
    places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return places, ids[places] == wanted


@dataclass(frozen=True)
class LabelFile:
    """Source labels by sample id: ids uint64[m] sorted, labels int16[m, label columns]."""

    ids: np.ndarray
    labels: np.ndarray
    digest: str

    @classmethod
    def read(cls, path: str | Path, manifest: Manifest) -> Self:
        """Read a csv with `key` and every label column of the set; an empty field is blank."""
        rows, digest = _read_table(path, ["key", *manifest.label_columns])
        ids, order = _ids_in_order(rows, path, manifest.set_ids)
        values = [[_number(row[name], row["key"], path) for name in manifest.label_columns] for row in rows]
        return cls(ids, np.array(values, np.int16)[order], digest)

    def named(self, sample_ids: np.ndarray) -> np.ndarray:
        """Whether the file names each sample: bool[n]."""
        return _find(self.ids, sample_ids)[1]

    def labels_of(self, sample_ids: np.ndarray) -> np.ndarray:
        """Source labels int16[n, label columns]; blank where the file does not name the sample."""
        places, found = _find(self.ids, sample_ids)
        return np.where(found[:, None], self.labels[places], np.int16(BLANK_LABEL))


def _number(text: str, key: str, path: str | Path) -> int:
    if not text:
        return BLANK_LABEL
    try:
        value = float(text)
    except ValueError:
        value = 0.5
    if not (value.is_integer() and BLANK_LABEL < value <= 32767):
        raise ValueError(f"label {text[:40]!r} of sample {key} in {path} is no whole number in -32767..32767")
    return int(value)


@dataclass(frozen=True)
class SplitFile:
    """Splits by sample id: ids uint64[m] sorted, codes uint8[m] into names."""

    ids: np.ndarray
    codes: np.ndarray
    names: list[str]
    digest: str

    @classmethod
    def read(cls, path: str | Path, manifest: Manifest) -> Self:
        """Read a csv with the columns `key` and `split`.

        Raises:
            ValueError: a split of another name than train, val, test; a key that stands twice, or is none.
        """
        rows, digest = _read_table(path, ["key", "split"])
        ids, order = _ids_in_order(rows, path, manifest.set_ids)
        found = {row["split"] for row in rows}
        names = [name for name in SPLIT_ORDER if name in found]
        if unknown := sorted(found - set(names)):
            raise ValueError(f"split {unknown[0]!r} in {path} is unknown; known: train, val, test")
        return cls(ids, np.array([names.index(row["split"]) for row in rows], np.uint8)[order], names, digest)

    def member(self, sample_ids: np.ndarray, split: str) -> np.ndarray:
        """Whether each sample is in a split: bool[n]."""
        places, found = _find(self.ids, sample_ids)
        return found & (self.codes[places] == self.names.index(split))
