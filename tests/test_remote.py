"""Whole sets from a server: every byte right, each shard fetched once, within the limit. pytest tests/test_remote.py"""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from faulty_server import Fault, FaultyServer, serve

from shards.__main__ import main
from shards.fetching import FetchError, Patience
from shards.plan import Plan, PlanConfig
from shards.shardset import CorruptSample, ShardSet, Split
from shards.storage import is_url

QUICK = Patience(attempts=3, timeout_seconds=0.5, wait_seconds=0.02)


@pytest.fixture
def server(tiny_set: Path):
    with serve(tiny_set) as server:
        yield server


@pytest.fixture
def remote(server: FaultyServer, tmp_path: Path) -> Callable[..., ShardSet]:
    def open_set(limit: int | None = None, **options) -> ShardSet:
        options.setdefault("patience", QUICK)
        return ShardSet(server.url, cache=tmp_path / "cache", cache_limit=limit, **options)

    return open_set


def bytes_of(split: Split) -> list[bytes]:
    return [bytes(split.read(position)) for position in range(len(split))]


def used(folder: Path) -> int:
    sizes = []
    for path in folder.glob("cache/*/*"):
        try:
            sizes.append(path.stat().st_size if path.suffix in (".tar", ".cols", ".partial") else 0)
        except FileNotFoundError:  # evicted meanwhile
            pass
    return sum(sizes)


def largest(shard_set: ShardSet) -> int:
    return max(info.bytes for split in shard_set.manifest.splits.values() for info in split.shards)


def test_a_remote_set_is_the_local_set(remote: Callable[..., ShardSet], tiny_set: Path, server: FaultyServer) -> None:
    local, there = ShardSet(tiny_set), remote()
    assert there.digest == local.digest
    for name in local.split_names:
        ours, theirs = there.split(name), local.split(name)
        assert bytes_of(ours) == bytes_of(theirs)
        np.testing.assert_array_equal(ours.labels(), theirs.labels())
        np.testing.assert_array_equal(ours.sample_ids(), theirs.sample_ids())
    assert set(Counter(request.name for request in server.requests).values()) == {1}
    again = remote()
    assert bytes_of(again.split("train")) == bytes_of(local.split("train"))
    assert Counter(request.name for request in server.requests)["manifest.json"] == 2
    assert len(server.asked("train-000000.tar")) == 1  # what is in the cache stays there


def test_limit_holds_while_reading(remote: Callable[..., ShardSet], tiny_set: Path, tmp_path: Path) -> None:
    limit = largest(ShardSet(tiny_set)) + 10_000
    there, expected = remote(limit).split("train"), bytes_of(ShardSet(tiny_set).split("train"))
    for position in np.random.default_rng(0).permutation(60):
        assert bytes(there.read(int(position))) == expected[position]
        assert used(tmp_path) <= limit


def test_a_cached_shard_that_rots_is_fetched_again_once(
    remote: Callable[..., ShardSet], tiny_set: Path, tmp_path: Path, server: FaultyServer
) -> None:
    """A bit flips on this machine's disk; the second time it is told, and the loader masks the sample."""
    there, expected = remote().split("train"), bytes_of(ShardSet(tiny_set).split("train"))
    assert bytes_of(there) == expected
    rows = there.rows(np.array([9]))
    name = there.shards[int(rows.shards[0])].name

    def rot() -> None:
        (path,) = tmp_path.glob(f"cache/*/{name}")
        with path.open("r+b") as file:
            file.seek(int(rows.offsets[0]) + 5)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 4]))

    rot()
    assert bytes(there.read(9)) == expected[9] and len(server.asked(name)) == 2
    rot()
    with pytest.raises(CorruptSample, match="is damaged"):
        there.read(9)
    assert len(server.asked(name)) == 2
    assert bytes(there.read(10)) == expected[10]


def test_a_view_outlives_its_eviction(remote: Callable[..., ShardSet], tiny_set: Path) -> None:
    there = remote(largest(ShardSet(tiny_set)) + 10_000).split("train")
    views = [there.read(position) for position in range(60)]
    assert [bytes(view) for view in views] == bytes_of(ShardSet(tiny_set).split("train"))


def test_limit_below_the_largest_shard_is_refused(remote: Callable[..., ShardSet], tiny_set: Path) -> None:
    size = largest(ShardSet(tiny_set))
    with pytest.raises(ValueError, match=rf"the cache limit is {size - 1} bytes, but train-.*tar alone has {size}"):
        remote(size - 1)


def test_info_of_a_url_needs_no_cache(server: FaultyServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", server.url]) == 0
    assert "60" in capsys.readouterr().out and [request.name for request in server.requests] == ["manifest.json"]


def test_a_url_needs_a_cache(server: FaultyServer) -> None:
    with pytest.raises(ValueError, match=rf"the shards are at {server.url}: give a folder"):
        ShardSet(server.url)


def test_what_is_a_url() -> None:
    assert all(map(is_url, ("https://h/x", "s3://b/x", "file:///x", "simplecache::s3://b/x")))
    assert not any(map(is_url, ("data/x", "/data/x", "C:/x", "a:b", Path("https://h"))))


def test_a_file_url_is_a_local_set(tiny_set: Path) -> None:
    assert ShardSet(f"file://{tiny_set}").path == tiny_set


def test_views_and_split_files_work_from_afar(
    remote: Callable[..., ShardSet], tiny_set: Path, tmp_path: Path, server: FaultyServer
) -> None:
    train = ShardSet(tiny_set).split("train")
    rows = [f"{train.key(position)},{'val' if position % 2 else 'train'}" for position in range(60)]
    (tmp_path / "split.csv").write_text("\n".join(["key,split", *rows]) + "\n")
    part = remote(split_file=tmp_path / "split.csv").split("val")
    assert bytes_of(part) == bytes_of(train)[1::2]


def test_broken_shard_is_named_and_a_later_reader_tries_again(
    remote: Callable[..., ShardSet], server: FaultyServer
) -> None:
    val = remote().split("val")
    server.faults["val-000000.tar"] = [Fault("wrong", 2)]
    with pytest.raises(FetchError, match=r"val-000000\.tar: sha256 .* came 2 times, the manifest expects"):
        val.read(0)
    assert len(val.read(0)) > 100


def test_no_manifest_and_garbage_for_one(remote: Callable[..., ShardSet], server: FaultyServer) -> None:
    server.faults["manifest.json"] = [Fault("wrong", 1)]
    assert remote().num_classes == 3
    server.faults["manifest.json"] = [Fault("wrong", 2)]
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON"):
        remote()
    server.faults["manifest.json"] = [Fault("status", 1, 404)]
    with pytest.raises(FetchError, match=r"manifest\.json: there is no such file"):
        remote()


def test_packed_set(tiny_set: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_set, tmp_path / "packed")
    for tar in (tmp_path / "packed").glob("*.tar"):
        tar.with_name(f"{tar.name}.zst").write_bytes(zstandard.compress(tar.read_bytes()))
        tar.unlink()
    with serve(tmp_path / "packed") as server:
        there = ShardSet(server.url, cache=tmp_path / "cache", patience=QUICK)
        assert bytes_of(there.split("train")) == bytes_of(ShardSet(tiny_set).split("train"))


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


def test_s3(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = importlib.import_module("moto.server")
    store = moto.ThreadedMotoServer(port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing-key",
        "AWS_SECRET_ACCESS_KEY": "testing-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # one of another test would ask a server that is gone
    client = boto3.client("s3")
    try:
        client.create_bucket(Bucket="sets")
        for path in tiny_set.iterdir():
            client.upload_file(str(path), "sets", f"deep/tiny/{path.name}")
        patience = Patience(attempts=2, timeout_seconds=10, wait_seconds=0.02)
        there = ShardSet("s3://sets/deep/tiny", cache=tmp_path / "cache", patience=patience)
        assert bytes_of(there.split("train")) == bytes_of(ShardSet(tiny_set).split("train"))
        with pytest.raises(FetchError, match=r"s3://sets/none/manifest\.json: there is no such file"):
            ShardSet("s3://sets/none", cache=tmp_path / "cache", patience=patience)
    finally:
        client.close()
        store.stop()


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
