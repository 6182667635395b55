"""Tars as .tar.zst, for transport: packed once when a set is made, unpacked where they are read.

A packed set lies at a URL or in a folder as any other, with NAME.tar.zst in the place of NAME.tar; readers unpack into
their cache (shards/fetching.py), and the hash of the plain tar is checked there.
"""

from pathlib import Path

import zstandard

from shards.aside import aside, sync_folder
from shards.manifest import ShardInfo, file_sha256

LEVEL = 3
CHUNK_BYTES = 1 << 20


def pack(folder: Path, info: ShardInfo, *, alone: bool = True) -> ShardInfo:
    """Put NAME.tar.zst in the place of NAME.tar; returns the shard's entry with the packed size and hash.

    The same tar and release of zstd give the same bytes. alone False: another process may do the same at once.
    """
    source, target = folder / info.name, folder / f"{info.name}.zst"
    with aside(target, shared=not alone) as part:
        with source.open("rb") as tar, part.open("wb") as file:
            zstandard.ZstdCompressor(LEVEL, write_content_size=True).copy_stream(tar, file, size=info.bytes)
        digest, size = file_sha256(part), part.stat().st_size
    source.unlink(missing_ok=True)
    sync_folder(folder)
    return info.model_copy(update={"packed_bytes": size, "packed_sha256": digest})


def unpack(source: Path, info: ShardInfo, target: Path) -> None:
    """Write the plain tar of a .tar.zst to `target`, at most as many bytes as the manifest says.

    Raises:
        ValueError: not what the manifest says, packed or plain.
    """
    if (found := file_sha256(source)) != info.packed_sha256:
        raise ValueError(f"altered: sha256 {found[:16]}…, the manifest says {str(info.packed_sha256)[:16]}…")
    left = info.bytes
    with (
        source.open("rb") as file,
        target.open("wb") as out,
        zstandard.ZstdDecompressor().stream_reader(file) as reader,
    ):
        while left and (data := reader.read(min(left, CHUNK_BYTES))):
            out.write(data)
            left -= len(data)
        if left or reader.read(1):
            raise ValueError(f"unpacks to other than the {info.bytes} bytes of the manifest")
