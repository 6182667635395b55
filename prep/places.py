"""Raw folders: on this machine, or at a URL (s3, gs, http, hf, … by fsspec), with paths that read alike.

A file of a store that does not come is tried again, and then ends the run: it says nothing of the image, so the image
is not left out. What is not there, or is of no image, is.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from shards.redaction import scrub, shown
from shards.storage import is_url

ATTEMPTS = 5
FIRST_WAIT_SECONDS = 0.5
SIZE_THREADS = 32

T = TypeVar("T")


class StoreFailed(OSError):
    """A store did not answer, time and again; one line without secrets."""


def open_place(place: str | Path) -> Path:
    """The raw folder at a path or a URL. What it returns for a URL has the methods of a Path.

    Raises:
        ValueError: fsspec does not know it, or lacks the package for it; or a user and password stand in it.
    """
    if not is_url(place):
        return Path(place)
    text = str(place)
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    if "@" in urlsplit(text).netloc:
        raise ValueError(f"{shown(text)}: leave user and password out of the URL; the environment has a place for them")
    from upath import UPath

    try:
        opened = UPath(text)
        _ = opened.fs
    except (ImportError, ValueError) as error:
        raise ValueError(f"{shown(text)}: fsspec cannot open it ({scrub(str(error))})") from None
    return opened  # type: ignore[return-value]


def is_far(path: Path) -> bool:
    """Whether a path is of a store."""
    return not isinstance(path, Path)


def state_of(path: Path) -> tuple[int, ...]:
    """What differs once a file of this machine is written or replaced; () of a store's. OSError where it is missing."""
    if is_far(path):
        return ()
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def there(path: Path, what: str = "a raw file") -> bool:
    """Whether a file or folder is there. A store that fails is asked again, and then ends the run: it says nothing.

    Raises:
        StoreFailed: see `patiently`. `what` is told of the path, whose name may be private.
    """
    if not is_far(path):
        return path.exists()
    try:
        patiently(what, lambda: path.fs.info(path.path), private=True)  # type: ignore[attr-defined]
    except FileNotFoundError:
        return False
    return True


def read_text(path: Path) -> str:
    """A table or a list, in UTF-8 with or without a mark; line ends stay. OSError as of a file, or StoreFailed."""
    data = patiently(path.name, path.read_bytes, private=True) if is_far(path) else path.read_bytes()
    return data.decode("utf-8-sig")


def opened(path: Path) -> BinaryIO:
    """A raw file to be read in parts. OSError as of a file; StoreFailed."""
    return patiently("a raw file", lambda: path.open("rb"), private=True) if is_far(path) else path.open("rb")


@contextmanager
def nameless(root: Path) -> Iterator[None]:
    """What cannot be read below a raw folder is told in one line without its name, which may be a patient's.

    Raises:
        ValueError: in place of an OSError of a file, or of what a store's client raises.
    """
    try:
        yield
    except (ValueError, StoreFailed):
        raise
    except Exception as error:
        if not (isinstance(error, OSError) or is_far(root)):
            raise
        raise ValueError(f"a file or folder in {shown(str(root))} cannot be read ({kind_of(error)})") from None


def kind_of(error: BaseException) -> str:
    """What went wrong with a raw file, without the error's text: clients and systems quote names in it."""
    said = error.strerror if isinstance(error, OSError) else getattr(error, "status", None)
    return f"{type(error).__name__}{f': {said}' if said else ''}"


def patiently(what: str, act: Callable[[], T], *, private: bool = False) -> T:
    """What `act` returns, tried again where the store fails. FileNotFoundError comes through.

    `private`: names of raw files may stand in the store's message, of which only the kind is told.

    Raises:
        StoreFailed: it failed ATTEMPTS times, or refuses access.
    """
    for attempt in range(ATTEMPTS):
        try:
            return act()
        except FileNotFoundError as error:
            if (cause := error.__cause__) is None or not _of_a_server(cause):
                raise
            last = cause
        except PermissionError as error:
            raise StoreFailed(f"{what}: access is refused ({type(error).__name__}): check the credentials") from None
        except Exception as error:  # each store's client has errors of its own
            last = error
        if attempt + 1 < ATTEMPTS:
            time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
    reason = kind_of(last) if private else f"{type(last).__name__}: {scrub(str(last))}"
    raise StoreFailed(f"{what}: {reason}; gave up after {ATTEMPTS} tries: run the same command to go on") from None


def _of_a_server(cause: BaseException) -> bool:
    """Whether a web server that is busy or gone is behind what fsspec calls a missing file."""
    return type(cause).__module__.startswith("aiohttp") and getattr(cause, "status", None) not in (404, 410)


def sizes(root: Path, paths: Iterable[Path]) -> list[int]:
    """Bytes of each file, -1 where there is none. A store is asked for one listing, not for each file, where it can."""
    if not is_far(root):
        return [_size(path) for path in paths]
    store, paths = root.fs, list(paths)  # type: ignore[attr-defined]
    listed: dict[str, dict[str, Any]] = {}
    try:
        listed = patiently("listing the raw folder", lambda: store.find(root.path, detail=True), private=True)  # type: ignore[attr-defined]
    except (FileNotFoundError, StoreFailed):
        pass  # a web server without listings: each file is asked for
    known = {store._strip_protocol(name).rstrip("/"): entry.get("size") for name, entry in listed.items()}

    def size(path: Path) -> int:
        found = known.get(store._strip_protocol(path.path).rstrip("/"))  # type: ignore[attr-defined]
        if found is not None or (known and store.protocol not in ("http", ("http", "https"))):
            return -1 if found is None else int(found)
        try:
            return int(patiently("a raw file", lambda: store.size(path.path), private=True) or 0)  # type: ignore[attr-defined]
        except FileNotFoundError:
            return -1

    with ThreadPoolExecutor(SIZE_THREADS) as pool:
        return list(pool.map(size, paths))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else -1
    except (OSError, ValueError):  # too long a name, a folder that is closed, a NUL: told when the image is read
        return -1
