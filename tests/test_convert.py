"""Conversion: the same bytes whatever happens, nothing half-written, and every refusal in one line."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conversions import DDSM, OPTIONS, make
from PIL import Image

import prep.convert
import prep.tasks
from prep.convert import convert
from prep.images import PixelOptions, encode
from prep.phantoms import draw_phantoms
from prep.planning import ConvertOptions, shard_samples
from prep.sources import DATASETS
from shards.checking import check_set
from shards.decoding import decode
from shards.shardset import ShardSet


def test_a_set_is_whole_and_explains_itself(raw_ddsm: Path, tmp_path: Path) -> None:
    manifest = make(raw_ddsm, tmp_path / "set")
    assert not [problem for problem in check_set(tmp_path / "set") if problem.fatal]
    assert manifest.phantom and manifest.classes == ["normal", "benign or cancer"]
    assert set(manifest.views) == {"2class", "cancer-vs-rest", "3class"}
    assert manifest.grouping.intersections == {"train-val": 0, "train-test": 0, "val-test": 0}
    assert sum(split.samples for split in manifest.splits.values()) == 60
    shards = ShardSet(tmp_path / "set", view="3class")
    with (tmp_path / "set.private" / "sources.csv").open() as file:
        sources = {row["key"]: row for row in csv.DictReader(file)}
    for name in manifest.splits:
        split = shards.split(name)
        for position, label in enumerate(split.labels(None)):
            row = sources[split.key(position)]
            assert row["source"].startswith(shards.classes[label])
            assert row["split"] == name


def test_mean_and_std_are_those_of_the_stored_training_pixels(raw_ddsm: Path, tmp_path: Path) -> None:
    manifest = make(raw_ddsm, tmp_path / "set")
    train = ShardSet(tmp_path / "set").split("train")
    rows = train.rows(np.arange(train.num_samples))
    values = np.concatenate(
        [
            decode(train.read(i), "jpeg", 1, int(rows.heights[i]), int(rows.widths[i])).ravel() / 255
            for i in range(train.num_samples)
        ]
    )
    assert manifest.mean[0] == pytest.approx(values.mean(), abs=1e-8)
    assert manifest.std[0] == pytest.approx(values.std(), abs=1e-8)


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1), (np.uint16, 3)])
def test_sums_are_exact(dtype: type, channels: int) -> None:
    """Against Python's own integers, at the extremes and at sizes where a float32 would have rounded long ago."""
    rng, top = np.random.default_rng(0), np.iinfo(dtype).max
    for height, width in ((1, 1), (7, 13), (1200, 2500)):
        for stored in (
            rng.integers(0, top + 1, (height, width, channels), dtype=dtype),
            np.full((height, width, channels), top, dtype),
        ):
            counts = [np.unique(stored[..., channel], return_counts=True) for channel in range(channels)]
            wanted = [
                [sum(int(v) ** power * int(n) for v, n in zip(*each, strict=True)) for each in counts]
                for power in (1, 2)
            ]
            assert list(prep.tasks.exact_sums(stored)) == wanted


@pytest.mark.parametrize("options", [{}, {"chroma": "4:4:4"}, {"channels": 1}, {"quality": 50}, {"format": "png"}])
def test_what_is_read_back_is_what_pillow_reads(options: dict[str, Any]) -> None:
    given = PixelOptions(**{"channels": 3} | options)
    pixels = np.random.default_rng(1).integers(0, 256, (61, 47, given.channels), dtype=np.uint8)
    encoded = encode(pixels if given.channels == 3 else pixels[:, :, 0], given)
    with Image.open(io.BytesIO(encoded)) as image:
        wanted = np.asarray(image).reshape(61, 47, given.channels)
    np.testing.assert_array_equal(prep.tasks.read_back(encoded, given, 61, 47), wanted)
    with pytest.raises(ValueError, match=r"60"):
        prep.tasks.read_back(encoded, given, 60, 47)


def test_stored_order_is_shuffled_by_the_seed(raw_ddsm: Path, tmp_path: Path) -> None:
    make(raw_ddsm, tmp_path / "a")
    make(raw_ddsm, tmp_path / "b", replace(OPTIONS, seed=1))
    orders = []
    for name in "ab":
        with (tmp_path / f"{name}.private" / "sources.csv").open() as file:
            orders.append([row["source"] for row in csv.DictReader(file) if row["split"] == "train"])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != (raw_ddsm / "ddsm_raw_image_lists" / "train.txt").read_text().split()


def test_a_folder_that_cannot_be_made_is_one_line(raw_ddsm: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder /proc/x\.private cannot be made \(.*\): choose an --out"):
        make(raw_ddsm, Path("/proc/x"))


def test_a_blank_image_that_stands_hundreds_of_times_is_one_warning(tmp_path: Path) -> None:
    """As in PatchCamelyon, where the warning of all keys once broke the manifest at the end of a conversion."""
    draw_phantoms("Camelyon", tmp_path / "raw", 20, quiet=True)
    for part in ("train", "valid"):
        with h5py.File(tmp_path / "raw" / f"camelyonpatch_level_2_split_{part}_x.h5", "r+") as file:
            count = len(file["x"])
            del file["x"]
            file["x"] = np.full((400, 8, 8, 3), 255, np.uint8)
        with h5py.File(tmp_path / "raw" / f"camelyonpatch_level_2_split_{part}_y.h5", "r+") as file:
            del file["y"]
            file["y"] = np.zeros((400, 1, 1, 1), np.uint8)
        table = tmp_path / "raw" / f"camelyonpatch_level_2_split_{part}_meta.csv"
        table.write_text("wsi\n" + f"{part}-slide\n" * 400)
        assert count
    options = ConvertOptions(pixels=PixelOptions(3, None, "raw"), quiet=True)
    manifest = convert(DATASETS["Camelyon"], tmp_path / "raw", tmp_path / "set", options)[0]
    (told,) = [warning for warning in manifest.warnings if "pixel by pixel" in warning]
    assert told.startswith("1 image stands pixel by pixel in more than one split (train-val") and told.count("=") == 1


def test_a_label_outside_the_classes_leaves_nothing_behind(tmp_path: Path) -> None:
    draw_phantoms("APTOS2019", tmp_path / "raw", 10, size=64, quiet=True)
    table = tmp_path / "raw" / "train.csv"
    table.write_text(table.read_text() + "zz,7\n")
    with pytest.raises(
        ValueError, match=r"label 7 in train\.csv row 12 is outside the classes of APTOS2019 \(0\.\.4\)"
    ):
        convert(DATASETS["APTOS2019"], tmp_path / "raw", tmp_path / "set", replace(OPTIONS, pixels=PixelOptions(3, 48)))
    assert not (tmp_path / "set").exists() and not (tmp_path / "set.private").exists()


def test_no_rows_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "raw" / "train_images").mkdir(parents=True)
    (tmp_path / "raw" / "train.csv").write_text("id_code,diagnosis\n")
    with pytest.raises(ValueError, match="lists no image at all"):
        convert(DATASETS["APTOS2019"], tmp_path / "raw", tmp_path / "set", OPTIONS)


def test_files_of_others_are_never_touched(raw_ddsm: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds files that are not a shard set's \(1 of them"):
        make(raw_ddsm, tmp_path / "set")
    with pytest.raises(ValueError, match=r"thesis\.tex is a file: choose another --out"):
        make(raw_ddsm, tmp_path / "set" / "thesis.tex")
    assert not list(tmp_path.rglob("*.private"))


def test_equal_images_in_two_splits_are_reported(own_raw_ddsm: Path, tmp_path: Path) -> None:
    lists = own_raw_ddsm / "ddsm_raw_image_lists"
    names = [(lists / f"{split}.txt").read_text().split()[0] for split in ("train", "test")]
    shutil.copy(own_raw_ddsm / "ddsm_raw" / names[0], own_raw_ddsm / "ddsm_raw" / names[1])
    manifest = make(own_raw_ddsm, tmp_path / "set")
    assert any("1 image stands pixel by pixel in more than one split (train-test 1)" in w for w in manifest.warnings)


def test_salts(raw_ddsm: Path, tmp_path: Path) -> None:
    one = convert(DDSM, raw_ddsm, tmp_path / "one", OPTIONS)[0]
    two = convert(DDSM, raw_ddsm, tmp_path / "two", OPTIONS, tmp_path / "one.private" / "salt")[0]
    other = convert(DDSM, raw_ddsm, tmp_path / "other", OPTIONS)[0]
    assert one.grouping.salt_digest == two.grouping.salt_digest != other.grouping.salt_digest
    assert one.set_id == two.set_id != other.set_id
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(ValueError, match="has 1 bytes, 32 are wanted"):
        convert(DDSM, raw_ddsm, tmp_path / "bad", OPTIONS, tmp_path / "short")


def test_shard_sizes() -> None:
    assert [shard_samples(n, None) for n in (10, 300, 1_000_000)] == [16, 19, 4096]
    assert shard_samples(10, 3) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "magic"}, "known: auto, official, random, study"),
        ({"max_bad": 2.0}, "--max-bad 2 is no share from 0 to 1"),
        ({"workers": 0}, "--workers 0 is too low: --workers is at least 1"),
        ({"shard_samples": 0}, "outside 1"),
        ({"shares": (0.7, 0.7, 0.1)}, "--shares 0.7 0.7 0.1: three shares above 0 that sum to 1"),
        ({"shares": (float("nan"),) * 3}, "three shares above 0 that sum to 1"),
    ],
)
def test_wrong_options(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvertOptions(**change)  # type: ignore[arg-type]


def test_idrid_real_files(real_data: Path, tmp_path: Path) -> None:
    options = ConvertOptions(pixels=PixelOptions(3, 64), quiet=True)
    manifest, _ = convert(DATASETS["IDRiD"], real_data / "idrid-256", tmp_path / "set", options)
    assert {name: split.samples for name, split in manifest.splits.items()} == {"train": 340, "val": 73, "test": 103}
    assert manifest.splits["test"].class_counts["no DR"] == 34
    assert not manifest.left_out and not manifest.phantom
    assert not [problem for problem in check_set(tmp_path / "set") if problem.fatal]


def test_a_split_file_by_source_repeats_another_conversions_split(raw_ddsm: Path, tmp_path: Path) -> None:
    def parts(out: Path) -> dict[str, str]:
        with (out.with_name(f"{out.name}.private") / "sources.csv").open() as file:
            return {row["source"]: row["split"] for row in csv.DictReader(file)}

    make(raw_ddsm, tmp_path / "first", replace(OPTIONS, split="random", seed=3))
    table = tmp_path / "first.private" / "sources.csv"
    make(raw_ddsm, tmp_path / "second", replace(OPTIONS, split_file=table, seed=9))
    assert parts(tmp_path / "second") == parts(tmp_path / "first") != parts_of_lists(raw_ddsm)
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line.replace("train", "Training") for line in lines[:-1]))
    manifest = make(raw_ddsm, tmp_path / "third", replace(OPTIONS, split_file=table))
    assert "1 image not in the split file" in manifest.warnings
    assert manifest.grouping.how == "a split file by source"
    table.write_text("\n".join([*lines, lines[1].replace("train", "test"), lines[1].replace("test", "train")]))
    with pytest.raises(ValueError, match=r"the source in sources\.csv row 6[23] already stands in another split"):
        make(raw_ddsm, tmp_path / "fourth", replace(OPTIONS, split_file=table))
    table.write_text("source,split\nDOE_JANE.png,train\n")
    with pytest.raises(ValueError, match=r"the source in sources\.csv row 2 is none of this dataset") as error:
        make(raw_ddsm, tmp_path / "fourth", replace(OPTIONS, split_file=table))
    assert "DOE" not in str(error.value)


def parts_of_lists(raw: Path) -> dict[str, str]:
    lists = raw / "ddsm_raw_image_lists"
    return {line: path.stem for path in lists.iterdir() for line in path.read_text().splitlines()}
