"""A folder of fetched files with a byte limit, shared by the processes of a machine.

    CACHE/lock                                 held for the moment of a decision, never while something is fetched. Its
                                               text is a bound of the bytes in use; a count mends it when it matters
    CACHE/wants/PID-…                          what a living process will read, soonest first, a path a line
    CACHE/SET/train-000003.tar                 whole, hash checked, never changed
    CACHE/SET/train-000003.tar.1048576.partial being fetched: locked by who fetches, reserving the bytes in its name

SET is the beginning of the manifest's digest. All locks are flock's, which end with their owner, so a killed process
leaves nothing to clear up: what it had begun is resumed, what it wanted is forgotten. Evicting unlinks: who has a file
mapped keeps its bytes, and lets go of them when it next looks. The folder is for one machine's own disk.
"""

import fcntl
import mmap
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO

from shards.aside import PARTIAL, sync_folder

LOCK_SECONDS = 60.0  # decisions take milliseconds; who waits this long waits for a stopped process
NOW = -1  # the place in the future of what a reader waits for
LATER = 1 << 62  # of what nobody has announced
COUNTED = (".tar", ".cols", PARTIAL)
SET_FOLDER = re.compile("[0-9a-f]{32}")  # nothing else is ever counted or evicted, whatever folder a user names


class Refusal(Enum):
    """Why a file is not to be filled now."""

    ELSEWHERE = "another fills it, or has just done so"
    FULL = "all that could make room is read sooner"


@dataclass(frozen=True)
class Held:
    """A file of the cache: its path below the folder, its bytes, when it was last opened (seconds)."""

    key: str
    bytes: int
    used: float


def choose_victims(held: Sequence[Held], future: Mapping[str, int], room: int, place: int) -> list[Held] | None:
    """The files to let go so that `room` bytes come free for one that stands at `place` in the future, or None.

    Belady's rule with the plan's knowledge: first what nobody will read, the longest unused of it first, then what is
    read last. What is read at `place` or sooner stays.
    """
    able = [file for file in held if future.get(file.key, LATER) > place]
    able.sort(key=lambda file: (-future.get(file.key, LATER), file.used, file.key))
    chosen = []
    for file in able:
        if room <= 0:
            break
        chosen.append(file)
        room -= file.bytes
    return chosen if room <= 0 else None


def merge_futures(futures: Sequence[Sequence[str]]) -> dict[str, int]:
    """Each file's place in the future: its soonest among all readers'."""
    places: dict[str, int] = {}
    for keys in futures:
        for place, key in enumerate(keys):
            places[key] = min(place, places.get(key, place))
    return places


class Cache:
    """See the module. `limit` bytes for everything below `folder`, None for no limit."""

    def __init__(self, folder: str | Path, limit: int | None):
        self.folder, self.limit = Path(folder), limit
        if limit is not None and limit < 1:
            raise ValueError(f"cache limit {limit}: give bytes, 1 or more")
        (self.folder / "wants").mkdir(mode=0o700, parents=True, exist_ok=True)

        with self._decision() as lock:
            files, reserved = self._look("")
            _write_total(lock, sum(file.bytes for file in files) + reserved)

    @contextmanager
    def _decision(self) -> Iterator[IO[bytes]]:
        with os.fdopen(os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            until = time.monotonic() + LOCK_SECONDS
            while not _try_lock(file):
                if time.monotonic() > until:
                    raise ValueError(f"the lock of {self.folder} is held for {LOCK_SECONDS:g} s: is a process stopped?")
                time.sleep(0.002)
            yield file

    def open(self, key: str, size: int | None = None) -> mmap.mmap | None:
        """Map a file, or None where it is not (a file of another size than `size` is thrown away)."""
        path = self.folder / key
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno()).st_size
                if found and size in (None, found):
                    os.utime(path)
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            return None
        path.unlink(missing_ok=True)
        return None

    def begin(self, key: str, size: int, place: int) -> IO[bytes] | Refusal:
        """The file to fill for a reader that needs it at `place` in the future.

        It may hold the beginning of an earlier try. End it with `finish`, or by closing it.
        """
        path = self.folder / key
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with self._decision() as lock:
            if path.exists():
                return Refusal.ELSEWHERE
            partial = _partial(path, size)
            file = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
            locked = _try_lock(file)
            if locked and self._make_room(lock, key, size, place):
                return file
            if locked and not os.fstat(file.fileno()).st_size:
                partial.unlink()
            file.close()
            return Refusal.FULL if locked else Refusal.ELSEWHERE

    def grow(self, key: str, size: int) -> bool:
        """Whether there is room for bytes that were not known when the file was begun; evicts what nobody wants."""
        with self._decision() as lock:
            return self._make_room(lock, key, size, LATER - 1)

    def finish(self, file: IO[bytes], key: str, size: int) -> mmap.mmap:
        """Make a filled file durable and give it its name; returns it mapped."""
        path = self.folder / key
        file.flush()
        os.fsync(file.fileno())
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with self._decision():
            _partial(path, size).replace(path)
        file.close()
        sync_folder(path.parent)
        return mapped

    def progress(self, key: str, size: int) -> int | None:
        """How many bytes of a file have come, None where nobody has begun."""
        try:
            return _partial(self.folder / key, size).stat().st_size
        except FileNotFoundError:
            return None

    def _make_room(self, lock: IO[bytes], key: str, size: int, place: int) -> bool:
        total = _read_total(lock)
        if self.limit is not None and total + size > self.limit:
            files, reserved = self._look(key)
            total = sum(file.bytes for file in files) + reserved
            victims = self._choose(files, total + size - self.limit, size, place)
            for file in victims or []:
                (self.folder / file.key).unlink(missing_ok=True)
                total -= file.bytes
            if victims is None:
                _write_total(lock, total)
                return False
        _write_total(lock, total + size)
        return True

    def _choose(self, files: Sequence[Held], room: int, size: int, place: int) -> list[Held] | None:
        future, slack = self._future(), self.limit // 64 if self.limit else 0
        if 0 < size < slack:  # thousands of small files: not a count of all for each
            victims = choose_victims(files, future, room + slack, LATER - 1)
            if victims is not None:
                return victims
        return choose_victims(files, future, room, place)

    def _look(self, key: str) -> tuple[list[Held], int]:
        """Whole files and abandoned beginnings, and the bytes reserved by living fetches; `key` itself is left out."""
        files, reserved = [], 0
        for folder in sorted(path for path in self.folder.iterdir() if SET_FOLDER.fullmatch(path.name)):
            for entry in os.scandir(folder):
                name = f"{folder.name}/{entry.name}"
                if not entry.name.endswith(COUNTED) or name.startswith(f"{key}."):
                    continue
                try:
                    state = entry.stat()
                except FileNotFoundError:
                    continue
                if name.endswith(PARTIAL) and _is_locked(folder / entry.name):
                    reserved += int(name.split(".")[-2])
                else:
                    files.append(Held(name, state.st_size, state.st_mtime))
        return files, reserved

    def _future(self) -> dict[str, int]:
        """Where each file stands in the future of all living readers. What the dead wanted is forgotten."""
        futures = []
        for path in (self.folder / "wants").iterdir():
            if _is_locked(path):
                futures.append(path.read_text().splitlines())
            else:
                path.unlink(missing_ok=True)
        return merge_futures(futures)


class Wants:
    """What one reader will read, announced to all that share the cache, for as long as this process lives."""

    def __init__(self, cache: Cache):
        self._cache = cache
        with cache._decision():
            self._path = cache.folder / "wants" / f"{os.getpid()}-{secrets.token_hex(4)}"
            self._file = self._path.open("w+b")
            assert _try_lock(self._file), "a new file is locked by nobody"

    def publish(self, keys: Sequence[str]) -> None:
        """Replace what was announced; soonest first."""
        with self._cache._decision():
            self._file.seek(0)
            self._file.write("".join(f"{key}\n" for key in keys).encode())
            self._file.truncate()
            self._file.flush()

    def close(self) -> None:
        """Want nothing more."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def _partial(path: Path, size: int) -> Path:
    return path.with_name(f"{path.name}.{size}{PARTIAL}")


def _read_total(lock: IO[bytes]) -> int:
    lock.seek(0)
    return int(lock.read() or b"0")


def _write_total(lock: IO[bytes], total: int) -> None:
    lock.seek(0)
    lock.write(b"%020d" % total)
    lock.flush()


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return not _try_lock(file)
    except FileNotFoundError:
        return False
