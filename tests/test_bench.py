"""pytest tests/test_bench.py"""

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from faulty_server import serve

from shards.bench import DEPTHS, Result, depth_wanted, main, measure, paced_waits, positions_of, table, verdict
from shards.loader import Loader
from shards.shardset import ShardSet
from shards.transforms import train_transform

QUICK = ("--seconds", "0.05", "--batch", "8", "--image-size", "32", "--threads", "2")
MEASURED = Result(
    name="DDSM",
    split="train",
    images=9000,
    median_height=512,
    median_width=700,
    kilobytes=60.0,
    encoding="jpeg",
    preset="full",
    size=224,
    batch=64,
    executor="host",
    device="cpu",
    threads=2,
    cores=8,
    load=0.3,
    read=20000.0,
    decode=1000.0,
    pipeline=800.0,
    first_batch_seconds=0.3,
    cpu_share=0.9,
    prefetch=4,
    waiting=0.004,
)


def test_json_holds_every_stage_and_the_verdict(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_set), *QUICK, "--preset", "full", "--executor", "host", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"name": "tiny", "images": 60, "executor": "host", "preset": "full", "batch": 8}.items() <= found.items()
    assert found["prefetch"] in DEPTHS and 0 <= found["waiting"] <= 1
    assert min(found[stage] for stage in ("read", "decode", "pipeline", "first_batch_seconds")) > 0
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.001)
    assert found["verdict"].startswith("limit: ")


def test_a_set_at_a_url_is_measured_through_a_cache(
    tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(tiny_set) as server:
        assert main([server.url, *QUICK, "--cache", str(tmp_path / "cache"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["images"] == 60 and list(tmp_path.rglob("train-*.tar"))
        with pytest.raises(ValueError, match=r"give a folder for what is fetched .*--cache DIR"):
            main([server.url, *QUICK])


def test_the_table_names_each_stage(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_set), *QUICK, "--split", "val"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tiny val: 17 images, median ") and lines[0].endswith("kB each, jpeg")
    stages = [line[:16].strip() for line in lines[3:7]]
    assert stages == ["read and hash", "decode alone", "all the rest", "whole pipeline"]
    assert lines[8].startswith("with --prefetch ") and lines[-1].startswith("limit: ") and lines[6].endswith("100%")


def test_dali_is_measured_through_the_loader(tiny_set: Path) -> None:
    result = measure(ShardSet(tiny_set), executor="dali", batch=8, size=32, seconds=0.05)
    assert result.executor == "dali" and result.pipeline > 0 and result.first_batch_seconds > 0


def test_reading_follows_the_order_of_training(tiny_set: Path) -> None:
    shards = ShardSet(tiny_set)
    split = shards.split("train")
    loader = Loader(split, train_transform(8, shards.manifest.mean, shards.manifest.std), global_batch=8)
    for positions, batch in zip(itertools.islice(positions_of(split, 8), 9), loader, strict=False):
        assert split.sample_ids(positions).view("int64").tolist() == batch.sample_ids.tolist()  # type: ignore[arg-type]
    loader.close()


class Late:
    """Stands for a Loader two steps ahead whose every fourth batch comes 40 ms late."""

    prefetch = 2

    def __iter__(self) -> Iterator[int]:
        for n in itertools.count():
            if n % 4 == 3:
                time.sleep(0.04)
            yield n


def test_a_paced_consumer_waits_for_the_batches_that_are_late() -> None:
    waits = paced_waits(Late(), 0.001, 0.2)  # type: ignore[arg-type]
    assert len(waits) >= 3 and waits[2::4].min() >= 0.04


@pytest.mark.parametrize(("enough", "advised", "share"), [(2, 2, 0.0), (3, 4, 0.0), (8, 8, 0.0), (9, 8, 0.2)])
def test_the_depth_advised_is_the_least_with_which_hardly_any_time_is_waited(
    enough: int, advised: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opened:
        def __init__(self, depth: int):
            self.prefetch = depth

        def close(self) -> None:
            pass

    def waits(loader: Opened, step: float, seconds: float) -> np.ndarray:
        return np.full(10, 0.0 if loader.prefetch >= enough else 0.25)

    monkeypatch.setattr("shards.bench.paced_waits", waits)
    assert depth_wanted(Opened, step=1.0, seconds=1.0) == (advised, pytest.approx(share))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {},
            "limit: decoding, 80% of the time; to go faster: more threads (--threads 8: 6 cores are free), store",
        ),
        ({"threads": 8}, "store nearer to 224 px than 512 (prep/make_shards.py)"),
        ({"threads": 8, "median_height": 256}, "to go faster: a GPU, or store small images raw"),
        ({"decode": 4000.0, "threads": 8}, "limit: augmentation (resize, colour, normalisation), 76% of the time"),
        ({"decode": 4000.0, "threads": 8}, "to go faster: preset light, a smaller --image-size, or a GPU"),
        ({"executor": "dali"}, "to go faster: --executor host, which suits a CPU, more threads"),
        ({"read": 900.0, "decode": 9000.0}, "limit: reading and hashing, 89% of the time; to go faster: a local disk"),
    ],
)
def test_the_verdict_names_the_largest_part_and_what_to_change(change: dict, message: str) -> None:
    assert message in verdict(replace(MEASURED, **change))


def test_parts_never_exceed_the_whole_and_other_work_is_said() -> None:
    shares = replace(MEASURED, decode=700.0).shares
    assert sum(shares.values()) == pytest.approx(1) and shares["rest"] == 0
    assert "other work ran here (load 5.5 on 8 cores)" in table(replace(MEASURED, load=5.5))
    assert "other work" not in table(MEASURED)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds is 0.0; give a number above 0"),
        (["--split", "trian"], "split 'trian' does not exist in tiny; it has train, val, test"),
        (["--image-size", "0"], "train_transform: size is 0; give one or two whole numbers of 1 to 16384 pixels"),
    ],
)
def test_mistakes_are_answered_in_a_line(tiny_set: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        main([str(tiny_set), *QUICK, *arguments])


def test_a_damaged_image_is_named(tiny_set: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_set, tmp_path / "set")
    split = ShardSet(folder).split("val")
    tar, offset = folder / split.shards[0].name, int(split.rows(range(1)).offsets[0])  # type: ignore[arg-type]
    data = bytearray(tar.read_bytes())
    data[offset + 100] ^= 0xFF
    tar.write_bytes(data)
    with pytest.raises(ValueError, match=rf"sample {split.key(0)} in val-000000\.tar is damaged"):
        main([str(folder), *QUICK, "--split", "val"])


def test_raw_images_of_one_channel(make_set: Callable[..., ShardSet], tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", channels=1, encoding="raw", train=16, val=8, test=8)
    result = measure(shards, batch=8, size=32, seconds=0.02)
    assert (result.encoding, result.images) == ("raw", 16) and min(result.decode, result.pipeline) > 0


def test_help_fits_a_screen_and_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40 and "example: python -m shards bench data/shards/DDSM" in text
