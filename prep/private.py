"""The private folder beside a shard set: `NAME.private/`, mode 0700. Nothing in it may travel with the set.

salt             32 random bytes that key the hashes of groups and sources
sources.csv      key, source, group, split: the only way from a key back to a file or a patient
left_out.csv     key, source, split, reason: what did not decode
near_duplicates.csv  on request: pairs of sources in two splits that look alike
lock             held while a conversion runs; the kernel frees it when the process dies, however it dies
outcomes/…       what each finished shard of an unfinished run holds
buckets/…        images of HDF5 files and slides, encoded, until the set is finished
"""

import csv
import fcntl
import io
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from shards.aside import write_aside
from shards.identity import SALT_BYTES


class PrivateFolder:
    """The private folder of the set at `out`."""

    def __init__(self, out: Path):
        self.out = out
        self.path = out.with_name(f"{out.name}.private")

    def make(self) -> None:
        """Create the folder with mode 0700, and take the mode back to that where it was opened.

        Raises:
            ValueError: it cannot be made.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise ValueError(
                f"the folder {self.path} cannot be made ({error.strerror or type(error).__name__}): choose an --out "
                "that can be written to"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the set for one run; ValueError naming the process id of the run that holds it."""
        with self._open_lock() as file:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)

    def _open_lock(self) -> TextIO:
        """The lock file, locked. The run before may have removed it with its folder between our opening and locking it:
        such a file keeps nobody out.
        """
        while True:
            self.make()
            try:
                file = (self.path / "lock").open("a+")
            except FileNotFoundError:
                continue
            self._lock(file)
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()

    def _lock(self, file: TextIO) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                file.seek(0)
                holder = file.read().strip() or "unknown"
            raise ValueError(
                f"another run (process {holder}) is writing {self.out}: wait for it, or end it and run this "
                "command again"
            ) from None

    def salt(self, given: Path | None) -> bytes:
        """The salt: that of `given` where named, else the one kept here, else a new one; kept here from then on.

        Raises:
            ValueError: the set was made with another salt, or `given` is no salt of 32 bytes.
        """
        kept = self.path / "salt"
        if given is None:
            salt = _read_salt(kept) if kept.is_file() else secrets.token_bytes(SALT_BYTES)
        else:
            salt = _read_salt(given)
            if kept.is_file() and _read_salt(kept) != salt and (self.out / "manifest.json").is_file():
                raise ValueError(f"{self.out} was made with another salt than {given}: choose another --out")
        if not kept.is_file() or kept.read_bytes() != salt:
            write_aside(kept, salt)
            kept.chmod(0o600)
        return salt

    def write_table(self, name: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a csv table here, whole or not at all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        write_aside(self.path / name, text.getvalue().encode())


def _read_salt(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"there is no salt file {path}: leave --salt away to have one made")
    salt = path.read_bytes()
    if len(salt) != SALT_BYTES:
        raise ValueError(f"the salt file {path} has {len(salt)} bytes, {SALT_BYTES} are wanted")
    return salt
