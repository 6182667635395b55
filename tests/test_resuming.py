"""A run that was stopped goes on to the last digit, with all that a run can keep. Run: pytest tests/test_resuming.py

Slow ones take every ZeRO stage in every precision; `-m "not slow"` takes the loss scaler alone.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainings import DEADLINE_SECONDS, FAST, PLAIN, RUN, finish, losses, start, train

from shards.shardset import ShardSet
from train import checkpoints
from train.reporting import read_metrics
from train.resharding import read_whole
from train.run import main
from train.rundir import read_json

pytestmark = [
    pytest.mark.usefixtures("one_rank"),
    pytest.mark.filterwarnings("ignore:.torch.distributed.*is deprecated:FutureWarning"),  # of DeepSpeed's stage 3
]
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


def test_one_seed_gives_one_run_and_a_stop_changes_nothing(tiny_set: Path) -> None:
    options = ["--epochs", "2", "--mixup", "0.4", "--ema", "0.9", "--checkpoint-every", "2"]
    first = train(tiny_set, "first", *options)
    again = train(tiny_set, "again", *options, "--stop-after-steps", "3")
    assert not (again / "results.json").exists()
    init = (again / "weights" / "init.safetensors").read_bytes()
    assert main(["--resume", str(again), "--stop-after-steps", "5"]) == 0
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)
    assert losses(again, "val") == losses(first, "val")
    assert (again / "weights" / "init.safetensors").read_bytes() == init
    for name in ("best", "last"):
        mine, other = (load_file(run / "weights" / f"{name}.safetensors") for run in (first, again))
        assert all(torch.equal(tensor, other[key]) for key, tensor in mine.items())
    assert losses(train(tiny_set, "other", *options, "--seed", "1")) != losses(first)
    assert main(["--resume", str(again)]) == 0  # done: nothing to do


def test_dropout_and_batchnorm_resume_bit_for_bit(tiny_set: Path) -> None:
    first = train(tiny_set, "first", "--epochs", "2", model="test_efficientnet")
    again = train(tiny_set, "again", "--epochs", "2", "--stop-after-steps", "5", model="test_efficientnet")
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)
    assert losses(again, "val") == losses(first, "val")


def test_a_damaged_checkpoint_is_passed_over(tiny_set: Path) -> None:
    first = train(tiny_set, "first", "--epochs", "2")
    again = train(tiny_set, "again", "--epochs", "2", "--stop-after-steps", "6")
    newest = again / "checkpoints" / "step-00000006" / "mp_rank_00_model_states.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)
    assert "step-00000006 is damaged" in (again / "log.txt").read_text()


def test_parts_and_mixtures_go_on_from_any_step(tiny_set: Path, make_set: Callable[..., ShardSet]) -> None:
    other = make_set(Path("other"), seed=9, name="other").path
    flags = ["--mix", f"{tiny_set}=0.75,{other}=0.25", "--fraction", "0.5", "--epochs", "2"]
    whole = train(tiny_set, "whole", *flags)
    train(tiny_set, "part", *flags, "--stop-after-steps", "3")
    assert main(["--resume", "runs/part"]) == 0
    assert losses(Path("runs/part")) == losses(whole)
    balanced = train(tiny_set, "balanced", "--balance", "classes", "--epochs", "1")
    assert read_json(balanced / "config.json")["config"]["data"]["balance"] == "classes"
    with pytest.raises(ValueError, match="mix: got 'A=x'"):
        train(tiny_set, "none", "--mix", "A=x,B=1")


def test_weights_of_classes_cutmix_and_stochastic_depth_go_on_bit_for_bit(tiny_set: Path) -> None:
    flags = ["--class-weights", "balanced", "--cutmix", "1.0", "--mixup", "0.2", "--drop-path", "0.3", "--epochs", "2"]
    whole = train(tiny_set, "whole", *flags)
    train(tiny_set, "part", *flags, "--stop-after-steps", "3")
    assert main(["--resume", "runs/part"]) == 0
    assert losses(Path("runs/part")) == losses(whole)
    plain = train(tiny_set, "plain", *flags[:2], "--epochs", "2")
    assert losses(plain) != losses(whole)
    rows = (whole / "predictions-test.csv").read_text().splitlines()
    assert rows[0] == "key,label,p(kind0),p(kind1),p(kind2)" and len(rows) == 20
    assert len((whole / "predictions-val.csv").read_text().splitlines()) == 18
    with pytest.raises(ValueError, match="has no stochastic depth: drop --drop-path"):
        train(tiny_set, "none", "--drop-path", "0.1", model="vgg11")


@pytest.mark.slow
def test_a_compiled_run_trains_and_goes_on(tiny_set: Path) -> None:
    whole = train(tiny_set, "whole", "--compile", "--epochs", "1")
    assert [step for step, _ in losses(whole)] == [
        step for step, _ in losses(train(tiny_set, "plain", "--epochs", "1"))
    ]
    assert dict(losses(whole)) == pytest.approx(dict(losses(Path("runs/plain"))), rel=1e-3)
    assert not any("_orig_mod" in name for name in load_file(whole / "weights" / "best.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(tiny_set: Path, number: signal.Signals) -> None:
    whole = train(tiny_set, "whole", "--epochs", "40", "--no-tensorboard")
    process = start(
        [
            sys.executable,
            RUN,
            "--shards",
            str(tiny_set),
            "--model",
            "test_vit",
            "--name",
            "cut",
            *FAST,
            "--epochs",
            "40",
            "--no-tensorboard",
        ]
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(losses(Path("runs/cut"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    code, output = finish(process)
    assert code == 75, output
    found, damaged = checkpoints.newest(Path("runs/cut/checkpoints"))
    assert found is not None and not damaged and 5 <= found.state["step"] < 150
    assert main(["--resume", "runs/cut"]) == 0
    assert losses(Path("runs/cut")) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_resume_bit_for_bit(tiny_set: Path, precision: str) -> None:
    options: list[Any] = ["--epochs", "2", "--precision", precision]
    first = train(tiny_set, "first", *options)
    again = train(tiny_set, "again", *options, "--stop-after-steps", "3")
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)
