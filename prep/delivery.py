"""Sets that are written to a store: each finished shard goes there, the manifest last.

Only the set goes to the URL. What is private (sources, groups, salt, what was left out) stays in the private folder on
this machine. Object stores show a file once it is whole; a store that shows half files is none of them.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prep.places import patiently
from shards.folds import FoldOptions, write_folds
from shards.manifest import MANIFEST_NAME, Manifest
from shards.redaction import scrub, shown
from shards.storage import SPLITS_FOLDER


@lru_cache(maxsize=8)
def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL and the folder in it; ValueError in one line."""
    import fsspec

    if url.startswith(("http://", "https://")):
        raise ValueError(f"{shown(url)}: nothing can be written over http; give s3://, gs://, … or a folder")
    try:
        store, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{shown(url)}: fsspec cannot open it ({scrub(str(error))})") from None
    return store, path.rstrip("/")


def deliver(folder: Path, names: Sequence[str], url: str) -> None:
    """Put files of a folder to the URL, in this order, and see that each has its size there.

    Raises:
        OSError: a file did not arrive whole.
    """
    store, base = _open(url)
    for name in names:
        source, target = folder / name, f"{base}/{name}"

        def put(source: Path = source, target: str = target) -> None:
            store.put_file(str(source), target)
            store.invalidate_cache()
            if (found := store.info(target)["size"]) != source.stat().st_size:
                raise OSError(f"{found} of {source.stat().st_size} bytes are there")

        patiently(f"{shown(url)}/{name}", put)


def listing(url: str) -> dict[str, int]:
    """Names and sizes of the files at the URL; none where there is nothing."""
    store, base = _open(url)

    def look() -> dict[str, int]:
        store.invalidate_cache()
        try:
            return {row["name"].rpartition("/")[2]: row.get("size") or 0 for row in store.ls(base, detail=True)}
        except FileNotFoundError:
            return {}

    return patiently(shown(url), look)


def remove(url: str, pattern: re.Pattern[str], kept: set[str]) -> None:
    """Remove the files of the pattern that are none of those kept: other options had left them."""
    store, base = _open(url)
    for name in listing(url):
        if pattern.fullmatch(name) and name not in kept:
            patiently(f"{shown(url)}/{name}", lambda name=name: store.rm_file(f"{base}/{name}"))  # type: ignore[misc]


def read_manifest(url: str) -> Manifest | None:
    """The manifest there, if the set is finished."""
    store, base = _open(url)
    if MANIFEST_NAME not in listing(url):
        return None
    data = patiently(f"{shown(url)}/{MANIFEST_NAME}", lambda: store.cat_file(f"{base}/{MANIFEST_NAME}"))
    return Manifest.parse(data, f"{shown(url)}/{MANIFEST_NAME}")


def deliver_manifest(manifest: Manifest, url: str) -> None:
    """The last file of a set."""
    with TemporaryDirectory(prefix="medshard-") as folder:
        manifest.write(Path(folder))
        deliver(Path(folder), [MANIFEST_NAME], url)


def deliver_folds(url: str, options: FoldOptions) -> dict[str, Any]:
    """Make split files from the indices that lie there, and put them beside."""
    store, base = _open(url)
    manifest = read_manifest(url)
    assert manifest is not None, "folds are made of a finished set"
    with TemporaryDirectory(prefix="medshard-") as name:
        folder = Path(name)
        manifest.write(folder)
        names = [f"{info.stem}.cols" for split in manifest.splits.values() for info in split.shards]
        known = [f"{SPLITS_FOLDER}/proof.json"] if "proof.json" in listing(f"{url.rstrip('/')}/{SPLITS_FOLDER}") else []
        (folder / SPLITS_FOLDER).mkdir()
        for each in [*names, *known]:
            patiently(
                f"{shown(url)}/{each}",
                lambda each=each: store.get_file(f"{base}/{each}", str(folder / each)),  # type: ignore[misc]
            )
        proofs = write_folds(folder, options)
        deliver(folder / SPLITS_FOLDER, [f"{each}.csv" for each in proofs] + ["proof.json"], f"{url}/{SPLITS_FOLDER}")
    return proofs
