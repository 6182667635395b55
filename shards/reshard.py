"""Write a set again with shards of another size. Keys, sample ids, order and pixels stay; only the cuts move.

python -m shards reshard data/shards/DDSM data/shards/DDSM-1GB
"""

import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from shards.aside import new_folder
from shards.command_line import Parser, add_output_flags, local_folder, tell
from shards.index import ENCODING_NAMES, EXTENSION_ENCODINGS, Columns
from shards.indexing import document_of, entries_of, metadata_of
from shards.info import totals
from shards.manifest import Manifest, MetadataField, ShardInfo, metadata_fields
from shards.metadata import Metadata
from shards.progress import progress
from shards.storage import open_columns
from shards.words import counted
from shards.writer import ShardWriter

UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
MIN_SHARD_BYTES = 10_240  # the smallest tar there is


def parse_size(text: str) -> int:
    """Bytes from a text like `512MB` or `1.5GiB`.

    Raises:
        ValueError: another text, or a size below the smallest tar.
    """
    found = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].lower() not in UNITS:
        raise ValueError(f"size {text[:40]!r} is not understood: write it like 512MB or 1.5GiB")
    if (size := int(float(found[1]) * UNITS[found[2].lower()])) < MIN_SHARD_BYTES:
        raise ValueError(f"a shard of {size} bytes is too small: at least {MIN_SHARD_BYTES}")
    return size


@dataclass(frozen=True)
class Stored:
    """One sample as it lies in a set, whatever the view: the arguments of ShardWriter.add."""

    key: str
    image: memoryview
    encoding: str
    labels: list[int]
    height: int
    width: int
    group: int
    extra: Mapping[str, Any]
    metadata: Metadata
    identity: int


def stored_samples(folder: Path, manifest: Manifest, info: ShardInfo) -> Iterator[Stored]:
    """All samples of a shard in stored order, each hash checked; ValueError if anything would be lost in copying."""
    columns = open_columns(folder, info, manifest)
    if info.packed and not (folder / info.name).is_file():
        raise ValueError(f"{info.name} is packed for transport: unpack it first, zstd -d {folder}/*.tar.zst")
    with (folder / info.name).open("rb") as file:
        tar = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    entries = entries_of(folder / info.name)
    if [entry.key for entry in entries] != columns.all_keys():
        raise ValueError(f"{info.stem}.cols does not belong to {info.name}: run `python -m shards check {folder}`")
    for row, entry in enumerate(entries):
        extra = document_of(entry, tar)
        for extension, _, _, name in entry.components:
            if extension not in ("cls", "json") and extension not in EXTENSION_ENCODINGS:
                raise ValueError(
                    f"{info.name}: member {name[-120:]!r} would be lost: only images and labels are copied"
                )
        for field in ("labels", "height", "width"):
            extra.pop(field, None)
        metadata = metadata_of(entry, tar)
        if manifest.metadata:
            extra.pop("metadata", None)
        yield _stored(columns, row, entry.key, tar, info, extra, metadata if manifest.metadata else {})


def _stored(
    columns: Columns,
    row: int,
    key: str,
    tar: memoryview,
    info: ShardInfo,
    extra: dict[str, Any],
    metadata: Metadata,
) -> Stored:
    offset = int(columns.offsets[row])
    image = tar[offset : offset + int(columns.sizes[row])]
    if xxhash.xxh3_64_intdigest(image) != int(columns.hashes[row]):
        raise ValueError(f"sample {key} in {info.name} is damaged: restore the shard from a copy")
    return Stored(
        key,
        image,
        ENCODING_NAMES[int(columns.encodings[row])],
        columns.labels[row].tolist(),
        int(columns.heights[row]),
        int(columns.widths[row]),
        int(columns.groups[row]),
        extra,
        metadata,
        int(columns.sample_ids[row]),
    )


def copy_split(
    sources: Sequence[tuple[Path, Manifest]],
    split: str,
    out: Path,
    set_id: str,
    shard_bytes: int,
    done: Callable[[ShardInfo], None],
) -> list[ShardInfo]:
    """Write one split of several sets into shards of about `shard_bytes`, in stored order; `done` hears each source."""
    infos: list[ShardInfo] = []
    writer: ShardWriter | None = None
    fields = [field.name for field in shared_fields(sources)]
    try:
        for folder, manifest in sources:
            for info in manifest.splits[split].shards if split in manifest.splits else []:
                for sample in stored_samples(folder, manifest, info):
                    writer = writer or ShardWriter(out, split, len(infos), set_id, task=manifest.task, fields=fields)
                    values = {name: value for name, value in vars(sample).items() if name != "image"}
                    writer.add(image=bytes(sample.image), **values)
                    if writer.num_bytes >= shard_bytes:
                        infos.append(writer.close())
                        writer = None
                done(info)
        if writer is not None:
            infos.append(writer.close())
    except BaseException:
        if writer is not None:
            writer.abort()
        raise
    return infos


def shared_fields(sources: Sequence[tuple[Path, Manifest]]) -> list[MetadataField]:
    """The metadata fields that at least one of the sets holds."""
    return metadata_fields(field.name for _, manifest in sources for field in manifest.metadata)


def reshard(
    folder: Path, out: Path, shard_bytes: int, done: Callable[[ShardInfo], None] = lambda info: None
) -> Manifest:
    """Write the set in `folder` to `out` with shards of about `shard_bytes`; returns the new manifest."""
    manifest = Manifest.read(folder)
    with new_folder(out) as part:
        splits = {
            name: split.model_copy(
                update={"shards": copy_split([(folder, manifest)], name, part, manifest.set_id, shard_bytes, done)}
            )
            for name, split in manifest.splits.items()
        }
        conversion = manifest.conversion | {"resharded_from": manifest.digest}
        changed = {"splits": splits, "conversion": conversion, "metadata": shared_fields([(folder, manifest)])}
        new = manifest.model_copy(update=changed)
        new.write(part)
    return new


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards reshard`."""
    parser = Parser(
        prog="python -m shards reshard",
        description="Write a set again with shards of another size; keys, sample ids, order and bytes of images stay.",
        epilog="example: python -m shards reshard data/shards/DDSM data/shards/DDSM-1GB",
    )
    parser.add_argument("folder", type=local_folder, help="shard set, a folder of this machine")
    parser.add_argument("out", type=local_folder, help="where the new set goes, a folder")
    parser.add_argument("--shard-size", default="256MB", help="about how large a tar becomes")
    add_output_flags(parser)
    options = parser.parse_args(argv)
    size = parse_size(options.shard_size)
    total = sum(len(split.shards) for split in Manifest.read(options.folder).splits.values())
    with progress(total, "resharding", "shard", quiet=options.quiet or options.json) as bar:
        manifest = reshard(options.folder, options.out, size, lambda _: bar.update() and None)
    shards = sum(len(split.shards) for split in manifest.splits.values())
    tell(options, totals(manifest, options.out), f"{options.out}: {counted(shards, 'shard')}")
    return 0
