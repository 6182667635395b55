"""Files and folders appear whole or not at all. Run: pytest tests/test_aside.py"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.aside import aside, new_folder, write_aside


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_aside(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_aside(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_many_writers_of_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda i: write_aside(path, bytes([i]) * 100_000, shared=True), range(64)):
            data = path.read_bytes()
            assert len(data) == 100_000 and len(set(data)) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_two_hosts_may_write_one_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes and threads may have the same numbers."""
    monkeypatch.setattr("os.getpid", lambda: 7)
    path, real, begun = tmp_path / "manifest.json", os.fsync, []

    def fsync(descriptor: int) -> None:
        if not begun:
            begun.append(descriptor)
            write_aside(path, b"the same", shared=True)
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_aside(path, b"the same", shared=True)
    assert [found.name for found in tmp_path.iterdir()] == ["manifest.json"] and path.read_bytes() == b"the same"


def test_what_raises_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / ".file.partial").write_bytes(b"of a killed writer")
    with pytest.raises(KeyboardInterrupt), aside(path) as part:
        assert not part.exists()
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with aside(path, synced=False) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old" and part.name == ".file.partial"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_with_its_content_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with pytest.raises(KeyboardInterrupt), new_folder(path) as part:
        (part / "file").touch()
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ValueError, match="folder exists: take another"), new_folder(path, "take another"):
        path.mkdir()  # by somebody else, meanwhile
    assert list(path.parent.iterdir()) == [path] and not list(path.iterdir())
    path.rmdir()
    with new_folder(path) as part:
        (part / "file").touch()
        assert not path.exists()
    assert [each.name for each in path.iterdir()] == ["file"]
    with pytest.raises(ValueError, match="folder exists: give another folder"), new_folder(path):
        pytest.fail("it began to fill")


KILLED = """
import pathlib, sys, time
from shards.aside import new_folder
with new_folder(pathlib.Path(sys.argv[1])) as part:
    (part / "file").touch()
    print("filling", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_of_a_folder_goes_and_a_living_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout is not None and writer.stdout.readline() == b"filling\n"
            with pytest.raises(KeyboardInterrupt), new_folder(path):
                assert len(list(tmp_path.iterdir())) == 2
                raise KeyboardInterrupt
            assert [each.suffix for each in tmp_path.iterdir()] == [".partial"]
        finally:
            writer.kill()
    (tmp_path / ".other.00000000.partial").mkdir()
    with new_folder(path) as part:
        (part / "file").write_text("whole")
        assert {each.name for each in tmp_path.iterdir()} == {".other.00000000.partial", part.name}
    assert (path / "file").read_text() == "whole"
