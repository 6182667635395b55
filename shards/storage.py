"""Where the files of a set lie: a folder on this machine, mapped as it is, or any place with a URL, through a cache.

A split asks its storage for two things, the index of a shard and the bytes of its tar. Fetching, keeping and evicting
stay behind that.
"""

import mmap
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

import numpy as np

from shards.index import Columns, read_columns
from shards.manifest import Manifest, ShardInfo
from shards.metadata import problem_of

if TYPE_CHECKING:
    from shards.fetching import Patience

SPLITS_FOLDER = "splits"  # in a set: split files that can be called by name
SPLIT_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
MAX_MAPPED = 4096  # tars and indices mapped at a time; Linux allows a process 65530 maps

K = TypeVar("K")
T = TypeVar("T")


class Uses(Protocol):
    """Shards that a stretch of the stream reads, in the order of their first use; `plan.Reads` is one."""

    @property
    def shards(self) -> np.ndarray:
        """int64[n], numbers of shards in the split."""

    @property
    def first(self) -> np.ndarray:
        """int64[n], the stream index at which each is first read."""

    @property
    def last(self) -> np.ndarray:
        """int64[n], and last read."""


class Stream(NamedTuple):
    """What a loader tells its storage of the future."""

    reads: Callable[[int, int], Uses]  # (samples consumed, samples ahead) -> what this rank reads in them
    node_reads: Callable[[int, int], Uses]  # the same for all ranks of this node
    consumed: int  # where the loader starts
    batch: int  # samples of a global batch: stretches begin at a batch
    epoch: int  # samples of the stream after which every shard has been read


class Ahead(Protocol):
    """Fetching that runs ahead of a loader."""

    def advance(self, consumed: int) -> None:
        """The loader has come so far along its stream. Returns at once."""

    def close(self) -> None:
        """Fetch nothing more."""


class Storage(Protocol):
    """What a set and its splits ask of the place where they lie."""

    where: str  # for messages: no user, password or query of a URL
    path: Path  # a folder of this machine that holds manifest.json
    manifest: Manifest

    def columns(self, info: ShardInfo) -> Columns:
        """The index of a shard, checked."""

    def prepare(self, infos: Sequence[ShardInfo]) -> None:
        """The indices of these shards will be asked for: bring them, many at a time."""

    def tar(self, info: ShardInfo) -> memoryview:
        """The bytes of a tar, mapped; valid as long as the view is held."""

    def split_file(self, name: str) -> Path | None:
        """The set's own split file of that name, on this machine; None where it has none."""

    def renew(self, info: ShardInfo) -> bool:
        """Bring a tar again whose bytes here have changed; False where that was tried, or there is no other copy."""

    def fetch_ahead(self, infos: Sequence[ShardInfo], stream: Stream) -> Ahead:
        """Bring the shards of a split before a loader reads them."""


class Mapped(Generic[K, T]):
    """At most MAX_MAPPED opened things, the least recently used let go first; safe to ask from many threads."""

    def __init__(self, opener: Callable[[K], T]):
        self._opener, self._lock = opener, threading.Lock()
        self._held: OrderedDict[K, T] = OrderedDict()

    def __getitem__(self, key: K) -> T:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            thing = self._held[key] = self._opener(key)
            if len(self._held) > MAX_MAPPED:
                self._held.popitem(last=False)  # unmapped once nobody holds a view of it
            return thing


class NothingAhead:
    """A local folder has everything at hand."""

    def advance(self, consumed: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to end."""


class LocalFolder:
    """A folder of this machine: mapped where it lies, never copied."""

    def __init__(self, path: Path):
        self.path, self.where = path, str(path)
        self.manifest = Manifest.read(path)
        self._infos: dict[str, ShardInfo] = {}
        self._tars: Mapped[str, memoryview] = Mapped(self._open_tar)

    def columns(self, info: ShardInfo) -> Columns:
        """The index of a shard, checked. ValueError in one line."""
        return open_columns(self.path, info, self.manifest)

    def prepare(self, infos: Sequence[ShardInfo]) -> None:
        """They are here."""

    def tar(self, info: ShardInfo) -> memoryview:
        """The bytes of a tar. ValueError where it is missing or has another size than the manifest says."""
        self._infos.setdefault(info.name, info)
        return self._tars[info.name]

    def packed(self) -> bool:
        """Whether the tars lie here as .tar.zst alone."""
        shards = (info for split in self.manifest.splits.values() for info in split.shards)
        return any(info.packed and not (self.path / info.name).is_file() for info in shards)

    def check(self, info: ShardInfo) -> None:
        """ValueError where a tar is missing or has another size than the manifest says."""
        path = self.path / info.name
        if not path.is_file():
            raise ValueError(f"{info.name} is missing from {self.where}: copy it again, or make the set again")
        if (found := path.stat().st_size) != info.bytes:
            raise ValueError(f"{info.name} has {found} bytes, the manifest says {info.bytes}: truncated or altered")

    def _open_tar(self, name: str) -> memoryview:
        self.check(self._infos[name])
        with (self.path / name).open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def split_file(self, name: str) -> Path | None:
        """The csv of that name in the set's folder of splits."""
        path = self.path / SPLITS_FOLDER / f"{name}.csv"
        return path if path.is_file() else None

    def renew(self, info: ShardInfo) -> bool:
        """There is no other copy."""
        return False

    def will_read(self, info: ShardInfo, offset: int, size: int) -> None:
        """A hint: these bytes of a tar are read soon. Costs a system call where they are in memory already."""
        mapped = self.tar(info).obj
        begin = offset // mmap.PAGESIZE * mmap.PAGESIZE
        if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED"):
            mapped.madvise(mmap.MADV_WILLNEED, begin, min(offset + size, len(mapped)) - begin)

    def fetch_ahead(self, infos: Sequence[ShardInfo], stream: Stream) -> Ahead:
        """Nothing to bring."""
        return NothingAhead()


def open_columns(folder: Path, info: ShardInfo, manifest: Manifest) -> Columns:
    """Map the index of a shard and check it against the manifest's entry. ValueError in one line."""
    return check_columns(read_columns(folder / f"{info.stem}.cols", info.bytes), info, manifest)


def check_columns(columns: Columns, info: ShardInfo, manifest: Manifest) -> Columns:
    """Hold an index against the manifest and its entry there. ValueError in one line."""
    num_labels, fields = len(manifest.label_columns), manifest.metadata
    if len(columns) != info.samples or columns.labels.shape[1] != num_labels:
        raise ValueError(
            f"{info.stem}.cols holds {len(columns)} samples of {columns.labels.shape[1]} labels, the manifest says "
            f"{info.samples} of {num_labels}: it belongs to another set or is altered"
        )
    if columns.metadata.shape[1] != len(fields):
        raise ValueError(
            f"{info.stem}.cols holds {columns.metadata.shape[1]} metadata fields, the manifest says {len(fields)}: it "
            "belongs to another set or is altered"
        )
    for number, field in enumerate(fields):
        if problem := problem_of(columns.metadata[:, number], field.name, field.values):
            raise ValueError(f"{info.stem}.cols is damaged: {problem}; make it again with `python -m shards index`")
    return columns


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL (`https://…`, `s3://…`) and no path."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:(:|//)", place) is not None


def open_storage(
    place: str | Path,
    *,
    cache: str | Path | None = None,
    cache_limit: int | None = None,
    patience: "Patience | None" = None,
) -> Storage:
    """The storage of a set at a path or a URL. A URL needs a folder for the cache; see `remote.RemoteFolder`.

    Raises:
        ValueError: a URL or a packed set without a cache, or no manifest there.
    """
    if not is_url(place) or str(place).startswith("file://"):
        path = Path(unquote(urlsplit(str(place)).path)) if is_url(place) else Path(place)
        local = LocalFolder(path)
        if not local.packed():
            return local
        if cache is None:
            raise ValueError(
                f"the tars of {path} are packed for transport: give a folder for what is unpacked (cache=DIR, --cache "
                f"DIR), or unpack them once: zstd -d --rm {path}/*.tar.zst"
            )
        place = path.resolve().as_uri()
    from shards.remote import RemoteFolder  # fsspec is needed only there

    return RemoteFolder(str(place), cache, cache_limit, patience)
