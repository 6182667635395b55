"""Checking a shard set: every byte hashed, every image decoded, every count recounted, the splits proved apart.

    python -m shards check data/shards/DDSM [--fast]

Prints what is wrong and ends with exit code 1, or says that all is well. `--fast` hashes but does not decode.
"""

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xxhash
import zstandard

from shards.aside import PARTIAL
from shards.command_line import Parser, add_output_flags, called, local_folder, positive
from shards.decoding import decode
from shards.identity import sample_id
from shards.index import ENCODING_NAMES, EXTENSION_ENCODINGS, Columns, idx_text
from shards.indexing import Entry, entries_of, metadata_of, source_labels
from shards.manifest import BLANK_LABEL, MANIFEST_NAME, Manifest, ShardInfo, file_sha256
from shards.metadata import codes_of
from shards.overrides import SplitFile
from shards.packing import unpack
from shards.progress import progress
from shards.shardset import open_columns
from shards.storage import SPLITS_FOLDER
from shards.words import counted
from shards.writer import class_counts

SHOWN = 5  # problems of one kind in one shard that are listed before the rest is counted


@dataclass(frozen=True)
class Problem:
    """Something wrong: where (a file or a split), what, and whether it is fatal or a warning."""

    where: str
    what: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{'' if self.fatal else 'warning: '}{self.where}: {self.what}"


def check_set(
    path: str | Path, decode: bool = True, *, threads: int = 2, done: Callable[[ShardInfo], None] | None = None
) -> list[Problem]:
    """Everything that is wrong with a set; an empty list if it is whole. `done` is called after each shard.

    ValueError only if `path` is no folder.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder of a shard set, which holds {MANIFEST_NAME}")
    try:
        manifest = Manifest.read(folder)
    except ValueError as error:
        return [Problem(MANIFEST_NAME, str(error))]
    shards = [(split, info) for split, content in manifest.splits.items() for info in content.shards]
    problems: list[Problem] = []
    whole: dict[str, list[Columns]] = {split: [] for split in manifest.splits}

    def one(shard: tuple[str, ShardInfo]) -> tuple[list[Problem], Columns | None]:
        result = _check_shard(folder, manifest, shard[1], decode)
        if done is not None:
            done(shard[1])
        return result

    with ThreadPoolExecutor(threads) as pool:
        for (split, _), (found, columns) in zip(shards, pool.map(one, shards), strict=True):
            problems += found
            if columns is not None:
                whole[split].append(columns)
    if all(len(whole[split]) == len(content.shards) for split, content in manifest.splits.items()):
        problems += _check_splits(manifest, whole)
        problems += _check_split_files(folder, manifest, whole)
    return [*problems, *_check_strays(folder, {info.name for _, info in shards})]


def _check_shard(
    folder: Path, manifest: Manifest, info: ShardInfo, decode: bool
) -> tuple[list[Problem], Columns | None]:
    """Problems of one shard, and its columns if they can be trusted."""
    path = folder / info.name
    if path.is_file():
        return _check_tar(path, folder, manifest, info, decode)
    packed = folder / f"{info.name}.zst"
    if not (info.packed and packed.is_file()):
        return [Problem(packed.name if info.packed else info.name, "is missing")], None
    with TemporaryDirectory(prefix="medshard-") as aside:
        try:
            unpack(packed, info, Path(aside) / info.name)
        except ValueError as error:
            return [Problem(packed.name, str(error))], None
        except zstandard.ZstdError:
            return [Problem(packed.name, "is no zstd file")], None
        return _check_tar(Path(aside) / info.name, folder, manifest, info, decode)


def _check_tar(
    path: Path, folder: Path, manifest: Manifest, info: ShardInfo, decode: bool
) -> tuple[list[Problem], Columns | None]:
    problems = []
    if (size := path.stat().st_size) != info.bytes:
        what = "truncated" if size < info.bytes else "altered"
        problems.append(Problem(info.name, f"has {size} bytes, the manifest says {info.bytes}: {what}"))
    elif (found := file_sha256(path)) != info.sha256:
        problems.append(Problem(info.name, f"altered: sha256 {found[:16]}…, the manifest says {info.sha256[:16]}…"))
    columns = None
    try:
        columns = open_columns(folder, info, manifest)
        if (found := file_sha256(folder / f"{info.stem}.cols")) != info.index_sha256:
            problems.append(
                Problem(f"{info.stem}.cols", f"altered: sha256 {found[:16]}…, {info.index_sha256[:16]}… expected")
            )
        if size:
            idx = folder / f"{info.stem}.idx"
            problems += _check_samples(path, idx, manifest, info, columns, decode)
    except ValueError as error:
        problems.append(Problem(info.name, str(error)))
    return problems, columns


def _check_samples(
    path: Path, idx: Path, manifest: Manifest, info: ShardInfo, columns: Columns, decode: bool
) -> list[Problem]:
    with path.open("rb") as file:
        tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    problems = _shorten(info.name, _check_images(tar, manifest, info, columns, decode))
    try:
        entries = entries_of(path)
    except ValueError as error:
        return [*problems, Problem(info.name, str(error))]
    if not idx.is_file() or idx.read_bytes() != idx_text([entry.components for entry in entries]).encode():
        problems.append(Problem(idx.name, "is missing or does not match its tar: `python -m shards index` mends it"))
    if [entry.key for entry in entries] != columns.all_keys():
        return [*problems, Problem(f"{info.stem}.cols", "its keys are not those of the tar")]
    return problems + _shorten(f"{info.stem}.cols", _check_rows(tar, manifest, entries, columns))


def _shorten(where: str, found: Iterator[str]) -> list[Problem]:
    texts = list(found)
    more = [f"and {len(texts) - SHOWN} more of this shard"] if len(texts) > SHOWN else []
    return [Problem(where, text) for text in texts[:SHOWN] + more]


def _check_images(
    tar: memoryview, manifest: Manifest, info: ShardInfo, columns: Columns, decoding: bool
) -> Iterator[str]:
    for row in range(len(columns)):
        offset, size = int(columns.offsets[row]), int(columns.sizes[row])
        if offset + size > len(tar):
            yield f"sample {columns.key(row)} lies behind the end of the file"
            continue
        image, expected = tar[offset : offset + size], int(columns.hashes[row])
        if (found := xxhash.xxh3_64_intdigest(image)) != expected:
            yield f"sample {columns.key(row)} is damaged: hash {found:016x}, {expected:016x} expected"
        elif decoding:
            try:
                encoding = ENCODING_NAMES[int(columns.encodings[row])]
                height, width = int(columns.heights[row]), int(columns.widths[row])
                decode(image, encoding, manifest.channels, height, width, manifest.bits)
            except ValueError as error:
                yield f"image of sample {columns.key(row)} {error}"


def _check_rows(tar: memoryview, manifest: Manifest, entries: Sequence[Entry], columns: Columns) -> Iterator[str]:
    """The index against the tar: offsets, sizes, encodings, labels and sample ids."""
    mapped = {value for view in manifest.views.values() for value in view.mapping}
    for row, entry in enumerate(entries):
        try:
            part = entry.component(*EXTENSION_ENCODINGS)
            labels = source_labels(entry, tar)
        except ValueError as error:
            yield str(error)
            continue
        if part is None or (part[1], part[2]) != (int(columns.offsets[row]), int(columns.sizes[row])):
            yield f"sample {entry.key} lies elsewhere than the index says"
        if labels != columns.labels[row].tolist():
            indexed = columns.labels[row].tolist()
            yield f"labels of sample {entry.key} are {labels[:8]} in the tar, {indexed[:8]} in the index"
        if problem := _metadata_problem(entry, tar, manifest, columns.metadata[row]):
            yield f"metadata of sample {entry.key} {problem}"
        if int(columns.sample_ids[row]) not in {sample_id(set_id, entry.key) for set_id in manifest.set_ids}:
            yield f"the id of sample {entry.key} is not the hash of its set and key"
        if manifest.task == "single-label" and labels[0] != BLANK_LABEL and str(labels[0]) not in mapped:
            yield f"label {labels[0]} of sample {entry.key} is outside the classes: no view maps it"


def _metadata_problem(entry: Entry, tar: memoryview, manifest: Manifest, indexed: np.ndarray) -> str:
    if not manifest.metadata:
        return ""
    try:
        codes = np.array(codes_of([field.name for field in manifest.metadata], metadata_of(entry, tar)), np.float32)
    except ValueError as error:
        return f"in the tar is not on the list: {error}"
    return "" if np.array_equal(codes, indexed, equal_nan=True) else "differs between the tar and the index"


def _check_splits(manifest: Manifest, columns: dict[str, list[Columns]]) -> Iterator[Problem]:
    """Counts of the manifest, and ids, groups and images that two splits share."""
    gathered = {
        name: {
            split: np.concatenate([getattr(part, name) for part in parts]) if parts else np.zeros(0, np.uint64)
            for split, parts in columns.items()
        }
        for name in ("sample_ids", "groups", "hashes")
    }
    ids = np.concatenate(list(gathered["sample_ids"].values()))
    if (twice := len(ids) - len(np.unique(ids))) > 0:
        yield Problem(MANIFEST_NAME, f"{twice} sample ids stand twice in the set")
    for split, info in manifest.splits.items():
        if (groups := len(np.unique(gathered["groups"][split]))) != info.groups:
            yield Problem(split, f"holds {groups} groups, the manifest says {info.groups}")
        if columns[split]:
            labels = np.concatenate([part.labels for part in columns[split]])
            view = manifest.views[manifest.label_view]
            counts = class_counts(labels, view, manifest.label_columns, manifest.task)
            if counts != info.class_counts:
                yield Problem(split, f"class counts are {counts}, the manifest says {info.class_counts}")
    names = list(manifest.splits)
    for first, second in combinations(names, 2):
        yield from _check_pair(manifest, first, second, gathered)


def _check_pair(
    manifest: Manifest, first: str, second: str, gathered: dict[str, dict[str, np.ndarray]]
) -> Iterator[Problem]:
    shared = {name: len(np.intersect1d(by[first], by[second])) for name, by in gathered.items()}
    pair = f"{first}-{second}"
    if shared["sample_ids"]:
        yield Problem(pair, f"{counted(shared['sample_ids'], 'sample', 'stand')} in both splits")
    if shared["groups"]:
        yield Problem(pair, f"{shared['groups']} groups ({manifest.grouping.by}) stand in both splits")
    said = manifest.grouping.intersections.get(pair, manifest.grouping.intersections.get(f"{second}-{first}"))
    if said is not None and said != shared["groups"]:
        yield Problem(pair, f"{shared['groups']} groups are shared, the manifest says {said}")
    if shared["hashes"]:
        yield Problem(
            pair, f"images that are the same to the last byte in both splits: {shared['hashes']}", fatal=False
        )


def _check_split_files(folder: Path, manifest: Manifest, columns: dict[str, list[Columns]]) -> Iterator[Problem]:
    """The set's own split files: readable, of samples that the set has, and no group in two splits."""
    parts = [part for own in columns.values() for part in own]
    ids, groups = (np.concatenate([getattr(part, name) for part in parts]) for name in ("sample_ids", "groups"))
    for path in sorted((folder / SPLITS_FOLDER).glob("*.csv")):
        where = f"{SPLITS_FOLDER}/{path.name}"
        try:
            file = SplitFile.read(path, manifest)
        except ValueError as error:
            yield Problem(where, str(error))
            continue
        named = len(file.ids) // len(manifest.set_ids)  # a merged set's keys have an id under each part
        if unknown := named - int(np.isin(file.ids, ids).sum()):
            yield Problem(where, f"names {counted(unknown, 'sample')} that the set does not have")
        members = {name: np.unique(groups[file.member(ids, name)]) for name in file.names}
        for first, second in combinations(file.names, 2):
            if shared := len(np.intersect1d(members[first], members[second])):
                what = f"{shared} groups ({manifest.grouping.by}) stand in both {first} and {second}"
                yield Problem(where, what, fatal=False)


def _check_strays(folder: Path, known: set[str]) -> Iterator[Problem]:
    for path in sorted(folder.iterdir()):
        if path.name.endswith(PARTIAL):
            yield Problem(path.name, "left over from an interrupted write; delete it", fatal=False)
        elif path.suffix == ".tar" and path.name not in known:
            yield Problem(path.name, "is not in the manifest, so nothing reads it", fatal=False)


def _num_shards(folder: Path) -> int:
    """As the manifest says; 0 where none can be read, which `check_set` then tells."""
    try:
        return sum(len(split.shards) for split in Manifest.read(folder).splits.values())
    except ValueError:
        return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards check` and of prep/check_shards.py; returns the exit code."""
    parser = Parser(
        prog=called("check"),
        description="Verify a shard set: hashes, indices, images, labels, counts, and that no group is in two splits.",
        epilog=f"example: {called('check')} data/shards/DDSM --fast",
    )
    parser.add_argument("folder", type=local_folder, help="shard set, a folder of this machine")
    parser.add_argument("--fast", action="store_true", help="hash every byte but do not decode the images")
    parser.add_argument("--threads", type=positive, default=2, help="decoding threads, a shard each")
    add_output_flags(parser, "problems and proof")
    options = parser.parse_args(argv)
    with progress(_num_shards(options.folder), "checking", "shard", quiet=options.quiet or options.json) as bar:
        problems = check_set(
            options.folder,
            decode=not options.fast,
            threads=options.threads,
            done=lambda _: bar.update() and None,
        )
    fatal = sum(problem.fatal for problem in problems)
    if options.json:
        print(json.dumps({"whole": not fatal, "problems": [asdict(problem) for problem in problems]}, indent=1))
        return int(fatal > 0)
    for problem in problems:
        print(problem)
    if options.quiet and not fatal:
        return 0
    if fatal:
        print(f"{counted(fatal, 'problem')} in {options.folder}")
        return 1
    manifest = Manifest.read(options.folder)
    samples = sum(split.samples for split in manifest.splits.values())
    apart = ", ".join(f"{pair} {count}" for pair, count in manifest.grouping.intersections.items())
    print(f"{options.folder}: {counted(samples, 'sample')} whole{'' if options.fast else ', every image decodes'}")
    print(f"groups ({manifest.grouping.by}) shared between splits: {apart or 'one split alone'}")
    return 0
