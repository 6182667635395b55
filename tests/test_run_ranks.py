"""Trainings on several ranks, under deepspeed's launcher or bare. Run: pytest tests/test_run_ranks.py (-m slow: all)"""

import json
from pathlib import Path

import pytest
from trainings import FAST, PLAIN, launch, losses, ranks, train

from train.run import main

pytestmark = pytest.mark.usefixtures("one_rank")


def test_two_ranks_take_the_steps_of_one(tiny_set: Path) -> None:
    alone = train(tiny_set, "alone", "--epochs", "1", *PLAIN)
    arguments = ["--shards", str(tiny_set), "--model", "test_vit", "--name", "pair", *FAST, "--epochs", "1", *PLAIN]
    code, output = launch(*arguments)
    assert code == 0, output
    for (_, a), (_, b) in zip(losses(alone), losses(Path("runs/pair")), strict=True):
        assert a == pytest.approx(b, abs=2e-6)
    one, two = (json.loads(Path(f"runs/{name}/results.json").read_text())["test"] for name in ("alone", "pair"))
    assert one["samples"] == two["samples"] == 19
    assert one["accuracy"] == two["accuracy"]


@pytest.mark.slow
def test_errors_on_two_ranks_are_one_line(tiny_set: Path) -> None:
    arguments = ["--shards", str(tiny_set), "--name", "wrong", *FAST]
    _, output = launch(*arguments, "--model", "resnet5O")
    assert output.count("error:") == 1 and "Traceback" not in output, output
    _, output = launch(*arguments, "--model", "test_vit", ranks=3)
    assert output.count("use 2 or 4 ranks") == 1 and "Traceback" not in output, output
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_resume_bit_for_bit(tiny_set: Path, stage: int) -> None:
    base = [
        "--shards",
        str(tiny_set),
        "--model",
        "test_vit",
        *FAST,
        "--epochs",
        "2",
        "--zero-stage",
        str(stage),
        *PLAIN,
    ]
    ranks(*base, "--name", "whole")
    alone = train(tiny_set, "alone", "--epochs", "2", *PLAIN)
    for (_, a), (_, b) in zip(losses(alone), losses(Path("runs/whole")), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    ranks(*base, "--name", "cut", "--stop-after-steps", "3")
    ranks("--resume", "runs/cut")
    assert losses(Path("runs/cut")) == losses(Path("runs/whole"))
    assert losses(Path("runs/cut"), "val") == losses(Path("runs/whole"), "val")


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_samples(tiny_set: Path) -> None:
    alone = train(tiny_set, "alone", "--epochs", "2")
    base = ["--shards", str(tiny_set), "--model", "test_vit", "--name", "moved", *FAST, "--epochs", "2"]
    ranks(*base, "--stop-after-steps", "3")
    assert main(["--resume", "runs/moved"]) == 0
    for (_, a), (_, b) in zip(losses(alone), losses(Path("runs/moved")), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("stage", ["1", "2"])
def test_averaged_weights_at_zero_stages(tiny_set: Path, stage: str) -> None:
    plain = train(tiny_set, "plain", "--epochs", "1", "--ema", "0.9")
    sharded = train(tiny_set, "sharded", "--epochs", "1", "--ema", "0.9", "--zero-stage", stage)
    for (_, a), (_, b) in zip(losses(plain, "val"), losses(sharded, "val"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.distributed.*is deprecated:FutureWarning")  # DeepSpeed at stage 3
@pytest.mark.parametrize(("stage", "what"), [("2", "optimizer"), ("3", "parameters")])
def test_offloaded_states_change_no_digit_and_resume(tiny_set: Path, stage: str, what: str) -> None:
    flags = ["--zero-stage", stage, "--epochs", "2", "--no-tensorboard"]
    plain = train(tiny_set, "plain", *flags)
    moved = train(tiny_set, "moved", *flags, "--offload", what, "--stop-after-steps", "3")
    assert main(["--resume", str(moved)]) == 0
    for (_, a), (_, b) in zip(losses(plain), losses(moved), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    train(tiny_set, "whole", *flags, "--offload", what)
    assert losses(Path("runs/whole")) == losses(moved)
