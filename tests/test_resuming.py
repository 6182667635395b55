"""A run that was stopped goes on to the last digit, with all that a run can keep. Run: pytest tests/test_resuming.py

Slow ones take every ZeRO stage in every precision; `-m "not slow"` takes the loss scaler alone.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_run import PLAIN, losses, quiet_machine, train

from train import checkpoints
from train.reporting import read_metrics
from train.resharding import read_whole
from train.run import main

__all__ = ["quiet_machine"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.distributed.*is deprecated:FutureWarning"
)  # of DeepSpeed's stage 3
PLATEAU = ["--schedule", "plateau", "--plateau-patience", "0", "--plateau-factor", "0.5", "--val-every", "0.5"]


def rates(run: Path) -> list[float]:
    return [each["lr"] for each in read_metrics(run / "metrics.jsonl") if each["kind"] == "train"]


def assert_same(run: Path, other: Path) -> None:
    """Losses, rates, validations and weights to the last digit."""
    assert losses(run) == losses(other) and rates(run) == rates(other)
    assert losses(run, "val") == losses(other, "val")
    for name in ("init", "best", "last"):
        mine, theirs = (load_file(each / "weights" / f"{name}.safetensors") for each in (run, other))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items()), name


@pytest.mark.parametrize("stage", ["2", *(pytest.param(stage, marks=pytest.mark.slow) for stage in "13")])
def test_fp16_is_scaled_and_clipped_as_without_zero(tiny_set: Path, stage: str) -> None:
    """Plain descent shows a gradient that was clipped before it was unscaled."""
    options = ["--epochs", "1", "--precision", "fp16", *PLAIN, "--gradient-clipping", "0.5"]
    plain = train(tiny_set, "plain", *options)
    sharded = train(tiny_set, "sharded", *options, "--zero-stage", stage)
    for (_, a), (_, b) in zip(losses(plain), losses(sharded), strict=True):
        assert a == pytest.approx(b, abs=2e-3)
    assert abs(losses(plain)[-1][1] - losses(plain)[0][1]) > 0.01  # the descent is steep enough to tell


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_stop_changes_nothing(tiny_set: Path, precision: str, stage: str) -> None:
    """Averaged weights, dropout, BatchNorm, pairs mixed, a rate that follows the validations."""
    options = ["--epochs", "2", "--precision", precision, "--zero-stage", stage, "--mixup", "0.4", *PLATEAU]
    options += ["--drop-path", "0.2", "--micro-batch", "8"] + (["--ema", "0.9"] if stage != "3" else [])
    whole = train(tiny_set, "whole", *options, model="test_efficientnet")
    cut = train(tiny_set, "cut", *options, "--stop-after-steps", "3", model="test_efficientnet")
    assert main(["--resume", str(cut), "--stop-after-steps", "5"]) == 0
    assert main(["--resume", str(cut)]) == 0
    assert_same(cut, whole)
    assert len(set(rates(whole)[2:])) > 1  # the plateau was met


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["0", "1", "3"])
def test_the_loss_scaler_goes_on(tiny_set: Path, stage: str) -> None:
    """The first steps overflow fp16 and lower the scale; what it has come to is kept."""
    options = ["--epochs", "3", "--precision", "fp16", "--zero-stage", stage, *PLAIN]
    whole = train(tiny_set, "whole", *options)
    cut = train(tiny_set, "cut", *options, "--stop-after-steps", "4")
    found, _ = checkpoints.newest(cut / "checkpoints")
    assert found is not None
    scaler = found.state["scaler"] or {"scale": read_whole(found.path, 1, int(stage)).loss_scaler.cur_scale}
    assert scaler["scale"] < 2**16  # it had to come down
    assert main(["--resume", str(cut)]) == 0
    assert_same(cut, whole)


def test_an_earlier_precision_is_not_this_ones(tiny_set: Path) -> None:
    """DeepSpeed notes the autocast of a process, not of an engine."""
    alone = train(tiny_set, "alone", "--epochs", "1", "--zero-stage", "1")
    train(tiny_set, "half", "--epochs", "1", "--zero-stage", "1", "--precision", "fp16")
    assert losses(train(tiny_set, "after", "--epochs", "1", "--zero-stage", "1")) == losses(alone)
