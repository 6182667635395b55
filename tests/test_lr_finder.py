"""The search for a learning rate: each try starts where all start, bit for bit, and is the training it stands for."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainings import FAST, losses, ranks

from train import lr_finder
from train.config import Config, Finder, Training
from train.lock import take
from train.lr_finder import Search, best_of, rates_of, suggestions
from train.lr_trial import Ramp
from train.reporting import read_metrics
from train.run import main

pytestmark = pytest.mark.usefixtures("one_rank")


def find(shards: Path, name: str, *more: str) -> dict[str, Any]:
    flags = [*FAST, "--shards", str(shards), "--model", "test_vit", "--name", name, "--no-tensorboard", *more]
    assert main(flags) == 0
    return json.loads((next(Path("runs").glob(f"{name}-lr-*")) / "lr_finder.json").read_text())


def test_each_try_is_the_training_it_stands_for(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["--lr-finder", "--finder-min-pow", "-4", "--finder-max-pow", "-2", "--finder-resolution", "2"]
    found = find(tiny_set, "g", *grid, "--finder-epochs", "2", "--finder-intermediate")
    assert [each["lr"] for each in found["tries"]] == pytest.approx([1e-4, 1e-2])
    told = capsys.readouterr().out
    assert "best by loss: --lr" in told and "best by accuracy: --lr" in told
    for number, one in enumerate(found["tries"]):
        flags = [*FAST, "--shards", str(tiny_set), "--model", "test_vit", "--name", f"t{number}", "--epochs", "2"]
        flags += ["--schedule", "constant", "--warmup-steps", "0", "--lr", repr(one["lr"]), "--no-tensorboard"]
        assert main(flags) == 0
        run = Path(f"runs/t{number}")
        assert one["train_loss"] == losses(run)[-1][1]
        assert [(each["step"], each["loss"]) for each in one["validations"]] == losses(run, "val")
    folder = Path("runs/g-lr-grid")
    assert {path.name for path in folder.iterdir()} >= {"lr_finder.png", "lr_finder.svg", "lr_finder.json", "log.txt"}
    assert not list(folder.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="g-lr-grid exists: remove it"):
        find(tiny_set, "g", *grid)


def test_an_interrupted_search_goes_on_and_tries_nothing_twice(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--lr-finder", "--finder-min-pow", "-4", "--finder-max-pow", "30", "--finder-resolution", "3"]
    grid += ["--optimizer", "sgd", "--gradient-clipping", "0", "--finder-epochs", "2"]
    whole, tried = find(tiny_set, "whole", *grid), list[float]()
    original = Search.try_rate

    def failing(self: Search, lr: float) -> dict[str, Any]:
        tried.append(lr)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return original(self, lr)

    monkeypatch.setattr(Search, "try_rate", failing)
    with pytest.raises(KeyboardInterrupt):
        find(tiny_set, "cut", *grid)
    with pytest.raises(ValueError, match="cut-lr-grid was begun with another seed: remove it, or give another --name"):
        find(tiny_set, "cut", *grid, "--seed", "1")
    capsys.readouterr()
    found = find(tiny_set, "cut", *grid, "--threads", "2")
    assert len(tried) == 4 and found["tries"] == whole["tries"] and found["tries"][1]["diverged"]
    assert (found["best_by_loss"], found["best_by_metric"]) == (whole["best_by_loss"], whole["best_by_metric"])
    assert capsys.readouterr().out.count("1/3") == 1
    both = [read_metrics(Path(f"runs/{name}-lr-grid/metrics.jsonl")) for name in ("cut", "whole")]
    kept = [[(each["step"], each.get("train_loss")) for each in records if each["kind"] == "try"] for records in both]
    assert kept[0] == kept[1] and len(kept[0]) == 3


def test_a_lowest_rate_above_one_of_the_grid_is_refused_where_a_schedule_would_rise_to_it(tiny_set: Path) -> None:
    grid = ["--lr-finder", "--finder-min-pow", "-5", "--finder-max-pow", "-4", "--finder-resolution", "2"]
    grid += ["--finder-epochs", "1", "--min-lr", "5e-5", "--lr", "1e-5"]
    with pytest.raises(ValueError, match=r"--min-lr 5e-05 is above the rate 1e-05 that the schedule lowers"):
        find(tiny_set, "kept", *grid, "--lr", "1", "--finder-keep-schedule")
    assert not Path("runs").exists()
    assert len(find(tiny_set, "own", *grid)["tries"]) == 2  # at constant rates


def test_bad_images_in_a_search_are_told_with_its_own_way_on(tiny_set: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_set, tmp_path / "set"))
    for tar in folder.glob("train-*.tar"):
        content = bytearray(tar.read_bytes())
        content[600] ^= 255
        tar.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read.*mend the set, then give the same command again$"):
        find(folder, "bad", "--lr-finder", "--finder-resolution", "1", "--max-bad", "0")


def test_a_folder_is_whole_or_not_there_and_one_search_s_alone(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = ["--lr-finder", "--finder-resolution", "1", "--finder-epochs", "1"]

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lr_finder, "write_aside", dies)
        with pytest.raises(KeyboardInterrupt):
            find(tiny_set, "half", *grid)
    assert not list(Path("runs").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Search, "try_rate", dies)
        with pytest.raises(KeyboardInterrupt):
            find(tiny_set, "half", *grid)
    other = take(Path("runs/half-lr-grid"))
    with pytest.raises(ValueError, match=r"half-lr-grid is being trained by process .*: wait for it or stop it"):
        find(tiny_set, "half", *grid)
    other.release()
    assert len(find(tiny_set, "half", *grid)["tries"]) == 1
    assert not Path("runs/half-lr-grid/trainer.lock").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_nothing_of_a_try_is_left_in_the_next_at_any_stage(tiny_set: Path, stage: str) -> None:
    common = ["--zero-stage", stage, "--finder-min-pow", "-3", "--finder-max-pow", "-2.9"]
    ranks(*_flags(tiny_set, "two", *common, "--finder-resolution", "2"))
    ranks(*_flags(tiny_set, "one", *common, "--finder-resolution", "1"))
    two, one = (json.loads(Path(f"runs/{name}-lr-grid/lr_finder.json").read_text())["tries"] for name in ("two", "one"))
    assert two[0] == one[0] and two[1] != one[0]


def _flags(shards: Path, name: str, *more: str) -> list[str]:
    flags = [*FAST, "--shards", str(shards), "--model", "test_vit", "--name", name]
    return [*flags, "--no-tensorboard", "--lr-finder", *more]


@pytest.mark.slow
def test_a_second_try_at_the_same_rate_repeats_the_first(tiny_set: Path) -> None:
    same = ["--lr-finder", "--finder-min-pow", "-2", "--finder-max-pow", "-1.9999999999", "--finder-resolution", "2"]
    torch.manual_seed(7)  # the global state is no part of it
    first, second = find(tiny_set, "s", *same, "--optimizer", "sgd", "--ema", "0.9")["tries"]
    assert first["train_loss"] == pytest.approx(second["train_loss"], abs=1e-9)
    kept = ["--finder-keep-schedule", "--schedule", "onecycle", "--layer-decay", "0.5", "--autoscale-lr"]
    assert find(tiny_set, "k", *same, *kept)["tries"][0]["train_loss"] != first["train_loss"]


def test_a_rate_that_diverges_is_told_and_none_left_is_an_error(tiny_set: Path) -> None:
    wild = ["--optimizer", "sgd", "--gradient-clipping", "0", "--lr-finder", "--finder-resolution", "2"]
    wild += ["--finder-epochs", "2"]
    found = find(tiny_set, "w", *wild, "--finder-min-pow", "-3", "--finder-max-pow", "30")
    assert [each["diverged"] for each in found["tries"]] == [False, True]
    assert found["best_by_loss"] == pytest.approx(1e-3) and found["tries"][1]["train_loss"] is None
    with pytest.raises(ValueError, match="no rate of the grid gave a finite loss: lower --finder-max-pow"):
        find(tiny_set, "x", *wild, "--finder-min-pow", "29", "--finder-max-pow", "30")


def test_a_range_test_ramps_every_group_and_stops_where_the_loss_blows_up(tiny_set: Path) -> None:
    more = ["--optimizer", "sgd", "--gradient-clipping", "0", "--finder-min-pow", "-4", "--finder-max-pow", "4"]
    found = find(tiny_set, "r", "--lr-finder", "range", *more, "--finder-steps", "40")
    rates = np.array([each["lr"] for each in found["steps"]])
    assert 10 < len(rates) < 40 and found["diverged"]
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10 ** (8 / 39))
    assert (Path("runs/r-lr-range/lr_finder.png")).stat().st_size > 5000


def test_suggestions_of_a_known_curve() -> None:
    rates = np.logspace(-6, 0, 61)
    smooth = 2 - 1.0 / (1 + np.exp(-4 * (np.log10(rates) + 3))) + 50 * np.maximum(np.log10(rates) + 1, 0) ** 2
    found = suggestions([{"lr": r, "smooth_loss": s} for r, s in zip(rates, smooth, strict=True)])
    assert found["steepest"] == pytest.approx(1e-3, rel=1e-6)
    assert found["tenth"] == pytest.approx(rates[smooth.argmin()] / 10)
    rising = [{"lr": r, "smooth_loss": s} for r, s in zip(rates, np.arange(61.0), strict=True)]
    assert suggestions(rising) == {"steepest": None, "tenth": None} == suggestions(rising[:2])


def test_rates_ramps_and_bests() -> None:
    drawn = Finder(finder_random=True, finder_resolution=200, finder_min_pow=-4, finder_max_pow=-2)
    values = rates_of(Config(finder=drawn, training=Training(seed=3)))
    assert values == sorted(values) and 1e-4 <= values[0] < 1.5e-4 and 0.7e-2 < values[-1] <= 1e-2
    assert values == rates_of(Config(finder=drawn, training=Training(seed=3))) != rates_of(Config(finder=drawn))
    assert [Ramp(1e-4, 1.0, 5, 1).at(step) for step in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    nan = math.nan
    tries = [
        {"lr": 1, "train_loss": 0.3, "val_loss": nan, "metrics": {}},
        {"lr": 2, "train_loss": 0.2, "val_loss": nan, "metrics": {"f1": nan}},
    ]
    assert best_of(tries, "f1") == {"best_by_loss": 2, "best_by_metric": None}
    with pytest.raises(ValueError, match=r"finder_min_pow 0 is not below finder_max_pow -1"):
        Finder(finder_min_pow=0)
