"""A conversion before any pixel is read: records, splits, keys, tasks. A pure function of the tables, options and salt.

What decides the bytes of a set: the records (source, labels, group, file size), the split, the pixel options, the
seed and the salt. They are hashed into the set id, so a finished set is known again and an unfinished one goes on;
the number of workers decides nothing.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prep.images import PixelOptions
from prep.places import nameless, sizes, there
from prep.records import PHANTOM_MARKER, RawDataset, Record
from prep.splits import SPLITS, groups_of, split_by_source, split_official, split_random
from prep.subgroups import DICOM_FIELDS, chosen
from prep.tasks import Item, Task
from shards.dealing import intersections
from shards.folds import FoldOptions
from shards.identity import group_hash, make_key, salt_digest
from shards.manifest import BLANK_LABEL, Grouping
from shards.metadata import FIELDS
from shards.redaction import shown
from shards.words import counted

MAX_SHARD_SAMPLES = 4096
RESIZE = "area average, never enlarged; JPEG first by its DCT, while four times the short side remains"
COMPRESSIONS = ("none", "zstd")
DICOM_SUFFIXES = (".dcm", ".dicom")
SPLIT_MODES = ("auto", "official", "random", "study", "study-exact", "none")
STUDY_CACHE = "val_ids.json"  # the study's own, in a raw folder


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert. `shares` of train, val and test; `max_bad` is a share of all samples; `shard_samples` None: by
    size. How tars lie there (`compress`), where (`url`) and who makes them (`workers`, `cluster`) is no part of a set,
    nor are the split files to be made of it (`folds`): whether they can be is seen first.
    """

    pixels: PixelOptions = field(default_factory=PixelOptions)
    split: str = "auto"
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    seed: int = 0
    shard_samples: int | None = None
    max_bad: float = 0.01
    strict: bool = False
    workers: int = 1
    quiet: bool = False
    split_file: Path | None = None
    compress: str = "none"
    url: str | None = None
    cluster: str | None = None
    metadata: tuple[str, ...] = ("all",)
    near_duplicates: bool = False
    folds: FoldOptions | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLIT_MODES:
            raise ValueError(f"--split {self.split!r} is unknown; known: {', '.join(SPLIT_MODES)}")
        if self.compress not in COMPRESSIONS:
            raise ValueError(f"--compress {self.compress!r} is unknown; known: {', '.join(COMPRESSIONS)}")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"--max-bad {self.max_bad:g} is no share from 0 to 1, such as 0.01")
        if self.workers < 1 or self.seed < 0:
            low = f"--workers {self.workers}" if self.workers < 1 else f"--seed {self.seed}"
            raise ValueError(f"{low} is too low: --workers is at least 1, --seed at least 0")
        if not (min(self.shares) > 0 and abs(sum(self.shares) - 1) <= 1e-9):
            given = " ".join(f"{share:g}" for share in self.shares)
            raise ValueError(f"--shares {given}: three shares above 0 that sum to 1, such as 0.7 0.15 0.15")
        if self.shard_samples is not None and not 1 <= self.shard_samples <= 1_000_000:
            raise ValueError(f"--shard-samples {self.shard_samples} is outside 1..1000000")

    def recorded(self) -> dict[str, Any]:
        """What the manifest records, and the set id depends on."""
        shares = " ".join(f"{share:g}" for share in self.shares)
        return self.pixels.recorded() | {
            "split": self.split,
            "shares": shares,
            "seed": self.seed,
            "shard_samples": self.shard_samples,
            "resize": RESIZE,
        }


@dataclass(frozen=True)
class Planned:
    """A conversion before any pixel was read: per split, the records with their keys in stored order; and the metadata
    fields that the set will hold.
    """

    dataset: RawDataset
    set_id: str
    phantom: bool
    parts: dict[str, list[tuple[str, Record]]]
    grouping: Grouping
    warnings: list[str]
    fields: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """Samples of all splits."""
        return sum(len(part) for part in self.parts.values())


def read_records(dataset: RawDataset, root: Path) -> tuple[list[Record], list[str]]:
    """All records, their labels checked, and what was left out; ValueError for none or a label that no view knows."""
    with nameless(root):
        everything = list(dataset.read(root))
    records = [record for record in everything if not record.skip]
    skipped = Counter(record.skip for record in everything if record.skip)
    left_out = [f"{counted(count, 'row')} left out: {reason}" for reason, count in sorted(skipped.items())]
    if not records:
        told = f"lists no image that can be taken: {'; '.join(left_out)}" if left_out else "lists no image at all"
        raise ValueError(f"{dataset.name}: {shown(str(root))} {told}: expected {' | '.join(dataset.tree)}")
    known = dataset.source_values
    for record in records:
        if wrong := [label for label in record.labels if label not in known]:
            values = sorted(value for value in known if value is not None)
            raise ValueError(
                f"label{_quoted(wrong[0])} in {record.where} is outside the classes of {dataset.name} "
                f"({values[0]}..{values[-1]}): "
                f"is this the original table?"
            )
    return records, left_out


def _quoted(label: int | None) -> str:
    """A label for a message; a number too great for one may be a patient's."""
    return f" {label}" if label is None or abs(label) < 1000 else ""


def assign_splits(
    dataset: RawDataset, root: Path, records: list[Record], options: ConvertOptions
) -> tuple[list[str], list[str], str]:
    """(split a record, warnings, how in one sentence).

    Raises:
        ValueError: the dataset has no official split where one is asked for, or the split file does not fit.
    """
    labels = np.array([[BLANK_LABEL if v is None else v for v in record.labels] for record in records])
    groups = [record.group for record in records]
    official = [record.split for record in records]
    if options.split_file is not None:
        splits = split_by_source(options.split_file, [record.source for record in records])
        absent = splits.count("")
        return splits, [f"{counted(absent, 'image')} not in the split file"] if absent else [], "a split file by source"
    if options.split == "none" or (options.split == "auto" and dataset.auto_split == "none"):
        return ["train"] * len(records), [], "not split: everything is train"
    if options.split in ("study", "study-exact"):
        return _study_split(dataset, root, records)
    if options.split == "official" and not any(official):
        raise ValueError(f"{dataset.name} has no official split: use --split random")
    if options.split != "random" and any(official):
        splits, warnings = split_official(official, labels, groups, options.shares, options.seed)
        carved = sorted(set(splits) - {split or "train" for split in official}, key=SPLITS.index)
        how = "the dataset's official split"
        if carved:
            how += f"; {' and '.join(carved)} dealt off train by seed {options.seed}, stratified, whole groups"
        return splits, warnings, how
    return (
        split_random(labels, groups, options.shares, options.seed),
        [],
        f"dealt by seed {options.seed} in shares {options.shares}, stratified by label, whole groups",
    )


def _study_split(dataset: RawDataset, root: Path, records: list[Record]) -> tuple[list[str], list[str], str]:
    if dataset.study_split is None:
        raise ValueError(f"the published study did not use {dataset.name}: --split study is unknown there")
    splits = dataset.study_split(root, records)
    unused = splits.count("")
    cached = f", from its own {STUDY_CACHE}" if dataset.study_cached and there(root / STUDY_CACHE, STUDY_CACHE) else ""
    how = f"the published study's split, reproduced{cached}; it does not look at groups"
    return splits, [f"{counted(unused, 'image')} without a part in the study's split"] if unused else [], how


def _stored_twice(
    dataset: RawDataset, root: Path, records: list[Record], splits: list[str]
) -> tuple[list[Record], list[str], list[str]]:
    """Under `study-exact`: records and splits with the rows that the study had in two splits, and a warning of them."""
    again = dataset.study_twice(root, records) if dataset.study_twice else []
    warnings = (
        [f"{counted(len(again), 'image', 'stand')} in two splits each, as in the published study"] if again else []
    )
    return records + [records[i] for i, _ in again], splits + [split for _, split in again], warnings


def make_plan(dataset: RawDataset, root: Path, options: ConvertOptions, salt: bytes) -> Planned:
    """Read the tables, split, shuffle, name. Touches no image but for its size in bytes."""
    records, skipped = read_records(dataset, root)
    splits, warnings, how = assign_splits(dataset, root, records, options)
    if options.split == "study-exact" and options.split_file is None:
        records, splits, twice = _stored_twice(dataset, root, records, splits)
        warnings = warnings + twice
    shared = intersections(groups_of(splits, [record.group for record in records]))
    warnings = [*dataset.notes, *skipped, *warnings]
    warnings += [
        f"{counted(n, 'group')} ({dataset.group_by}) in both splits of {pair}" for pair, n in shared.items() if n
    ]
    parts: dict[str, list[tuple[str, Record]]] = {}
    number = 0
    for position, name in enumerate(SPLITS):
        members = [record for record, split in zip(records, splits, strict=True) if split == name]
        order = np.random.default_rng([options.seed, position]).permutation(len(members))
        if members:
            parts[name] = [(make_key(number + i, members[j].source, salt), members[j]) for i, j in enumerate(order)]
        number += len(members)
    grouping = Grouping(by=dataset.group_by, salt_digest=salt_digest(salt), intersections=shared, how=how)
    phantom = there(root / PHANTOM_MARKER, PHANTOM_MARKER)
    fields = _fields(dataset, records, options)
    set_id = _set_id(dataset, root, options, salt, parts, fields)
    return Planned(dataset, set_id, phantom, parts, grouping, warnings, fields)


def _fields(dataset: RawDataset, records: list[Record], options: ConvertOptions) -> tuple[str, ...]:
    """The metadata fields of the set: the wanted ones of its table and of DICOM headers, and those of crops."""
    known = set(dataset.metadata)
    if any(record.path.suffix.lower() in DICOM_SUFFIXES for record in records):
        known |= set(DICOM_FIELDS)
    own = {name for name in FIELDS if name.startswith("crop_")} if options.pixels.crop != "none" else set()
    own |= {"flipped"} if options.pixels.mirror else set()
    wanted = chosen(options.metadata, known)
    return tuple(name for name in FIELDS if name in wanted or name in own)


def _set_id(
    dataset: RawDataset,
    root: Path,
    options: ConvertOptions,
    salt: bytes,
    parts: dict[str, list[tuple[str, Record]]],
    fields: tuple[str, ...],
) -> str:
    digest = hashlib.blake2b(key=salt, digest_size=16, person=b"medshard-set")
    told = [list(fields)] if fields else []
    digest.update(json.dumps([dataset.name, options.recorded(), *told], sort_keys=True).encode())
    found = iter(sizes(root, [record.path for part in parts.values() for _, record in part]))
    for split, part in parts.items():
        for key, record in part:
            size = next(found)
            row = [split, key, record.source, record.labels, record.group, size]
            row += [dict(record.metadata)] if fields and record.metadata else []
            digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def shard_samples(count: int, wanted: int | None) -> int:
    """Samples a shard: at least 16 shards a split where it has 256 samples, and never above 4096 a shard."""
    return wanted or min(MAX_SHARD_SAMPLES, max(16, math.ceil(count / 16)))


def make_tasks(plan: Planned, out: Path, outcomes: Path, options: ConvertOptions, salt: bytes) -> list[Task]:
    """One task a shard, in stored order."""
    tasks = []
    for split, part in plan.parts.items():
        size = shard_samples(len(part), options.shard_samples)
        for shard, start in enumerate(range(0, len(part), size)):
            items = tuple(
                Item(
                    key,
                    record.path,
                    tuple(BLANK_LABEL if label is None else label for label in record.labels),
                    group_hash(record.group, salt),
                    record.row,
                    record.region,
                    record.metadata,
                )
                for key, record in part[start : start + size]
            )
            how = (plan.set_id, plan.dataset.task, options.pixels, options.strict)
            packed, alone = options.compress == "zstd", options.cluster is None
            where = (packed, options.url, alone)
            tasks.append(Task(split, shard, items, out, outcomes, *how, *where, plan.fields, options.near_duplicates))
    return tasks
