"""Sets packed for transport are the plain sets. pytest tests/test_packing.py"""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conversions import DDSM, OPTIONS, digests, make
from faulty_server import serve

from prep.convert import convert
from prep.phantoms import SALT_NAME
from shards.__main__ import main
from shards.checking import check_set
from shards.manifest import Manifest
from shards.reshard import reshard
from shards.shardset import ShardSet
from shards.sheet import main as draw_sheet

PACKED = replace(OPTIONS, compress="zstd", workers=2)
CASES: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda data: data[:-20], "altered: sha256"),
    (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "altered: sha256"),
    (lambda data: b"", "altered: sha256"),
]


def split_bytes(shards: ShardSet, name: str) -> list[bytes]:
    split = shards.split(name)
    return [bytes(split.read(position)) for position in range(split.num_samples)]


def test_a_packed_set_is_the_plain_set(raw_ddsm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, packed = make(raw_ddsm, tmp_path / "plain"), make(raw_ddsm, tmp_path / "packed", PACKED)
    assert packed.digest == plain.digest and packed != plain
    names = sorted(path.name for path in (tmp_path / "packed").iterdir())
    assert not any(name.endswith((".tar", ".partial")) for name in names) and "train-000000.tar.zst" in names
    assert check_set(tmp_path / "packed") == []
    with pytest.raises(ValueError, match=r"packed for transport: give a folder .*--cache DIR.*zstd -d"):
        ShardSet(tmp_path / "packed")
    local, cached = ShardSet(tmp_path / "plain"), ShardSet(tmp_path / "packed", cache=tmp_path / "cache")
    for name in local.split_names:
        assert split_bytes(cached, name) == split_bytes(local, name)
    with serve(tmp_path / "packed") as server:
        far = ShardSet(server.url, cache=tmp_path / "other")
        assert far.digest == local.digest and split_bytes(far, "train") == split_bytes(local, "train")
    assert main(["info", str(tmp_path / "packed")]) == 0
    assert "shards as .tar.zst" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"\.tar is packed for transport: unpack it first, zstd -d"):
        reshard(tmp_path / "packed", tmp_path / "again", 10**6)


def test_it_is_known_again_and_made_again_the_same(raw_ddsm: Path, tmp_path: Path) -> None:
    make(raw_ddsm, tmp_path / "set", PACKED)
    assert convert(DDSM, raw_ddsm, tmp_path / "set", PACKED, raw_ddsm / SALT_NAME)[1] is False
    with pytest.raises(ValueError, match="already holds this set with other --compress"):
        make(raw_ddsm, tmp_path / "set")
    make(raw_ddsm, tmp_path / "again", replace(PACKED, workers=1))
    assert digests(tmp_path / "set") == digests(tmp_path / "again")


def test_the_tool_of_everybody_unpacks_it(raw_ddsm: Path, tmp_path: Path) -> None:
    make(raw_ddsm, tmp_path / "plain")
    make(raw_ddsm, tmp_path / "packed", PACKED)
    import zstandard

    for path in sorted((tmp_path / "packed").glob("*.zst")):
        data = zstandard.ZstdDecompressor().decompress(path.read_bytes())
        assert data == (tmp_path / "plain" / path.stem).read_bytes()
        path.with_suffix("").write_bytes(data)
        path.unlink()
    assert check_set(tmp_path / "packed") == []
    assert split_bytes(ShardSet(tmp_path / "packed"), "val") == split_bytes(ShardSet(tmp_path / "plain"), "val")
    listed = subprocess.run(
        ["tar", "-tf", tmp_path / "packed" / "train-000000.tar"], capture_output=True, text=True, check=True
    )
    assert listed.stdout.count(".jpg") == 8


@pytest.mark.parametrize(("harm", "words"), CASES)
def test_harm_to_a_packed_shard_is_named(
    raw_ddsm: Path, tmp_path: Path, harm: Callable[[bytes], bytes], words: str
) -> None:
    make(raw_ddsm, tmp_path / "set", PACKED)
    path = tmp_path / "set" / "train-000001.tar.zst"
    path.write_bytes(harm(path.read_bytes()))
    assert words in str(check_set(tmp_path / "set")[0]) and "train-000001.tar.zst" in str(
        check_set(tmp_path / "set")[0]
    )
    with pytest.raises(ValueError, match=r"train-000001\.tar"):
        split_bytes(ShardSet(tmp_path / "set", cache=tmp_path / "cache"), "train")
    path.unlink()
    assert "is missing" in str(check_set(tmp_path / "set")[0])


def test_a_bomb_is_cut_off(raw_ddsm: Path, tmp_path: Path) -> None:
    import hashlib

    import zstandard

    manifest = make(raw_ddsm, tmp_path / "set", PACKED)
    path = tmp_path / "set" / "val-000000.tar.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 26)))
    document = manifest.model_dump()
    shard = document["splits"]["val"]["shards"][0]
    shard["packed_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    Manifest.model_validate(document).write(tmp_path / "set")
    assert "unpacks to other than the" in str(check_set(tmp_path / "set")[0])
    with pytest.raises(ValueError, match="sha256"):
        split_bytes(ShardSet(tmp_path / "set", cache=tmp_path / "cache"), "val")


def test_a_packed_set_is_drawn_as_the_plain_one(raw_ddsm: Path, tmp_path: Path) -> None:
    make(raw_ddsm, tmp_path / "plain"), make(raw_ddsm, tmp_path / "packed", PACKED)
    with pytest.raises(ValueError, match=r"packed for transport: give a folder .*--cache DIR"):
        draw_sheet([str(tmp_path / "packed"), "--out", str(tmp_path / "no.png")])
    assert not (tmp_path / "no.png").exists()
    draw_sheet([str(tmp_path / "plain"), "--out", str(tmp_path / "plain.png")])
    draw_sheet([str(tmp_path / "packed"), "--out", str(tmp_path / "packed.png"), "--cache", str(tmp_path / "cache")])
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "packed.png").read_bytes()
