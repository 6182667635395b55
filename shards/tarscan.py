"""A strict reader of tar headers: where each member's bytes lie, in every dialect, without extracting anything.

ustar, old v7, GNU (long names, base-256 sizes, sparse) and PAX are understood. A member whose bytes are not simply
there (sparse, symbolic link, device, a name that is not UTF-8) is returned with the reason in `problem`, so that
nothing is skipped silently. Hard links resolve to the bytes of the member they name. A damaged archive is a ValueError.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20  # of one PAX or long-name record
REGULAR = (b"0", b"\0", b"7")
OTHER_KINDS = {b"2": "a symbolic link", b"3": "a device", b"4": "a device", b"5": "a folder", b"6": "a pipe"}


class Member(NamedTuple):
    """One entry of a tar: its name, where its data lie, and why they cannot be used ("" if they can)."""

    name: str
    offset: int
    size: int
    problem: str = ""

    @property
    def is_folder(self) -> bool:
        """Folders hold no data and are no problem to anybody."""
        return self.problem == OTHER_KINDS[b"5"]


def scan(path: str | Path) -> Iterator[Member]:
    """All members of a tar in stored order.

    Raises:
        ValueError: the archive is truncated, a header's checksum is wrong, or something follows the end mark.
    """
    path = Path(path)
    with path.open("rb") as file:
        yield from _Scanner(file, os.fstat(file.fileno()).st_size, path.name).members()


class _Scanner:
    """The state between headers: long names and PAX records apply to the member that follows them."""

    def __init__(self, file: BinaryIO, total: int, where: str):
        self.file, self.total, self.where = file, total, where
        self.position = 0
        self.shared: dict[str, str] = {}  # PAX records of all members to come
        self.pending: dict[str, str] = {}  # of the next one alone
        self.data: dict[str, tuple[int, int]] = {}  # what a hard link may name

    def members(self) -> Iterator[Member]:
        if self.total == 0:
            raise self.error("is empty")
        while True:
            header = self.read(self.position, BLOCK, "a header")
            start = self.position
            self.position += BLOCK
            if not any(header):
                self.expect_zeros()
                return
            if not _checksum_fits(header):
                raise self.error(f"has no valid header at byte {start}")
            if (member := self.one(header)) is not None:
                yield member

    def one(self, header: bytes) -> Member | None:
        """What one header says; None if it only prepares the next."""
        kind, size = header[156:157], self.number(header[124:136])
        if kind in b"LKxXg":
            self.extend(kind, self.take(size, extended=True))
            return None
        records = self.shared | self.pending
        self.pending = {}
        name, problem = _name_of(header, records)
        if kind in REGULAR and name.endswith("/"):
            kind = b"5"  # how v7 wrote folders
        if "size" in records and kind != b"1":
            size = self.decimal(records["size"])
        if kind == b"S":
            self.skip_sparse_map(header)
        sparse = kind == b"S" or any(key.startswith("GNU.sparse.") for key in records)
        if kind == b"1":
            return self.hard_link(name, problem, header, records)
        stored = 0 if kind in OTHER_KINDS else size
        offset = self.position
        self.skip(stored, name)
        if sparse:
            problem = "a sparse file"
        elif kind not in REGULAR:
            problem = OTHER_KINDS.get(kind, f"of the unknown kind {kind!r}")
        if not problem:
            self.data[name] = (offset, size)
        return Member(name, offset, size, problem)

    def hard_link(self, name: str, problem: str, header: bytes, records: dict[str, str]) -> Member:
        target = records.get("linkpath") or header[157:257].split(b"\0")[0].decode(errors="replace")
        if target not in self.data:
            return Member(name, self.position, 0, problem or f"a hard link to {target[:80]!r}, which is not before it")
        self.data[name] = self.data[target]
        return Member(name, *self.data[target], problem)

    def extend(self, kind: bytes, data: bytes) -> None:
        if kind == b"L":
            self.pending["path"] = data.split(b"\0")[0].decode(errors="surrogateescape")
        elif kind == b"K":
            self.pending["linkpath"] = data.split(b"\0")[0].decode(errors="surrogateescape")
        else:
            (self.shared if kind == b"g" else self.pending).update(self.pax(data))

    def pax(self, data: bytes) -> Iterator[tuple[str, str]]:
        """Records "LENGTH KEY=VALUE\\n"."""
        while data and data[0]:
            length, blank, _ = data.partition(b" ")
            if not (blank and length.isdigit() and len(length) <= 8 and len(length) + 3 < int(length) <= len(data)):
                raise self.error(f"has a broken PAX record before byte {self.position}")
            record, data = data[len(length) + 1 : int(length)], data[int(length) :]
            key, equals, value = record.removesuffix(b"\n").partition(b"=")
            if not equals:
                raise self.error(f"has a broken PAX record before byte {self.position}")
            yield key.decode(errors="replace"), value.decode(errors="surrogateescape")

    def skip_sparse_map(self, header: bytes) -> None:
        extended = header[482]
        while extended:
            extended = self.read(self.position, BLOCK, "a sparse map")[504]
            self.position += BLOCK

    def take(self, size: int, *, extended: bool) -> bytes:
        if extended and size > MAX_EXTENDED_BYTES:
            raise self.error(f"has an extended header of {size} bytes, at most {MAX_EXTENDED_BYTES} are read")
        data = self.read(self.position, size, "an extended header")
        self.skip(size, "an extended header")
        return data

    def skip(self, size: int, name: str) -> None:
        if size > self.total - self.position:
            raise self.error(f"is truncated in {name[:80]!r}")
        self.position += -(-size // BLOCK) * BLOCK

    def read(self, position: int, size: int, what: str) -> bytes:
        if size > self.total - position:
            raise self.error(f"is truncated: {what} is wanted at byte {position} of {self.total}")
        self.file.seek(position)
        return self.file.read(size)

    def expect_zeros(self) -> None:
        self.file.seek(self.position)
        while chunk := self.file.read(1 << 20):
            if chunk.count(0) != len(chunk):
                raise self.error(f"goes on after its end mark at byte {self.position - BLOCK}: two tars joined?")

    def number(self, field: bytes) -> int:
        if field[0] & 0x80:  # base 256; the sign bit of a size must be clear
            if field[0] & 0x40:
                raise self.error(f"has a negative size at byte {self.position - BLOCK}")
            return int.from_bytes(bytes([field[0] & 0x3F]) + field[1:], "big")
        text = field.strip(b" \0")
        if text and not all(48 <= digit < 56 for digit in text):
            raise self.error(f"has no valid size at byte {self.position - BLOCK}")
        return int(text or b"0", 8)

    def decimal(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) <= 20):
            raise self.error(f"has no valid PAX size before byte {self.position}")
        return int(text)

    def error(self, what: str) -> ValueError:
        return ValueError(f"{self.where} {what}: restore the file, or write it again")


def _checksum_fits(header: bytes) -> bool:
    text = header[148:156].strip(b" \0")
    if not text or not all(48 <= digit < 56 for digit in text):
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in rest)  # some old writers summed signed characters
    return int(text, 8) in (sum(rest), signed)


def _name_of(header: bytes, records: dict[str, str]) -> tuple[str, str]:
    """The member's name and why it cannot be used; a name that is not UTF-8 is shown with its bytes replaced."""
    if "path" in records:
        raw = records["path"].encode(errors="surrogateescape")
    else:
        raw = header[:100].split(b"\0")[0]
        if header[257:263] == b"ustar\0" and (prefix := header[345:500].split(b"\0")[0]):
            raw = prefix + b"/" + raw
    try:
        return raw.decode(), "" if raw else "without a name"
    except UnicodeDecodeError:
        return raw.decode(errors="replace"), "named in bytes that are not UTF-8"
