"""Conversion: the same bytes whatever happens, nothing half-written, and every refusal in one line."""

import csv
import fcntl
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import prep.convert
import prep.tasks
from prep.convert import convert
from prep.finishing import describe
from prep.images import PixelOptions, Prepared, encode
from prep.phantoms import SALT_NAME, draw_phantoms
from prep.planning import ConvertOptions, shard_samples
from prep.private import PrivateFolder
from prep.sources import DATASETS
from prep.tasks import keep
from shards.checking import check_set
from shards.decoding import decode
from shards.manifest import Manifest
from shards.metadata import Metadata
from shards.shardset import ShardSet

DDSM = DATASETS["DDSM"]
OPTIONS = ConvertOptions(pixels=PixelOptions(1, 48), shard_samples=8, quiet=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "DDSM"
    draw_phantoms("DDSM", folder, 60, size=64, quiet=True)
    return folder


@pytest.fixture
def own_raw(raw: Path, tmp_path: Path) -> Path:
    shutil.copytree(raw, tmp_path / "raw")
    return tmp_path / "raw"


def make(raw: Path, out: Path, options: ConvertOptions = OPTIONS) -> Manifest:
    return convert(DDSM, raw, out, options, raw / SALT_NAME)[0]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def images(raw: Path) -> list[Path]:
    return sorted((raw / "ddsm_raw").iterdir())


def test_a_set_is_whole_and_explains_itself(raw: Path, tmp_path: Path) -> None:
    manifest = make(raw, tmp_path / "set")
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


def test_mean_and_std_are_those_of_the_stored_training_pixels(raw: Path, tmp_path: Path) -> None:
    manifest = make(raw, tmp_path / "set")
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


def test_stored_order_is_shuffled_by_the_seed(raw: Path, tmp_path: Path) -> None:
    make(raw, tmp_path / "a")
    make(raw, tmp_path / "b", replace(OPTIONS, seed=1))
    orders = []
    for name in "ab":
        with (tmp_path / f"{name}.private" / "sources.csv").open() as file:
            orders.append([row["source"] for row in csv.DictReader(file) if row["split"] == "train"])
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != (raw / "ddsm_raw_image_lists" / "train.txt").read_text().split()


def test_any_number_of_workers_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    make(raw, tmp_path / "a")
    make(raw, tmp_path / "b", replace(OPTIONS, workers=2))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert (tmp_path / "a.private" / "sources.csv").read_bytes() == (
        tmp_path / "b.private" / "sources.csv"
    ).read_bytes()


def test_an_interrupted_run_goes_on_and_keeps_what_is_whole(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(raw, tmp_path / "a")
    real, calls = prep.tasks.prepare, []

    def failing(data: bytes, options: PixelOptions, known: Metadata) -> Prepared:
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return real(data, options, known)

    monkeypatch.setattr(prep.tasks, "prepare", failing)
    with pytest.raises(KeyboardInterrupt):
        make(raw, tmp_path / "b")
    left = {path.name for path in (tmp_path / "b").iterdir()}
    assert "manifest.json" not in left and not any("partial" in name for name in left)
    assert {"train-000000.tar", "train-000001.tar", "train-000002.tar"} <= left
    damaged = tmp_path / "b" / "train-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-600] + bytes(600)[::-1][:1] * 88)
    calls.clear()
    monkeypatch.setattr(prep.tasks, "prepare", lambda *given: (calls.append(1), real(*given))[1])
    make(raw, tmp_path / "b")
    assert len(calls) == 60 - 2 * 8  # two whole shards kept, the damaged one made again
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    make(raw, tmp_path / "a")
    command = [
        sys.executable,
        "prep/make_shards.py",
        "--dataset",
        "DDSM",
        "--raw",
        str(raw),
        "--out",
        str(tmp_path / "b"),
    ]
    command += ["--salt", str(raw / SALT_NAME), "--short-side", "48", "--shard-samples", "8", "--workers", "2"]
    rng = np.random.default_rng(0)
    root = Path(__file__).parents[1]
    for _ in range(6):
        process = subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=root, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("script", ["phantoms", "make_shards"])
def test_ctrl_c_is_two_words_even_while_workers_start(raw: Path, tmp_path: Path, script: str) -> None:
    command = [sys.executable, *f"prep/{script}.py --dataset DDSM --workers 2 --out".split(), str(tmp_path / "out")]
    command += ["--raw", str(raw)] if script == "make_shards" else ["--num-images", "3000"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True, process_group=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.read(20)  # the bar is there: the workers are on their way
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "stopped; run the same command to go on" in said
    assert "Traceback" not in said and "KeyboardInterrupt" not in said


def test_a_second_run_says_done_and_another_set_is_refused(raw: Path, tmp_path: Path) -> None:
    first = make(raw, tmp_path / "set")
    assert convert(DDSM, raw, tmp_path / "set", OPTIONS) == (first, False)
    with pytest.raises(ValueError, match="already holds another finished set"):
        make(raw, tmp_path / "set", replace(OPTIONS, seed=5))
    (tmp_path / "set" / "train-000000.tar").unlink()
    with pytest.raises(ValueError, match=r"run prep/check_shards\.py"):
        make(raw, tmp_path / "set")


def test_an_unfinished_set_with_other_options_is_replaced(raw: Path, tmp_path: Path) -> None:
    make(raw, tmp_path / "b", replace(OPTIONS, shard_samples=2))
    (tmp_path / "b" / "manifest.json").unlink()
    make(raw, tmp_path / "a")
    make(raw, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_two_runs_on_one_folder_and_a_lock_of_the_dead(raw: Path, tmp_path: Path) -> None:
    with (
        PrivateFolder(tmp_path / "set").locked(),
        pytest.raises(ValueError, match=rf"another run \(process {os.getpid()}\) is writing"),
    ):
        make(raw, tmp_path / "set")
    (tmp_path / "set.private" / "lock").write_text("999999\n")
    assert make(raw, tmp_path / "set").name == "DDSM"


def test_a_run_that_is_refused_leaves_the_first_ones_lock_and_salt(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both begin at once, when there is no folder yet."""
    first, locked = PrivateFolder(tmp_path / "set"), PrivateFolder.locked

    @contextmanager
    def late(self: PrivateFolder) -> Iterator[None]:
        with locked(first):
            first.salt(raw / SALT_NAME)
            with locked(self):
                yield

    monkeypatch.setattr(PrivateFolder, "locked", late)
    with pytest.raises(ValueError, match="another run"):
        make(raw, tmp_path / "set")
    assert {path.name for path in first.path.iterdir()} == {"lock", "salt"}


def test_a_lock_that_was_removed_before_it_was_taken_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real, taken = PrivateFolder(tmp_path / "set"), fcntl.flock, []

    def flock(file: Any, how: int) -> None:
        if not taken:
            shutil.rmtree(folder.path)  # by the run before, as it ends
        taken.append(file)
        real(file, how)

    monkeypatch.setattr("fcntl.flock", flock)
    with folder.locked():
        with pytest.raises(ValueError, match="another run"), PrivateFolder(tmp_path / "set").locked():
            pass
        assert (folder.path / "lock").is_file()


def test_a_folder_that_cannot_be_made_is_one_line(raw: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder /proc/x\.private cannot be made \(.*\): choose an --out"):
        make(raw, Path("/proc/x"))


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


def test_images_that_do_not_decode_are_left_out_and_recorded(own_raw: Path, tmp_path: Path) -> None:
    broken, missing = images(own_raw)[3], images(own_raw)[7]
    broken.write_bytes(broken.read_bytes()[:200])
    missing.unlink()
    manifest = make(own_raw, tmp_path / "set", replace(OPTIONS, max_bad=0.05))
    assert {entry.reason for entry in manifest.left_out} == {"the file is truncated", "the file is missing"}
    assert "2 left out (the file is missing 1, the file is truncated 1)" in describe(manifest)
    with (tmp_path / "set.private" / "left_out.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert {row["source"] for row in rows.values()} == {broken.name, missing.name}
    assert set(rows) == {entry.key for entry in manifest.left_out}
    assert sum(split.samples for split in manifest.splits.values()) == 58
    assert not [problem for problem in check_set(tmp_path / "set") if problem.fatal]


def test_too_many_bad_images_and_strict_stop(own_raw: Path, tmp_path: Path) -> None:
    images(own_raw)[3].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 60 images do not decode, more than --max-bad 0\.01 allows") as error:
        make(own_raw, tmp_path / "set")
    assert images(own_raw)[3].name not in str(error.value)
    assert not (tmp_path / "set" / "manifest.json").exists()
    with pytest.raises(ValueError, match=r"sample \d{8}-[0-9a-f]{8} does not decode: no known image format"):
        make(own_raw, tmp_path / "strict", replace(OPTIONS, strict=True, workers=2))
    assert not [path for path in (tmp_path / "strict").iterdir() if "partial" in path.name]


def test_strict_stops_at_what_an_earlier_run_left_out(own_raw: Path, tmp_path: Path) -> None:
    images(own_raw)[3].write_bytes(b"no image")
    strict = replace(OPTIONS, strict=True, max_bad=0.05)
    with pytest.raises(ValueError, match="more than --max-bad"):
        make(own_raw, tmp_path / "set")
    with pytest.raises(ValueError, match="does not decode: no known image format"):
        make(own_raw, tmp_path / "set", strict)
    assert len(make(own_raw, tmp_path / "set", replace(OPTIONS, max_bad=0.05)).left_out) == 1
    with pytest.raises(ValueError, match="does not decode: no known image format"):
        make(own_raw, tmp_path / "set", strict)


def test_images_mended_since_are_taken_in_and_what_is_broken_still_costs_no_shard(
    own_raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(own_raw, tmp_path / "whole")
    broken = images(own_raw)[3:6]
    kept = [path.read_bytes() for path in broken]
    for path, content in zip(broken, kept, strict=True):
        path.write_bytes(bytes(len(content)))  # the same size, hence the same plan
    with pytest.raises(ValueError, match="3 of 60 images do not decode"):
        make(own_raw, tmp_path / "set", replace(OPTIONS, max_bad=0.04))
    broken[0].write_bytes(kept[0])
    with monkeypatch.context() as patch:
        patch.setattr("prep.convert.make_manifest", stop)
        for made in ("some", "none"):
            patch.setattr("prep.convert.keep", keep if made == "some" else stop)  # the second time, nothing is to do
            with pytest.raises(KeyboardInterrupt):
                make(own_raw, tmp_path / "set", replace(OPTIONS, max_bad=0.04))
    for path, content in zip(broken, kept, strict=True):
        path.write_bytes(content)
    make(own_raw, tmp_path / "set", replace(OPTIONS, strict=True))
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")
    assert (tmp_path / "set.private" / "left_out.csv").read_text() == "key,source,split,reason\n"


def test_a_shard_without_any_good_image_is_not_written(own_raw: Path, tmp_path: Path) -> None:
    for path in images(own_raw)[:3]:
        path.write_bytes(b"no image")
    manifest = make(own_raw, tmp_path / "set", replace(OPTIONS, shard_samples=1, max_bad=0.5))
    assert sum(len(split.shards) for split in manifest.splits.values()) == 57
    assert not [problem for problem in check_set(tmp_path / "set") if problem.fatal]


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


def test_rows_that_are_all_left_out_are_an_error_with_their_reason(tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "1.png").write_bytes(b"x")
    with pytest.raises(ValueError, match="lists no image that can be taken: 1 row left out: no folder and no file"):
        convert(DATASETS["DDSM-folder"], tmp_path, tmp_path / "set", OPTIONS)


def test_a_full_disk_is_one_line_and_the_run_goes_on(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prep.tasks.ShardWriter, "close", full)
        with pytest.raises(ValueError, match="failed \\(No space left on device\\): free space"):
            make(raw, tmp_path / "b")
    make(raw, tmp_path / "a")
    make(raw, tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_files_of_others_are_never_touched(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"holds files that are not a shard set's \(1 of them"):
        make(raw, tmp_path / "set")
    with pytest.raises(ValueError, match=r"thesis\.tex is a file: choose another --out"):
        make(raw, tmp_path / "set" / "thesis.tex")
    assert not list(tmp_path.rglob("*.private"))


def test_equal_images_in_two_splits_are_reported(own_raw: Path, tmp_path: Path) -> None:
    lists = own_raw / "ddsm_raw_image_lists"
    names = [(lists / f"{split}.txt").read_text().split()[0] for split in ("train", "test")]
    shutil.copy(own_raw / "ddsm_raw" / names[0], own_raw / "ddsm_raw" / names[1])
    manifest = make(own_raw, tmp_path / "set")
    assert any("1 image stands pixel by pixel in more than one split (train-test 1)" in w for w in manifest.warnings)


def test_salts(raw: Path, tmp_path: Path) -> None:
    one = convert(DDSM, raw, tmp_path / "one", OPTIONS)[0]
    two = convert(DDSM, raw, tmp_path / "two", OPTIONS, tmp_path / "one.private" / "salt")[0]
    other = convert(DDSM, raw, tmp_path / "other", OPTIONS)[0]
    assert one.grouping.salt_digest == two.grouping.salt_digest != other.grouping.salt_digest
    assert one.set_id == two.set_id != other.set_id
    (tmp_path / "short").write_bytes(b"x")
    with pytest.raises(ValueError, match="has 1 bytes, 32 are wanted"):
        convert(DDSM, raw, tmp_path / "bad", OPTIONS, tmp_path / "short")


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


def test_a_split_file_by_source_repeats_another_conversions_split(raw: Path, tmp_path: Path) -> None:
    def parts(out: Path) -> dict[str, str]:
        with (out.with_name(f"{out.name}.private") / "sources.csv").open() as file:
            return {row["source"]: row["split"] for row in csv.DictReader(file)}

    make(raw, tmp_path / "first", replace(OPTIONS, split="random", seed=3))
    table = tmp_path / "first.private" / "sources.csv"
    make(raw, tmp_path / "second", replace(OPTIONS, split_file=table, seed=9))
    assert parts(tmp_path / "second") == parts(tmp_path / "first") != parts_of_lists(raw)
    lines = table.read_text().splitlines()
    table.write_text("\n".join(line.replace("train", "Training") for line in lines[:-1]))
    manifest = make(raw, tmp_path / "third", replace(OPTIONS, split_file=table))
    assert "1 image not in the split file" in manifest.warnings
    assert manifest.grouping.how == "a split file by source"
    table.write_text("\n".join([*lines, lines[1].replace("train", "test"), lines[1].replace("test", "train")]))
    with pytest.raises(ValueError, match=r"the source in sources\.csv row 6[23] already stands in another split"):
        make(raw, tmp_path / "fourth", replace(OPTIONS, split_file=table))
    table.write_text("source,split\nDOE_JANE.png,train\n")
    with pytest.raises(ValueError, match=r"the source in sources\.csv row 2 is none of this dataset") as error:
        make(raw, tmp_path / "fourth", replace(OPTIONS, split_file=table))
    assert "DOE" not in str(error.value)


def parts_of_lists(raw: Path) -> dict[str, str]:
    lists = raw / "ddsm_raw_image_lists"
    return {line: path.stem for path in lists.iterdir() for line in path.read_text().splitlines()}
