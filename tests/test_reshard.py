"""pytest tests/test_reshard.py"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.__main__ import main
from shards.checking import check_set
from shards.reshard import parse_size, reshard
from shards.shardset import ShardSet

MakeSet = Callable[..., ShardSet]


@pytest.mark.parametrize(
    "options", [{}, {"channels": 1, "encoding": "raw"}, {"task": "multi-label", "channels": 1, "encoding": "png"}]
)
def test_only_the_cuts_move(make_set: MakeSet, tmp_path: Path, options: dict[str, object]) -> None:
    old = make_set(tmp_path / "old", **options)
    new = main(["reshard", str(old.path), str(tmp_path / "new"), "--shard-size", "60kB"]) or ShardSet(tmp_path / "new")
    assert isinstance(new, ShardSet) and check_set(tmp_path / "new") == []
    for name in old.split_names:
        before, after = old.split(name), new.split(name)
        assert all(info.bytes < 90_000 for info in after.shards)
        positions = np.arange(before.num_samples)
        ours, theirs = after.rows(positions), before.rows(positions)
        for column in set(ours._fields) - {"offsets", "shards"}:
            np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))
        assert [after.key(i) for i in positions] == [before.key(i) for i in positions]
        assert [bytes(after.read(i)) for i in positions] == [bytes(before.read(i)) for i in positions]
    assert new.manifest.conversion["resharded_from"] == old.manifest.digest


def test_there_and_back_gives_the_first_bytes(make_set: MakeSet, tmp_path: Path) -> None:
    old = make_set(tmp_path / "old", shard_size=10_000)
    reshard(old.path, tmp_path / "small", 50_000)
    reshard(tmp_path / "small", tmp_path / "back", 10**9)
    for path in old.path.iterdir():
        if path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "back" / path.name).read_bytes()


def test_damage_stops_it_and_leaves_nothing(make_set: MakeSet, tmp_path: Path) -> None:
    old = make_set(tmp_path / "old")
    path = old.path / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sample .* in train-000001\.tar is damaged"):
        reshard(old.path, tmp_path / "new", 10**6)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]


def test_an_existing_folder_is_not_touched(tiny_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists: give another folder"):
        reshard(tiny_set, tmp_path, 10**6)


@pytest.mark.parametrize(("text", "size"), [("512MB", 512 * 10**6), ("1.5 GiB", 3 << 29), ("20000", 20_000)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5 parsecs", "-1MB", "1e9", "100"])
def test_sizes_that_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not understood|too small"):
        parse_size(text)
