"""Each of the study's sixteen transforms alone, and all but one, end to end with the study's defaults on phantoms.

Run: pytest tests/test_sixteen.py (-m slow: training, and DALI)
"""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import pytest
import torch
from conversions import OPTIONS
from test_study_params import NAMES, PARAMS, SETS, TABLES
from trainings import losses

from prep.convert import convert
from prep.images import PixelOptions
from prep.phantoms import SALT_NAME, draw_phantoms
from prep.sources import DATASETS
from shards.loader import Loader
from shards.shardset import ShardSet
from shards.transforms import AnyTransform, transform_of
from shards.view import main as view
from train.run import main
from train.study_keys import Keys
from train.study_transforms import operators

IDS = [*NAMES, "all but MultiCrop", "all but RandomResizedCrop"]
DALI = pytest.param("dali", marks=pytest.mark.slow)
# What gives images of mixed sizes one size; the study's batches need one of them, too.
SIZING = {"Resize", "CenterCrop", "RandomCrop", "RandomResizedCrop", "MultiCrop"}
Executor = Literal["host", "dali"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 24 retinal phantoms, 96 pixels at the short side."""
    folder = tmp_path_factory.mktemp("aptos")
    draw_phantoms("APTOS2019", folder / "raw", 24, size=128, quiet=True)
    options = replace(OPTIONS, pixels=PixelOptions(3, 96))
    convert(DATASETS["APTOS2019"], folder / "raw", folder / "set", options, folder / "raw" / SALT_NAME)
    return folder / "set"


def chosen(names: list[str]) -> dict[str, Any]:
    """The study's table of training transforms with these alone, squashed to its 256 where none gives a size."""
    wanted = {*names, *(() if SIZING & set(names) else ("Resize",))}
    return {name: table | {"apply": name in wanted} for name, table in TABLES.items()} | {"Normalize": True}


def steps_of(names: list[str]) -> list[dict[str, Any]]:
    return operators(Keys(chosen(names)))


def test_they_are_sixteen_with_normalisation_and_scales_above_one() -> None:
    assert len(TABLES) + 1 == 16 and TABLES["RandomResizedCrop"]["scale"] == [0.8, 1.2]


@pytest.mark.parametrize("executor", ["host", DALI])
@pytest.mark.parametrize("names", SETS, ids=IDS)
def test_the_loader_gives_batches(phantoms: Path, names: list[str], executor: Executor) -> None:
    shards = ShardSet(phantoms)
    transform: AnyTransform = transform_of(steps_of(names), shards.manifest.mean, shards.manifest.std)
    loader = Loader(shards.split("train"), transform, global_batch=4, executor=executor, prefetch=1)
    batch = next(iter(loader))
    loader.close()
    assert not loader.bad and batch.valid.all() and len(batch.views) == (8 if "MultiCrop" in names else 1)
    for images, size in zip(batch.views, transform.sizes, strict=True):
        assert images.shape == (4, 3, *size) and torch.isfinite(images).all() and images.std() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["host", "dali"])
@pytest.mark.parametrize("names", SETS, ids=IDS)
@pytest.mark.usefixtures("one_rank")
def test_a_training_takes_its_steps(phantoms: Path, names: list[str], executor: Executor) -> None:
    """From the study's own params.json, cut to these transforms."""
    params = deepcopy(PARAMS)
    params["dataset_params"]["train_transforms"] = chosen(names)
    Path("params.json").write_text(json.dumps(params))
    flags = ["--params", "params.json", "--shards", str(phantoms), "--model", "test_vit", "--start", "ri"]
    flags += ["--name", "r", "--executor", executor, "--global-batch", "4", "--no-lars", "--precision", "fp32"]
    flags += ["--log-every", "1"]
    assert main([*flags, "--log-every", "1", "--threads", "1", "--no-tensorboard", "--stop-after-steps", "2"]) == 0
    found = losses(Path("runs/r"))
    assert [step for step, _ in found] == [1, 2] and all(0 < loss < 20 for _, loss in found)
    config = json.loads(Path("runs/r/config.json").read_text())["config"]["data"]
    assert config["executor"] == executor and config["train_operators"] == steps_of(names)


@pytest.mark.parametrize("executor", ["host", DALI])
@pytest.mark.parametrize("names", SETS, ids=IDS)
def test_a_sheet_shows_them(phantoms: Path, names: list[str], executor: Executor, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    flags = ["--operators", json.dumps(steps_of(names)), "--executor", executor, "--samples", "1", "--versions", "2"]
    assert view([str(phantoms), *flags, "--out", str(out)]) == 0
    assert cv2.imread(str(out)).std() > 10
