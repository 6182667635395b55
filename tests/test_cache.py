"""Byte limit, eviction by the future, locks that end with their owner. pytest tests/test_cache.py"""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.cache import LATER, NOW, Cache, Held, Refusal, Wants, choose_victims, merge_futures

SET = "0123456789abcdef" * 2


def held(*names: str, size: int = 10) -> list[Held]:
    return [Held(name, size, used) for used, name in enumerate(names)]


def put(cache: Cache, name: str, size: int, place: int = NOW) -> bool:
    file = cache.begin(f"{SET}/{name}", size, place)
    if isinstance(file, Refusal):
        return False
    with file:
        file.write(b"x" * size)
        cache.finish(file, f"{SET}/{name}", size).close()
    return True


def names(cache: Cache) -> list[str]:
    return sorted(path.name for path in (cache.folder / SET).iterdir())


def test_unwanted_goes_first_then_what_is_read_last() -> None:
    future = {"b": 0, "c": 1, "d": 2}
    order = [file.key for file in choose_victims(held("d", "a", "c", "e", "b"), future, 50, NOW) or []]
    assert order == ["a", "e", "d", "c", "b"]


def test_what_is_read_sooner_stays() -> None:
    future = {"a": 0, "b": 1, "c": 2}
    assert [file.key for file in choose_victims(held("a", "b", "c"), future, 10, 1) or []] == ["c"]
    assert choose_victims(held("a", "b", "c"), future, 20, 1) is None
    assert choose_victims(held("a", "b", "c"), future, 10, 2) is None


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), max_size=12), st.integers(0, 200), st.integers(-1, 12)
)
def test_victims_are_enough_few_and_never_sooner(files: list[tuple[int, int]], room: int, place: int) -> None:
    everything = [Held(f"f{number}", size, number) for number, (size, _) in enumerate(files)]
    future = {f"f{number}": at for number, (_, at) in enumerate(files) if at <= 10}
    able = [file for file in everything if future.get(file.key, LATER) > place]
    victims = choose_victims(everything, future, room, place)
    if victims is None:
        assert sum(file.bytes for file in able) < room
        return
    freed = sum(file.bytes for file in victims)
    assert freed >= room and all(file in able for file in victims)
    assert not victims or freed - victims[-1].bytes < room
    kept = [future.get(file.key, LATER) for file in able if file not in victims]
    assert not kept or not victims or max(kept) <= min(future.get(file.key, LATER) for file in victims)


def test_futures_merge_by_the_soonest() -> None:
    assert merge_futures([["a", "b", "c"], ["c", "d"]]) == {"a": 0, "b": 1, "c": 0, "d": 1}


def test_limit_holds_and_the_longest_unused_goes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    for number, name in enumerate(("a.tar", "b.tar", "c.tar")):
        assert put(cache, name, 10)
        os.utime(tmp_path / SET / name, (number, number))
    mapped = cache.open(f"{SET}/a.tar", 10)  # so b is now the longest unused
    assert mapped is not None
    assert put(cache, "d.tar", 10)
    assert names(cache) == ["a.tar", "c.tar", "d.tar"]
    mapped.close()


def test_announced_files_stay_whoever_asks(tmp_path: Path) -> None:
    cache, other = Cache(tmp_path, 30), Cache(tmp_path, 30)
    for name in ("a.tar", "b.tar", "c.tar"):
        put(cache, name, 10)
    wants = Wants(cache)
    wants.publish([f"{SET}/{name}" for name in ("c.tar", "a.tar", "b.tar", "d.tar")])
    assert other.begin(f"{SET}/d.tar", 10, 3) is Refusal.FULL
    assert put(other, "d.tar", 10, place=1)  # b is read at 2
    assert names(cache) == ["a.tar", "c.tar", "d.tar"]
    wants.close()
    assert put(other, "e.tar", 30, place=5)
    assert names(cache) == ["e.tar"]


def test_one_fills_and_the_others_wait(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    file = cache.begin(f"{SET}/a.tar", 10, NOW)
    assert not isinstance(file, Refusal)
    assert cache.begin(f"{SET}/a.tar", 10, NOW) is Refusal.ELSEWHERE
    file.write(b"x" * 10)
    cache.finish(file, f"{SET}/a.tar", 10).close()
    assert cache.begin(f"{SET}/a.tar", 10, NOW) is Refusal.ELSEWHERE
    assert cache.open(f"{SET}/a.tar", 10)[:] == b"x" * 10
    assert cache.open(f"{SET}/b.tar", 10) is None


def test_bytes_under_way_count(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    file = cache.begin(f"{SET}/a.tar", 20, NOW)
    assert not isinstance(file, Refusal)
    assert cache.begin(f"{SET}/b.tar", 20, NOW) is Refusal.FULL  # nothing of the first has come, yet its room is taken
    file.write(b"x" * 5)
    file.close()
    assert put(cache, "b.tar", 28)  # an abandoned beginning gives way
    assert names(cache) == ["b.tar"]


def test_a_file_of_another_size_is_thrown_away(tmp_path: Path) -> None:
    cache = Cache(tmp_path, None)
    put(cache, "a.tar", 10)
    (tmp_path / SET / "a.tar").write_bytes(b"short")
    assert cache.open(f"{SET}/a.tar", 10) is None
    assert put(cache, "a.tar", 10)


def test_other_files_in_the_folder_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "video.tar").write_bytes(b"x" * 1000)
    cache = Cache(tmp_path, 30)
    assert put(cache, "a.tar", 30) and put(cache, "b.tar", 30)
    assert (tmp_path / "holiday" / "video.tar").stat().st_size == 1000


def test_the_count_survives_a_restart_and_another_process(tmp_path: Path) -> None:
    put(Cache(tmp_path, None), "a.tar", 25)
    cache = Cache(tmp_path, 30)
    assert put(cache, "b.tar", 10)
    assert names(cache) == ["b.tar"]


OWNER = """
import sys, time
from shards.cache import Cache, Wants
cache = Cache(sys.argv[1], 30)
wants = Wants(cache)
wants.publish([sys.argv[2] + "/a.tar"])
file = cache.begin(sys.argv[2] + "/b.tar", 10, 0)
file.write(b"half"); file.flush()
print("ready", flush=True)
time.sleep(60)
"""


def test_locks_and_wants_end_with_a_killed_owner(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    put(cache, "a.tar", 20)
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path, SET], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
        assert cache.begin(f"{SET}/b.tar", 10, NOW) is Refusal.ELSEWHERE
        assert cache.begin(f"{SET}/c.tar", 10, 5) is Refusal.FULL
        owner.send_signal(signal.SIGKILL)
    file = cache.begin(f"{SET}/b.tar", 10, NOW)
    assert not isinstance(file, Refusal) and file.read() == b"half"
    file.write(b"x" * 6)
    cache.finish(file, f"{SET}/b.tar", 10).close()
    assert put(cache, "c.tar", 20, place=5)  # what the dead wanted is forgotten
    assert list((tmp_path / "wants").iterdir()) == []


def test_a_stopped_holder_of_the_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 30)
    monkeypatch.setattr("shards.cache.LOCK_SECONDS", 0.05)
    with (tmp_path / "lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"the lock of .* is held for 0.05 s: is a process stopped"):
            put(cache, "a.tar", 10)


def test_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cache limit 0: give bytes"):
        Cache(tmp_path, 0)
