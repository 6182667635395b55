"""Bytes from a URL: ranged requests through fsspec, tried again with back-off in bounded time, hashed before use.

A request that fails is repeated from where the last one ended, with a quarter of its size, so a slow line still gets on
and a broken one loses little. No message holds the user, password or query of a URL, nor a secret of the environment.
"""

import errno
import hashlib
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import zstandard

from shards.manifest import ShardInfo
from shards.redaction import scrub, shown
from shards.storage import is_url

FIRST_REQUEST, LARGEST_REQUEST, SMALLEST_REQUEST = 4 << 20, 16 << 20, 64 << 10  # bytes
UNPACK_BYTES = 1 << 20  # unpacked at a time, so that a packed bomb costs no memory
TRIES_OF_WRONG_BYTES = 2
PASSING_STATUS = {408, 425, 429}  # besides 5xx: worth another try


class FetchError(ValueError):
    """A file could not be had; one line that says which, from where, why and what to do."""


class NotThere(FetchError):
    """The server says that there is no such file, or does not say more than no."""


@dataclass(frozen=True)
class Patience:
    """How long to try. A request without progress ends after at most attempts x (timeout + longest wait) seconds."""

    attempts: int = 6  # tries in a row that bring nothing, 1..
    timeout_seconds: float = 30.0  # for one request of at most 16 MiB (64 KiB after failures)
    wait_seconds: float = 0.5  # before the second try; doubles
    longest_wait_seconds: float = 20.0
    threads: int = 4  # shards that are fetched ahead at a time, 1..

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.threads < 1:
            raise ValueError(f"patience of {self.attempts} attempts and {self.threads} threads: give 1 or more of each")
        if not 0 < self.timeout_seconds < float("inf") or not 0 <= self.wait_seconds < float("inf"):
            raise ValueError(
                f"patience of {self.timeout_seconds} s a request, {self.wait_seconds} s wait: give seconds"
            )

    @property
    def longest_silence_seconds(self) -> float:
        """After so long without a byte, nothing is to be hoped for."""
        waits = (min(self.wait_seconds * 2**n, self.longest_wait_seconds) for n in range(self.attempts - 1))
        return self.attempts * self.timeout_seconds + sum(waits)

    def wait(self, failures: int) -> float:
        """Seconds before the next try: doubling, and shortened by chance so that ranks do not knock in step."""
        longest = min(self.wait_seconds * 2 ** (failures - 1), self.longest_wait_seconds)
        return longest * random.SystemRandom().uniform(0.5, 1.0)


def shown_place(place: str | Path) -> str:
    """A place as it may be written down: a URL as in messages, a path as it is."""
    return shown(str(place)) if is_url(place) else str(place)


class Place:
    """A folder at a URL. Safe to use from many threads; `closed` ends every wait."""

    def __init__(self, url: str, patience: Patience):
        base, _, query = url.partition("?")
        self._base, self._query = base.rstrip("/"), f"?{query}" if query else ""
        self.shown, self.patience = shown(url), patience
        self.packed: bool | None = None  # whether tars lie there as .tar.zst, once that is known
        self.closed = threading.Event()
        self._fs, _ = _open_filesystem(base, self.shown)

    def read(self, name: str, most: int) -> bytes:
        """A small file as a whole, at most `most` bytes (at least 1). FetchError in bounded time."""
        return next(self.pieces(name, 0, most, first=most, smallest=most))[:most]

    def pieces(
        self, name: str, start: int, stop: int | None, *, first: int = FIRST_REQUEST, smallest: int = SMALLEST_REQUEST
    ) -> Iterator[bytes]:
        """The bytes of a file from `start` to `stop`, or without end. FetchError after too many tries in a row."""
        size, failures, since = first, 0, time.monotonic()
        while stop is None or start < stop:
            end = start + size if stop is None else min(start + size, stop)
            if self.closed.is_set():
                raise FetchError(f"{self.shown}/{name}: fetching was ended")
            try:
                piece = self._request(name, start, end)
                if not piece:
                    raise EOFError
            except Exception as error:
                failures += 1
                self._judge(name, error, failures, time.monotonic() - since)
                size = max((end - start) // 4, smallest)
                continue
            failures, since = 0, time.monotonic()
            size = min(size * 2, max(LARGEST_REQUEST, first))
            start += len(piece)
            yield piece

    def _request(self, name: str, start: int, end: int) -> bytes:
        path = self._fs._strip_protocol(f"{self._base}/{name}") + self._query
        if self._fs.async_impl:
            from fsspec.asyn import sync

            timeout = self.patience.timeout_seconds
            data = sync(self._fs.loop, self._fs._cat_file, path, start=start, end=end, timeout=timeout)
        else:
            data = self._fs.cat_file(path, start=start, end=end)
        return data[start:] if len(data) > end - start else data  # more than asked: it knows no ranges and sent all

    def _judge(self, name: str, error: Exception, failures: int, seconds: float) -> None:
        """Wait for the next try, or raise a FetchError where none would help or enough were made."""
        reason, kind = _reason(error, self.patience.timeout_seconds)
        if kind is not None:
            raise kind(f"{self.shown}/{name}: {reason}") from None
        if failures >= self.patience.attempts:
            raise FetchError(
                f"{self.shown}/{name}: {reason}; gave up after {failures} tries in {seconds:.1f} s: is the server up? "
                "run the same command to go on"
            ) from None
        self.closed.wait(self.patience.wait(failures))


def _open_filesystem(url: str, where: str) -> tuple[Any, str]:
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise FetchError(f"{where}: {scrub(str(error))}") from None
    except ValueError as error:
        raise FetchError(f"{where}: fsspec cannot open it ({scrub(str(error))})") from None


def _reason(error: BaseException, timeout: float) -> tuple[str, type[FetchError] | None]:
    """What went wrong in plain words, and the error to raise at once where another try would not help."""
    names = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(error, "status", None)
    text = type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such file (404): is the address the folder that holds manifest.json?", NotThere
    if isinstance(error, PermissionError) or status in (401, 403):
        return "access is refused: check the credentials in the environment", NotThere
    if any("Certificate" in name or "SSL" in name for name in names):
        return "its certificate is refused: is it the right server, and is its authority known here?", FetchError
    if any("Credential" in name for name in names):
        return f"{text}: {scrub(str(error))}: check the credentials in the environment", FetchError
    if isinstance(error, ImportError | TypeError | AttributeError | NotImplementedError):
        return f"{text}: {scrub(str(error))}", FetchError
    if isinstance(status, int):
        return f"HTTP {status}", None if status >= 500 or status in PASSING_STATUS else FetchError
    if isinstance(error, EOFError):
        return "no byte came", None
    if isinstance(error, TimeoutError) or "TimeoutError" in text:
        return f"no answer within {timeout:g} s", None
    if isinstance(error, ConnectionRefusedError) or getattr(error, "errno", None) == errno.ECONNREFUSED:
        return "the connection is refused", None
    broken = isinstance(error, ConnectionError) or getattr(error, "errno", None) in (errno.ECONNRESET, errno.EPIPE)
    if broken or names & {"ServerDisconnectedError", "ClientPayloadError"}:
        return "the connection broke", None
    return f"{text}: {scrub(str(error))}", None


def fetch_tar(place: Place, info: ShardInfo, file: IO[bytes]) -> None:
    """Fill `file`, which may hold the beginning of an earlier try, with a tar whose sha256 is right.

    Raises:
        FetchError: it cannot be had, or other bytes come time and again (shard, expected and found are named).
    """
    for _ in range(TRIES_OF_WRONG_BYTES):
        found = _fill(place, info, file)
        if found == info.sha256:
            return
        file.seek(0)
        file.truncate()
    raise _wrong_bytes(place, info.name, info.sha256, found)


def _fill(place: Place, info: ShardInfo, file: IO[bytes]) -> str:
    """The sha256 of what came, or what else was wrong with it."""
    if not place.packed:
        try:
            found = _fill_plain(place, info, file)
            place.packed = False
            return found
        except NotThere as error:
            if place.packed is False:
                raise
            refusal = error
    try:
        found = _fill_packed(place, info, file)
    except NotThere as error:
        raise error if place.packed else refusal from None
    place.packed = True
    return found


def _fill_plain(place: Place, info: ShardInfo, file: IO[bytes]) -> str:
    digest, size = hashlib.sha256(), 0
    file.seek(0)
    while size < info.bytes and (data := file.read(UNPACK_BYTES)):  # of an earlier try
        digest.update(data)
        size += len(data)
    for piece in place.pieces(info.name, size, info.bytes):
        data = piece[: info.bytes - size]
        file.write(data)
        digest.update(data)
        size += len(data)
    file.truncate(info.bytes)
    return digest.hexdigest()


def _fill_packed(place: Place, info: ShardInfo, file: IO[bytes]) -> str:
    digest, left = hashlib.sha256(), info.bytes
    file.seek(0)
    file.truncate()
    source = _Source(place.pieces(f"{info.name}.zst", 0, None))
    try:
        with zstandard.ZstdDecompressor().stream_reader(source, read_across_frames=True) as reader:  # type: ignore[arg-type]
            while left and (data := reader.read(min(left, UNPACK_BYTES))):
                file.write(data)
                digest.update(data)
                left -= len(data)
    except zstandard.ZstdError as error:
        return f"(not zstd: {scrub(str(error))})"
    return digest.hexdigest()


class _Source:
    """Pieces as a file that is only ever read on."""

    def __init__(self, pieces: Iterator[bytes]):
        self._pieces, self._rest = pieces, memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)


def fetch_index(place: Place, info: ShardInfo, most: int) -> bytes:
    """The `.cols` file of a shard, its sha256 right, at most `most` bytes."""
    name = f"{info.stem}.cols"
    for _ in range(TRIES_OF_WRONG_BYTES):
        data = place.read(name, most)
        found = hashlib.sha256(data).hexdigest()
        if found == info.index_sha256:
            return data
    raise _wrong_bytes(place, name, info.index_sha256, found)


def _wrong_bytes(place: Place, name: str, expected: str, found: str) -> FetchError:
    return FetchError(
        f"{place.shown}/{name}: sha256 {found} came {TRIES_OF_WRONG_BYTES} times, the manifest expects {expected}: "
        "the file was altered there; upload it again"
    )
