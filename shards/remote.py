"""A set at a URL: indices when they are asked for, tars through the cache, and threads that fetch ahead of a loader."""

import logging
import mmap
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shards.aside import write_aside
from shards.cache import NOW, Cache, Refusal, Wants
from shards.fetching import FetchError, NotThere, Patience, Place, fetch_index, fetch_tar
from shards.index import BYTES_A_SAMPLE, HEADER, MAX_STORED_KEY_BYTES, Columns, parse_columns
from shards.lookahead import HORIZON, Lookahead, check_room
from shards.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest, ShardInfo
from shards.overrides import MAX_FILE_BYTES
from shards.storage import MAX_MAPPED, SPLITS_FOLDER, Ahead, Stream, check_columns

POLL_SECONDS = 0.02
IDLE_SECONDS = 1.0
log = logging.getLogger(__name__)
CLOSE_SECONDS = 5.0
INDEX_THREADS = 16
MOST_ANNOUNCED = 16_384  # shards; what lies beyond is minutes away


class RemoteFolder:
    """A set at a URL, read through a cache folder that processes and sets may share.

    The manifest is fetched anew at each start; its digest names the set's place in the cache. `cache_limit` bounds the
    bytes below `cache` (manifests aside). A split that is read without `fetch_ahead` fetches a shard when it is needed.

    Raises:
        FetchError: the set cannot be had, in bounded time.
        ValueError: no cache folder was given, or its limit is smaller than the largest shard.
    """

    def __init__(
        self, url: str, cache: str | Path | None, cache_limit: int | None = None, patience: Patience | None = None
    ):
        self.patience = patience or Patience()
        self._url = url
        self.place = self.open_place()
        self.where = self.place.shown
        if cache is None:
            raise ValueError(
                f"the shards are at {self.where}: give a folder for what is fetched (cache=DIR, --cache DIR)"
            )
        self.manifest, data = self._fetch_manifest()
        self.cache = Cache(cache, cache_limit)
        self._check_limit()
        self.key = self.manifest.digest[:32]
        self.path = self.cache.folder / self.key
        self.path.mkdir(mode=0o700, exist_ok=True)
        if not (self.path / MANIFEST_NAME).exists():
            write_aside(self.path / MANIFEST_NAME, data, shared=True)  # ranks of a node begin together
        self._held: OrderedDict[str, memoryview] = OrderedDict()
        self._failed: dict[str, FetchError] = {}
        self._renewed: set[str] = set()
        self._lock = threading.Lock()

    def open_place(self) -> Place:
        """The URL, to fetch from; each has its own `closed`."""
        return Place(self._url, self.patience)

    def _fetch_manifest(self) -> tuple[Manifest, bytes]:
        where = f"{self.where}/{MANIFEST_NAME}"
        try:
            data = self.place.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
            return Manifest.parse(data, where), data
        except FetchError:
            raise
        except ValueError:  # half a file, or one being replaced
            data = self.place.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
            return Manifest.parse(data, where), data

    def _check_limit(self) -> None:
        shards = [shard for split in self.manifest.splits.values() for shard in split.shards]
        largest = max(shards, key=lambda shard: shard.bytes, default=None)
        if largest and self.cache.limit is not None and largest.bytes > self.cache.limit:
            raise ValueError(
                f"the cache limit is {self.cache.limit} bytes, but {largest.name} alone has {largest.bytes}: "
                "raise the limit, or reshard the set"
            )

    def columns(self, info: ShardInfo) -> Columns:
        """The index of a shard, fetched if need be, checked."""
        return check_columns(parse_columns(self._index(info), f"{info.stem}.cols", info.bytes), info, self.manifest)

    def split_file(self, name: str) -> Path | None:
        """The set's own split file of that name, fetched anew; None where there is none."""
        try:
            data = self.place.read(f"{SPLITS_FOLDER}/{name}.csv", MAX_FILE_BYTES)
        except NotThere:
            return None
        path = self.path / f"{name}.csv"
        write_aside(path, data, shared=True)
        return path

    def prepare(self, infos: Sequence[ShardInfo]) -> None:
        """Fetch the indices of these shards, many at a time."""
        missing = [info for info in infos if not (self.path / f"{info.stem}.cols").exists()]
        if missing:
            with ThreadPoolExecutor(min(INDEX_THREADS, len(missing))) as pool:
                list(pool.map(self._index, missing))

    def _index(self, info: ShardInfo) -> bytes | mmap.mmap:
        key = f"{self.key}/{info.stem}.cols"
        own = 2 * len(self.manifest.label_columns) + 4 * len(self.manifest.metadata)
        silence = _Silence(self.patience, f"{self.where}/{info.stem}.cols")
        while (mapped := self.cache.open(key)) is None:
            file = self.cache.begin(key, 0, NOW)  # its size is not known before it comes
            if not isinstance(file, Refusal):
                with file:
                    most = HEADER.size + info.samples * (BYTES_A_SAMPLE + own + MAX_STORED_KEY_BYTES)
                    data = fetch_index(self.place, info, most)
                    if not self.cache.grow(key, len(data)):
                        return data  # no room beside what the plan needs: this process alone keeps it
                    file.truncate(0)
                    file.write(data)
                    return self.cache.finish(file, key, 0)
            silence.wait(self.cache.progress(key, 0))
        return mapped

    def tar(self, info: ShardInfo) -> memoryview:
        """The bytes of a tar, mapped; fetched now if it was not fetched ahead. Valid as long as the view is held."""
        with self._lock:
            if (held := self._held.get(info.name)) is not None:
                self._held.move_to_end(info.name)
                return held
        mapped = memoryview(self._obtain(info))
        with self._lock:
            self._held[info.name] = mapped
            if len(self._held) > MAX_MAPPED:
                self._held.popitem(last=False)
        self.let_go()
        return mapped

    def renew(self, info: ShardInfo) -> bool:
        """Throw a cached tar away and fetch it again, once a run: a disk that rots twice is to be told."""
        with self._lock:
            if info.name in self._renewed:
                return False
            self._renewed.add(info.name)
            self._held.pop(info.name, None)
            (self.path / info.name).unlink(missing_ok=True)
        log.warning("%s in the cache %s has changed since it was fetched: it is fetched again", info.name, self.path)
        self.tar(info)
        return True

    def let_go(self) -> None:
        """Unmap what was evicted, here or by another process, so that its bytes come free."""
        with self._lock:
            for name in [name for name in self._held if not (self.path / name).exists()]:
                del self._held[name]

    def _obtain(self, info: ShardInfo) -> mmap.mmap:
        key, silence = f"{self.key}/{info.name}", _Silence(self.patience, f"{self.where}/{info.name}")
        while (mapped := self.cache.open(key, info.bytes)) is None:
            if (failure := self._failed.pop(info.name, None)) is not None:
                raise failure
            if not isinstance(fetched := self._fetch(info, NOW, self.place), Refusal):
                return fetched
            silence.wait(self.cache.progress(key, info.bytes))
        return mapped

    def _fetch(self, info: ShardInfo, place: int, source: Place) -> mmap.mmap | Refusal:
        key = f"{self.key}/{info.name}"
        file = self.cache.begin(key, info.bytes, place)
        if isinstance(file, Refusal):
            return file
        with file:
            fetch_tar(source, info, file)
            return self.cache.finish(file, key, info.bytes)

    def fetch_quietly(self, info: ShardInfo, place: int, source: Place) -> Refusal | None:
        """Fetch a shard ahead. A failure is kept for the reader that will ask for the shard."""
        try:
            outcome = self._fetch(info, place, source)
            return outcome if isinstance(outcome, Refusal) else None
        except FetchError as error:
            if not source.closed.is_set():
                self._failed[info.name] = error
        except ValueError as error:  # the cache's lock
            self._failed[info.name] = FetchError(str(error))
        except OSError as error:
            self._failed[info.name] = FetchError(f"{info.name} cannot be kept in {self.cache.folder}: {error.strerror}")
        return None

    def missing(self, info: ShardInfo) -> bool:
        """Whether a shard is neither here nor known to be out of reach."""
        return info.name not in self._failed and not (self.path / info.name).exists()

    def fetch_ahead(self, infos: Sequence[ShardInfo], stream: Stream) -> Ahead:
        """Bring the shards of a split before a loader reads them. ValueError where the cache is too small."""
        if self.cache.limit is not None:
            lookahead = Lookahead(stream.node_reads, stream.consumed, stream.batch, min(stream.epoch, HORIZON))
            check_room(self.cache.limit, lookahead, stream.consumed, [info.bytes for info in infos])
        return FetchAhead(self, infos, stream)


class _Silence:
    """Waiting for another process, as long as it gets on."""

    def __init__(self, patience: Patience, what: str):
        self._patience, self._what = patience, what
        self._progress: int | None = -1
        self._since = time.monotonic()

    def wait(self, progress: int | None) -> None:
        if progress != self._progress:
            self._progress, self._since = progress, time.monotonic()
        if (seconds := time.monotonic() - self._since) > self._patience.longest_silence_seconds:
            raise FetchError(
                f"{self._what}: waited {seconds:.0f} s for another process to fetch it or for room in the cache; is "
                "a process stopped, or are there more readers than the cache limit holds shards for?"
            )
        time.sleep(POLL_SECONDS)


class FetchAhead:
    """One thread that follows the plan and announces it, and some that fetch what is next. See `storage.Ahead`."""

    def __init__(self, folder: RemoteFolder, infos: Sequence[ShardInfo], stream: Stream):
        self._folder, self._infos = folder, infos
        self._lookahead = Lookahead(stream.reads, stream.consumed, stream.batch, min(max(stream.epoch, 1), HORIZON))
        self._wants = Wants(folder.cache)
        self._place = folder.open_place()  # its own, so that closing ends these fetches and no others
        self._consumed, self._closed = stream.consumed, False
        self._moved = threading.Condition()  # the loader came further: for the follower
        self._next: list[int] = []
        self._busy: set[int] = set()
        self._full = False
        self._changed = threading.Condition()  # another list, or room: for the workers
        targets = [self._follow] + [self._work] * folder.patience.threads
        self._threads = [threading.Thread(target=target, name="fetch-ahead", daemon=True) for target in targets]
        for thread in self._threads:
            thread.start()

    def advance(self, consumed: int) -> None:
        """The loader has come so far along its stream."""
        with self._moved:
            self._consumed = consumed
            self._moved.notify()

    def close(self) -> None:
        """Fetch nothing more. A request under way is waited for a moment, then left to end by itself."""
        self._closed = True
        self._place.closed.set()
        for condition in (self._moved, self._changed):
            with condition:
                condition.notify_all()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))
        self._wants.close()

    def _follow(self) -> None:
        prepared: set[int] = set()
        while not self._closed:
            consumed = self._consumed
            further = self._lookahead.advance(consumed)
            shards = self._lookahead.shards()
            if shards != self._next:
                self._announce(shards)
                self._prepare([shard for shard in shards if shard not in prepared])
                prepared.update(shards)
            if not further:
                with self._moved:
                    near = consumed + max(self._lookahead.stride // 8, 1)
                    self._moved.wait_for(lambda near=near: self._closed or self._consumed >= near)  # type: ignore[misc]

    def _announce(self, shards: list[int]) -> None:
        """Tell the cache, which may evict the rest, and the workers."""
        self._wants.publish([f"{self._folder.key}/{self._infos[shard].name}" for shard in shards[:MOST_ANNOUNCED]])
        with self._changed:
            self._next, self._full = shards, False
            self._changed.notify_all()
        self._folder.let_go()

    def _prepare(self, shards: list[int]) -> None:
        try:
            self._folder.prepare([self._infos[shard] for shard in shards])
        except (FetchError, OSError):
            pass  # the reader asks for the same index, and meets the error itself

    def _work(self) -> None:
        while not self._closed:
            with self._changed:
                job = self._choose()
                if job is None:
                    self._changed.wait(IDLE_SECONDS)
                    self._full = False  # another process may have let go of something
                    continue
                self._busy.add(job[1])
            outcome = self._folder.fetch_quietly(self._infos[job[1]], job[0], self._place)
            with self._changed:
                self._full = outcome is Refusal.FULL
                if outcome is Refusal.ELSEWHERE:
                    self._changed.wait(POLL_SECONDS)
                self._busy.discard(job[1])

    def _choose(self) -> tuple[int, int] | None:
        """The place in the future and the number of the next shard to fetch; None if there is none, or no room."""
        if self._full:
            return None
        candidates = enumerate(self._next[:MOST_ANNOUNCED])
        return next(
            (
                (place, shard)
                for place, shard in candidates
                if shard not in self._busy and self._folder.missing(self._infos[shard])
            ),
            None,
        )
