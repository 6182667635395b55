"""pytest tests/test_tarscan.py — Python's tarfile is the oracle."""

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.tarscan import Member, scan

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=("Cs",)), min_size=1)


def pack(path: Path, members: list[tuple[str, bytes]], format: int) -> Path:
    with tarfile.open(path, "w", format=format, encoding="utf-8") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), unique=True, max_size=5),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    data=st.data(),
)
def test_finds_what_tarfile_wrote(tmp_path: Path, names: list[str], format: int, data: st.DataObject) -> None:
    contents = [(name, data.draw(st.binary(max_size=1200))) for name in names]
    try:
        path = pack(tmp_path / "x.tar", contents, format)
    except ValueError:  # ustar cannot hold every name
        return
    raw = path.read_bytes()
    found = list(scan(path))
    with tarfile.open(path, encoding="utf-8") as tar:
        assert [(m.name, m.offset, m.size) for m in found] == [(m.name, m.offset_data, m.size) for m in tar]
    assert [raw[m.offset : m.offset + m.size] for m in found] == [content for _, content in contents]
    assert all(m.problem == "" for m in found)


def test_real_archive_of_all_dialects(real_data: Path) -> None:
    path = real_data / "hard" / "tar" / "testtar.tar"
    ours = list(scan(path))
    with tarfile.open(path) as tar:
        theirs = list(tar)
    named = {oracle.name: oracle for oracle in theirs}
    assert len(ours) == len(theirs) == 39
    for member, oracle in zip(ours, theirs, strict=True):
        if member.problem:
            assert not oracle.isreg() or oracle.issparse() or not oracle.name.isprintable()
        else:
            data = named[oracle.linkname] if oracle.islnk() else oracle
            assert (member.name, member.offset, member.size) == (oracle.name, data.offset_data, data.size)
    why = {member.name: member.problem for member in ours if member.problem}
    assert why["gnu/sparse"] == why["gnu/sparse-0.0"] == "a sparse file"
    assert why["ustar/fifotype"] == "a pipe" and why["ustar/symtype"] == "a symbolic link"
    assert sum("not UTF-8" in problem for problem in why.values()) == 5


def test_hard_links_give_the_bytes_they_name(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
        for name, target in (("b.jpg", "a.jpg"), ("c.jpg", "nowhere")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.LNKTYPE, target
            tar.addfile(link)
    first, second, third = scan(tmp_path / "x.tar")
    assert second == Member("b.jpg", first.offset, 3)
    assert third.problem == "a hard link to 'nowhere', which is not before it"


@pytest.mark.parametrize(
    ("cut", "words"),
    [(0, "is empty"), (300, "is truncated: a header"), (700, "truncated in 'a.bin'"), (1536, "a header")],
)
def test_truncation_is_named(tmp_path: Path, cut: int, words: str) -> None:
    path = pack(tmp_path / "x.tar", [("a.bin", bytes(1000))], tarfile.USTAR_FORMAT)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=words):
        list(scan(path))


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    one = pack(tmp_path / "x.tar", [("a.bin", b"1")], tarfile.USTAR_FORMAT).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + one)
    with pytest.raises(ValueError, match="goes on after its end mark at byte 1024: two tars joined"):
        list(scan(tmp_path / "x.tar"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_tars_end(tmp_path: Path, data: st.DataObject) -> None:
    members = [("a" * 150 + ".jpg", b"x" * 600), ("ü.cls", b"1"), ("b.jpg", b"y")]
    format = data.draw(st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    content = bytearray(pack(tmp_path / "x.tar", members, format).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 5000))] = data.draw(st.integers(0, 255))
    for start in range(0, 5120, 512):  # a right checksum lets the mutation through to the parser
        if content[start + 257 : start + 262] == b"ustar":
            total = sum(content[start : start + 148]) + 256 + sum(content[start + 156 : start + 512])
            content[start + 148 : start + 156] = b"%06o\0 " % total
    (tmp_path / "x.tar").write_bytes(content)
    try:
        found = list(scan(tmp_path / "x.tar"))
    except ValueError as error:
        assert str(error).startswith("x.tar ")
    else:
        assert all(m.problem or 0 <= m.offset <= m.offset + m.size <= len(content) for m in found)
