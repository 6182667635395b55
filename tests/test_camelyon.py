"""PatchCamelyon: HDF5 in, raw rows out."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest

from prep.convert import convert
from prep.dry_run import dry_run
from prep.images import PixelOptions
from prep.planning import ConvertOptions
from prep.sources import DATASETS
from shards.decoding import decode
from shards.shardset import ShardSet

OPTIONS = ConvertOptions(pixels=PixelOptions(3, None, "raw"), quiet=True)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    root.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("valid", 8), ("test", 8)):
        stem = f"camelyonpatch_level_2_split_{part}"
        with h5py.File(root / f"{stem}_x.h5", "w") as file:
            file["x"] = rng.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
        with h5py.File(root / f"{stem}_y.h5", "w") as file:
            file["y"] = (np.arange(count) % 2).astype(np.uint8).reshape(-1, 1, 1, 1)
        rows = [f"{i},0,0,False,True,camelyon_{part}_{i // 4}" for i in range(count)]
        head = ",coord_y,coord_x,tumor_patch,center_tumor_patch,wsi"
        (root / f"{stem}_meta.csv").write_text("\n".join([head, *rows]) + "\n")
    return root


@pytest.mark.parametrize("workers", [1, 2])
def test_every_patch_comes_back_bit_by_bit(raw: Path, tmp_path: Path, workers: int) -> None:
    options = ConvertOptions(pixels=OPTIONS.pixels, workers=workers, quiet=True)
    manifest, _ = convert(DATASETS["Camelyon"], raw, tmp_path / "set", options)
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 24, "val": 8, "test": 8}
    assert manifest.splits["train"].groups == 6 and set(manifest.grouping.intersections.values()) == {0}
    split = ShardSet(tmp_path / "set").split("val")
    stored = {decode(split.read(i), "raw", 3, 12, 12).tobytes(): int(split.labels(None)[i]) for i in range(8)}
    with h5py.File(raw / "camelyonpatch_level_2_split_valid_x.h5") as file:
        assert stored == {file["x"][i].tobytes(): i % 2 for i in range(8)}


def test_packed_missing_and_unfitting_files_are_told(raw: Path, tmp_path: Path) -> None:
    packed = raw / "camelyonpatch_level_2_split_test_x.h5"
    packed.rename(packed.with_suffix(".h5.gz"))
    with pytest.raises(ValueError, match=r"test_x\.h5\.gz is still packed: a conversion unpacks it"):
        list(DATASETS["Camelyon"].read(raw))
    (raw / "camelyonpatch_level_2_split_test_x.h5.gz").unlink()
    with pytest.raises(ValueError, match=r"lacks camelyonpatch_level_2_split_test_x\.h5"):
        list(DATASETS["Camelyon"].read(raw))
    meta = raw / "camelyonpatch_level_2_split_train_meta.csv"
    packed.write_bytes(b"no hdf5")
    with pytest.raises(ValueError, match="is no HDF5 file with a data set 'x'"):
        list(DATASETS["Camelyon"].read(raw))
    meta.write_text("\n".join(meta.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="has 23 rows for 24 patches"):
        list(DATASETS["Camelyon"].read(raw))


def test_packed_files_are_unpacked_once(raw: Path, tmp_path: Path) -> None:
    plain = raw / "camelyonpatch_level_2_split_test_x.h5"
    packed, data = plain.with_suffix(".h5.gz"), plain.read_bytes()
    packed.write_bytes(gzip.compress(data)[:-20])
    plain.unlink()
    with pytest.raises(ValueError, match=r"test_x\.h5\.gz is damaged or half-loaded: get it again"):
        convert(DATASETS["Camelyon"], raw, tmp_path / "set", OPTIONS)
    assert not plain.exists() and not list(raw.glob(".*"))
    packed.write_bytes(gzip.compress(data))
    with pytest.raises(ValueError, match="is still packed"):
        dry_run(DATASETS["Camelyon"], raw, tmp_path / "set", OPTIONS)
    assert not plain.exists()
    convert(DATASETS["Camelyon"], raw, tmp_path / "set", OPTIONS)
    assert plain.read_bytes() == data and packed.exists()
    before = plain.stat().st_mtime_ns
    convert(DATASETS["Camelyon"], raw, tmp_path / "other", OPTIONS)
    assert plain.stat().st_mtime_ns == before
