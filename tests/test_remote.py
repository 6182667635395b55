"""Whole sets from a server: every byte right, each shard fetched once, within the limit. pytest tests/test_remote.py"""

import importlib
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zstandard
from faulty_server import Fault, FaultyServer, serve
from remote_sets import QUICK, bytes_of, used

from shards.__main__ import main
from shards.fetching import FetchError, Patience
from shards.shardset import CorruptSample, ShardSet
from shards.storage import is_url


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
