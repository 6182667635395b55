"""What tests of sets on a server share; conftest.py has the server."""

from pathlib import Path

from shards.fetching import Patience
from shards.shardset import Split

QUICK = Patience(attempts=3, timeout_seconds=0.5, wait_seconds=0.02)


def bytes_of(split: Split) -> list[bytes]:
    """Every stored image of a split."""
    return [bytes(split.read(position)) for position in range(len(split))]


def used(folder: Path) -> int:
    """Bytes that the cache of a test takes, whole shards and parts."""
    sizes = []
    for path in folder.glob("cache/*/*"):
        try:
            sizes.append(path.stat().st_size if path.suffix in (".tar", ".cols", ".partial") else 0)
        except FileNotFoundError:  # evicted meanwhile
            pass
    return sum(sizes)
