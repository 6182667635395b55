"""Shards fetched before they are read, by one process or several on one cache. pytest tests/test_fetch_ahead.py"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty_server import Fault, FaultyServer, serve
from remote_sets import QUICK, bytes_of, used

from shards.fetching import FetchError
from shards.plan import Plan, PlanConfig
from shards.shardset import ShardSet


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "it did not come in 20 s"
        time.sleep(0.01)


def test_fetch_ahead_brings_the_shards_before_they_are_read(
    remote: Callable[..., ShardSet], tmp_path: Path, server: FaultyServer
) -> None:
    train = remote().split("train")
    ahead = train.fetch_ahead(Plan(train.shard_sizes, PlanConfig(6, 0)))
    wait_for(lambda: len(list(tmp_path.glob("cache/*/train-*.tar"))) == 4)
    ahead.close()
    assert list((tmp_path / "cache" / "wants").iterdir()) == []
    count = len(server.requests)
    bytes_of(train)
    assert len(server.requests) == count
    assert all(len(server.asked(info.name)) == 1 for info in train.shards)


def test_fetch_ahead_within_the_limit_walks_epochs(
    server: FaultyServer, tmp_path: Path, make_set: Callable[..., ShardSet]
) -> None:
    local = make_set(tmp_path / "set", train=60, val=0, test=0, shard_size=5)
    expected, sizes = bytes_of(local.split("train")), [info.bytes for info in local.manifest.splits["train"].shards]
    plan = Plan([5] * 12, PlanConfig(4, 0, order="windowed", window=2, partitions=2))
    limit = sum(sorted(sizes)[-8:])
    with serve(tmp_path / "set") as server:
        train = ShardSet(server.url, cache=tmp_path / "cache", cache_limit=limit, patience=QUICK).split("train")
        ahead = train.fetch_ahead(plan)
        for consumed in range(0, 240, 4):
            for position in plan.slice(consumed, 1, 0).positions.tolist():
                assert bytes(train.read(position)) == expected[position]
            ahead.advance(consumed + 4)
            assert used(tmp_path) <= limit + 2000  # an index may come while room is made for it
        ahead.close()
        fetches = sum(request.name.endswith(".tar") for request in server.requests)
    assert fetches <= 12 * 4 * 1.5  # four epochs; hardly a shard came twice in one


def test_fetch_ahead_refuses_a_limit_below_a_window(remote: Callable[..., ShardSet], tiny_set: Path) -> None:
    sizes = [info.bytes for info in ShardSet(tiny_set).manifest.splits["train"].shards]
    train = remote(sum(sizes) - 1).split("train")
    plan = Plan(train.shard_sizes, PlanConfig(6, 0))
    with pytest.raises(
        ValueError, match=f"the cache limit is {sum(sizes) - 1} bytes, but the plan reads from {sum(sizes)}"
    ):
        train.fetch_ahead(plan)
    sequential = Plan(train.shard_sizes, PlanConfig(6, 0, order="sequential"))
    train.fetch_ahead(sequential).close()


def test_a_failure_ahead_is_told_to_the_reader(remote: Callable[..., ShardSet], server: FaultyServer) -> None:
    train = remote().split("train")
    server.faults["train-000001.tar"] = [Fault("status", 4, 403)]
    ahead = train.fetch_ahead(Plan(train.shard_sizes, PlanConfig(6, 0, order="sequential")))
    wait_for(lambda: bool(train.storage._failed))  # type: ignore[attr-defined]
    with pytest.raises(FetchError, match=r"train-000001\.tar: access is refused"):
        train.read(8)
    ahead.close()


def test_closing_does_not_wait_for_a_stalled_server(remote: Callable[..., ShardSet], server: FaultyServer) -> None:
    train = remote().split("train")
    server.faults["*"] = [Fault("stalled", 99)]
    ahead = train.fetch_ahead(Plan(train.shard_sizes, PlanConfig(6, 0)))
    time.sleep(0.1)
    start = time.monotonic()
    ahead.close()
    assert time.monotonic() - start < 10


READER = """
import sys
from shards.fetching import Patience
from shards.shardset import ShardSet
train = ShardSet(sys.argv[1], cache=sys.argv[2], patience=Patience(timeout_seconds=20)).split("train")
print("ready", flush=True)
print(sum(len(train.read(position)) for position in range(60)))
"""


def reader(server: FaultyServer, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", READER, server.url, folder / "cache"], stdout=subprocess.PIPE, text=True, env=os.environ
    )


def test_ranks_of_a_node_fetch_each_shard_once(server: FaultyServer, tmp_path: Path, tiny_set: Path) -> None:
    server.latency = 0.02
    with reader(server, tmp_path) as one, reader(server, tmp_path) as two:
        totals = [int(process.communicate(timeout=60)[0].split()[1]) for process in (one, two)]
    assert totals == [sum(map(len, bytes_of(ShardSet(tiny_set).split("train"))))] * 2
    assert all(len(server.asked(f"train-{number:06d}.tar")) == 1 for number in range(4))


def test_a_killed_fetcher_is_taken_over_where_it_was(
    remote: Callable[..., ShardSet], server: FaultyServer, tmp_path: Path, tiny_set: Path
) -> None:
    server.faults["train-000000.tar"] = [Fault("short", 1), Fault("stalled", 1)]
    with reader(server, tmp_path) as victim:
        wait_for(lambda: len(server.asked("train-000000.tar")) == 2)
        victim.send_signal(signal.SIGKILL)
    server.released.set()
    assert bytes_of(remote().split("train")) == bytes_of(ShardSet(tiny_set).split("train"))
    starts = [request.start for request in server.asked("train-000000.tar")]
    assert starts[0] == 0 and starts[1] == starts[2] > 0


RANK = """
import sys
from shards.plan import Plan, PlanConfig
from shards.shardset import ShardSet
url, cache, limit, rank, local = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
there, here = (ShardSet(place, cache=cache, cache_limit=limit).split("train") for place in (url, local))
plan = Plan(there.shard_sizes, PlanConfig(12, 0, order="windowed", window=2, partitions=4))
ahead = there.fetch_ahead(plan, world=2, rank=rank, node_ranks=(0, 1))
for consumed in range(0, 720, 12):
    for position in plan.slice(consumed, 2, rank).positions.tolist():
        assert bytes(there.read(position)) == bytes(here.read(position))
    ahead.advance(consumed + 12)
ahead.close()
"""


@pytest.mark.slow
def test_two_ranks_walk_three_epochs_through_faults_in_a_small_cache(
    tmp_path: Path, make_set: Callable[..., ShardSet]
) -> None:
    local = make_set(tmp_path / "set", train=240, val=0, test=0, shard_size=10)
    limit = sum(sorted(info.bytes for info in local.manifest.splits["train"].shards)[-14:])  # of 24
    with serve(tmp_path / "set", latency=0.01) as server:
        server.faults["*"] = [Fault("status", 3), Fault("reset", 2), Fault("half", 3), Fault("wrong", 1)]
        command = [sys.executable, "-c", RANK, server.url, tmp_path / "cache", str(limit)]
        ranks = [subprocess.Popen([*command, str(rank), local.path]) for rank in range(2)]
        peak = 0
        while any(rank.poll() is None for rank in ranks):
            peak = max(peak, used(tmp_path))
            time.sleep(0.005)
        assert [rank.returncode for rank in ranks] == [0, 0]
        assert peak <= limit + 2000  # an index may come while room is made for it
        assert sum(request.name.endswith(".tar") for request in server.requests) < 3 * 24 * 1.5
