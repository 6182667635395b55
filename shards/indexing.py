"""Building indices from tars: `build` for any WebDataset tar, `mend` for those of a set.

An image's size is not in a tar and comes from decoding it. Groups are not in a tar either: a set's own come from its
private folder (sources.csv and salt); a foreign sample is a group of its own.
"""

import csv
import hashlib
import json
import mmap
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from shards.aside import write_aside
from shards.decoding import probe
from shards.identity import group_hash, sample_id
from shards.index import (
    ENCODINGS,
    EXTENSION_ENCODINGS,
    MAX_LABELS,
    MAX_STORED_KEY_BYTES,
    Columns,
    columns_of,
    idx_text,
    parse_columns,
)
from shards.manifest import BLANK_LABEL, Manifest, file_sha256
from shards.metadata import codes_of
from shards.tarscan import scan

MAX_LABEL_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One sample of a tar: its key and its components (extension, offset, size, member name)."""

    key: str
    components: list[tuple[str, int, int, str]]

    def component(self, *extensions: str) -> tuple[str, int, int, str] | None:
        """The component with one of these extensions (the last part after a dot counts), if there is one.

        Raises:
            ValueError: it has several.
        """
        found = [part for part in self.components if part[0].rpartition(".")[2].lower() in extensions]
        if len(found) > 1:
            raise ValueError(f"sample {self.key} has {len(found)} components of one kind: {found[0][3]}, {found[1][3]}")
        return found[0] if found else None


def entries_of(path: Path) -> list[Entry]:
    """The samples of a tar, as WebDataset groups them: consecutive members that agree up to the first dot.

    Members without a dot and hidden files belong to no sample. ValueError names what cannot be read rightly: sparse
    members, links to nowhere, blanks in names, names that are not UTF-8, a key or a component that comes twice.
    """
    entries: list[Entry] = []
    seen: set[str] = set()
    for member in scan(path):
        if member.is_folder:
            continue
        if member.problem:
            raise ValueError(
                f"{path.name}: member {member.name[-120:]!r} is {member.problem}, which no index can point to"
            )
        folder, _, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot:
            continue
        if re.search(r"\s|[\x00-\x1f]", member.name):
            raise ValueError(
                f"{path.name}: member {member.name[-120:]!r} has a blank in its name, which DALI cannot read"
            )
        key = f"{folder}/{stem}" if folder else stem
        if not entries or entries[-1].key != key:
            if key in seen or len(key.encode()) > MAX_STORED_KEY_BYTES:
                raise ValueError(f"{path.name}: key {key[-120:]!r} {'comes twice' if key in seen else 'is too long'}")
            seen.add(key)
            entries.append(Entry(key, []))
        if any(part[0] == extension for part in entries[-1].components):
            raise ValueError(f"{path.name}: member {member.name[-120:]!r} comes twice")
        entries[-1].components.append((extension, member.offset, member.size, member.name))
    if not entries:
        raise ValueError(f"{path.name} holds no sample: members are called KEY.EXTENSION in a WebDataset tar")
    return entries


def source_labels(entry: Entry, tar: memoryview) -> list[int]:
    """Source labels from KEY.cls (a whole number) or KEY.json ("labels" or "label"); [blank] where there is neither."""
    if (part := entry.component("cls")) is not None:
        return [_whole(_text(part, tar).strip(), entry.key)]
    if (part := entry.component("json")) is not None:
        document = _json(part, tar, entry.key)
        if isinstance(labels := document.get("labels"), list) and 0 < len(labels) <= MAX_LABELS:
            return [BLANK_LABEL if label is None else _whole(str(label), entry.key) for label in labels]
        if "label" in document:
            return [_whole(str(document["label"]), entry.key)]
    return [BLANK_LABEL]


def document_of(entry: Entry, tar: memoryview) -> dict[str, object]:
    """What KEY.json holds; an empty dict where there is none."""
    part = entry.component("json")
    return {} if part is None else _json(part, tar, entry.key)


def metadata_of(entry: Entry, tar: memoryview) -> dict[str, Any]:
    """The metadata in KEY.json; an empty dict where there is none."""
    found = document_of(entry, tar).get("metadata")
    return found if isinstance(found, dict) else {}


def _text(part: tuple[str, int, int, str], tar: memoryview) -> str:
    if part[2] > MAX_LABEL_BYTES:
        raise ValueError(f"{part[3]} has {part[2]} bytes, a label has at most {MAX_LABEL_BYTES}")
    return bytes(tar[part[1] : part[1] + part[2]]).decode(errors="replace")


def _json(part: tuple[str, int, int, str], tar: memoryview, key: str) -> dict[str, object]:
    try:
        document = json.loads(_text(part, tar))
    except (ValueError, RecursionError):
        raise ValueError(f"the json of sample {key} does not parse") from None
    return document if isinstance(document, dict) else {}


def _whole(text: str, key: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,5}", text) or not BLANK_LABEL < int(text) <= 32767:
        raise ValueError(f"label {text[:40]!r} of sample {key} is no whole number in -32767..32767")
    return int(text)


def build(
    path: Path, set_id: str, groups: Mapping[str, int] | None = None, fields: Sequence[str] = ()
) -> tuple[Columns, str]:
    """The columns and DALI's text index of a tar. `groups` maps keys to group hashes; else each sample is a group.
    `fields` are the set's metadata fields.

    Raises:
        ValueError: the tar is damaged, or its samples do not belong in one set.
    """
    entries = entries_of(path)
    values: dict[str, list[int]] = {}
    labels: list[list[int]] = []
    metadata: list[list[float]] = []
    with path.open("rb") as file:
        tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for entry in entries:
        identity = sample_id(set_id, entry.key)
        if groups is not None and entry.key not in groups:
            raise ValueError(f"{path.name}: sample {entry.key} is not in the private folder's sources.csv")
        row = _image_row(entry, tar, path.name)
        row |= {"sample_ids": identity, "groups": identity if groups is None else groups[entry.key]}
        for name, value in row.items():
            values.setdefault(name, []).append(value)
        labels.append(source_labels(entry, tar))
        metadata.append(codes_of(fields, metadata_of(entry, tar) if fields else {}))
    widths = {len(row) for row in labels}
    if len(widths) > 1:
        raise ValueError(f"{path.name}: samples have {sorted(widths)} labels; all samples of a set have as many")
    keys = [entry.key for entry in entries]
    columns = columns_of(keys, labels, widths.pop(), values, metadata, len(fields))
    parse_columns(columns.to_bytes(), path.name, path.stat().st_size)
    return columns, idx_text([entry.components for entry in entries])


def _image_row(entry: Entry, tar: memoryview, where: str) -> dict[str, int]:
    """What the columns say of a sample's image, by their names."""
    part = entry.component(*EXTENSION_ENCODINGS)
    if part is None:
        raise ValueError(f"{where}: sample {entry.key} has no image among {[p[3] for p in entry.components][:4]}")
    _, offset, size, _ = part
    encoding, image = EXTENSION_ENCODINGS[part[0].rpartition(".")[2].lower()], tar[offset : offset + size]
    try:
        height, width = _shape(entry, tar, image, encoding)
    except ValueError as error:
        raise ValueError(f"{where}: image of sample {entry.key} {error}") from None
    return {
        "offsets": offset, "sizes": size, "hashes": xxhash.xxh3_64_intdigest(image), "heights": height,
        "widths": width, "encodings": ENCODINGS[encoding][0],
    }  # fmt: skip


def _shape(entry: Entry, tar: memoryview, image: memoryview, encoding: str) -> tuple[int, int]:
    if encoding != "raw":
        return probe(image)[:2]
    if (part := entry.component("json")) is None:
        raise ValueError("is raw and has no json with its height and width")
    document = _json(part, tar, entry.key)
    height, width = document.get("height"), document.get("width")
    if not (isinstance(height, int) and isinstance(width, int)):
        raise ValueError("is raw and its json has no height and width")
    return height, width


def groups_of(private: Path) -> dict[str, int]:
    """Group hashes by key from a private folder (sources.csv: key, source, group, split; salt: 32 bytes)."""
    salt = (private / "salt").read_bytes()
    with (private / "sources.csv").open(newline="", encoding="utf-8") as file:
        return {row["key"]: group_hash(row["group"], salt) for row in csv.DictReader(file)}


def mend(folder: Path, private: Path | None = None, say: Callable[[str], None] = print) -> int:
    """Make every index of a set again that is missing or damaged; returns how many. The tars must be whole.

    What the private folder gives must reproduce the index that the manifest has the hash of, byte for byte.

    Raises:
        ValueError: an index cannot be made again without what only the lost one held.
    """
    manifest = Manifest.read(folder)
    private = private or folder.with_name(f"{folder.name}.private")
    groups: dict[str, int] | None = None
    mended = 0
    for info in (shard for split in manifest.splits.values() for shard in split.shards):
        cols, idx = folder / f"{info.stem}.cols", folder / f"{info.stem}.idx"
        whole = cols.is_file() and file_sha256(cols) == info.index_sha256
        entries = entries_of(folder / info.name)
        text = idx_text([entry.components for entry in entries])
        if not whole:
            if groups is None and not (private / "sources.csv").is_file():
                raise ValueError(
                    f"{cols.name} cannot be made again without the groups in {private}: give --private DIR"
                )
            groups = groups if groups is not None else groups_of(private)
            fields = [field.name for field in manifest.metadata]
            data = build(folder / info.name, manifest.set_id, groups, fields)[0].to_bytes()
            if hashlib.sha256(data).hexdigest() != info.index_sha256:
                raise ValueError(f"{cols.name} cannot be made again as it was: {info.name} or {private} was altered")
            write_aside(cols, data)
        if not whole or not idx.is_file() or idx.read_text(errors="replace") != text:
            write_aside(idx, text.encode())
            mended += 1
            say(f"{info.stem}: index made again")
    return mended
