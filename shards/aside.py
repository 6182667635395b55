"""Files and folders that appear whole: written beside under another name, synced, renamed.

One rule of names: what NAME is to be is written as `.NAME.partial`, or `.NAME.TOKEN.partial` where several writers may
come at once. Whatever bears such a name was left by a writer that was killed, and nobody reads it.
"""

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


def partial_path(path: Path, *, shared: bool = False) -> Path:
    """Where `path` is written before it is renamed, in the same folder.

    shared: several writers may come at once, each needs a name of its own; else one name is used again, so that a
    killed writer leaves nothing that its successor does not clear.
    """
    token = f".{secrets.token_hex(4)}" if shared else ""
    return path.with_name(f".{path.name}{token}{PARTIAL}")


@contextmanager
def aside(path: Path, *, shared: bool = False, synced: bool = True) -> Iterator[Path]:
    """A path to write a file to, which takes the place of `path` at the end of the block; nothing stays if that raises.

    A reader sees the old file or the whole new one, even after a power cut. `shared` as of `partial_path`. Not
    `synced`, a power cut may cost it: for what is cheaply made again.
    """
    part = partial_path(path, shared=shared)
    part.unlink(missing_ok=True)
    try:
        yield part
        if synced:
            sync_file(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    if synced:
        sync_folder(path.parent)


def write_aside(path: Path, data: bytes, *, shared: bool = False) -> None:
    """Write `data` to `path` as `aside` does."""
    with aside(path, shared=shared) as part:
        part.write_bytes(data)


@contextmanager
def new_folder(path: Path, otherwise: str = "give another folder, or remove it first") -> Iterator[Path]:
    """A folder to fill, which becomes `path` at the end of the block; nothing stays if that raises.

    What killed writers of `path` have left is removed.

    Raises:
        ValueError: `path` exists, before the block or after it; the text ends with what to do `otherwise`.
    """
    _refuse(path, otherwise)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, lock = _begin(path)
    try:
        yield part
        _refuse(path, otherwise)  # a rename would take the place of an empty folder
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _begin(path: Path) -> tuple[Path, int]:
    """A new part of `path`, and the lock on it that its writer holds for as long as it lives."""
    ours, part = re.escape(f".{path.name}.") + r"[0-9a-f]{8}" + re.escape(PARTIAL), partial_path(path, shared=True)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(parent, fcntl.LOCK_EX)  # nobody sees a part before it is locked
        for old in [each for each in path.parent.iterdir() if re.fullmatch(ours, each.name)]:
            lock = os.open(old, os.O_RDONLY)
            if _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(old, ignore_errors=True)
            os.close(lock)
        part.mkdir()
        lock = os.open(part, os.O_RDONLY)
        _lock(lock, fcntl.LOCK_EX)
        return part, lock
    finally:
        os.close(parent)


def _lock(descriptor: int, how: int) -> bool:
    """Whether it is ours now; False also where the file system knows no locks."""
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        return False
    return True


def _refuse(path: Path, otherwise: str) -> None:
    if path.exists():
        raise ValueError(f"{path} exists: {otherwise}")


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable; does nothing where folders cannot be opened (Windows)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
