"""ZeRO checkpoints on another number of ranks. Run: pytest tests/test_resharding.py (-m slow: with several ranks)"""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trainings import FAST, PLAIN, losses, ranks, train

from train import checkpoints
from train.resharding import Whole, _cut_equal_parts, _joined_equal_parts, read_whole
from train.run import main

pytestmark = [
    pytest.mark.usefixtures("one_rank"),
    pytest.mark.filterwarnings("ignore:.torch.distributed.*is deprecated:FutureWarning"),  # of DeepSpeed's stage 3
]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_put_together_is_the_model(tiny_set: Path, stage: int) -> None:
    run = train(tiny_set, "one", "--epochs", "1", "--zero-stage", str(stage), model="test_efficientnet")
    found, _ = checkpoints.newest(run / "checkpoints")
    assert found is not None
    whole, last = read_whole(found.path, 1, stage), load_file(run / "weights" / "last.safetensors")
    assert whole.weights.keys() == last.keys()
    assert all(torch.equal(tensor, last[name]) for name, tensor in whole.weights.items())
    assert all(set(each) == {"exp_avg", "exp_avg_sq"} for each in whole.moments.values())
    assert int(whole.scalars["step"]) == 4


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_an_optimizer_that_keeps_nothing(tiny_set: Path, stage: int) -> None:
    run = train(tiny_set, "plain", "--epochs", "1", "--zero-stage", str(stage), *PLAIN)
    found, _ = checkpoints.newest(run / "checkpoints")
    assert found is not None
    assert not any(read_whole(found.path, 1, stage).moments.values())
    assert "300,291 trainable numbers" in (run / "log.txt").read_text()


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_equal_parts_come_apart_and_together(world: int) -> None:
    shapes = {"a": torch.Size([5]), "b": torch.Size([2, 3]), "c": torch.Size([1])}
    moments = {name: {"m": torch.arange(1.0, shape.numel() + 1)} for name, shape in shapes.items()}
    length = sum(math.ceil(shape.numel() / world) for shape in shapes.values())
    flats = [torch.empty(length - 1), torch.empty(1)]  # groups may end anywhere
    parts = [_cut_equal_parts(flats, Whole({}, moments, {}, None), "m", rank, world) for rank in range(world)]
    again = _joined_equal_parts(parts, [], shapes)
    assert all(torch.equal(again[name], moments[name]["m"]) for name in shapes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "options"),
    [
        (1, []),
        (2, ["--ema", "0.9", "--micro-batch", "4"]),
        (3, []),
        (2, ["--freeze-backbone", "--lr", "0.01"]),
        (2, PLAIN),
        (3, ["--optimizer", "sgd", "--optimizer-args", '{"momentum": 0.9}', "--lr", "0.05", "--layer-decay", "0.8"]),
    ],
)  # fmt: skip
def test_two_ranks_then_one_then_four(tiny_set: Path, stage: int, options: list[str]) -> None:
    """The moments of 2 ranks go on with 1, then with 4, on the samples that would have come."""
    alone = train(tiny_set, "alone", "--epochs", "2", *options)
    base = ["--shards", str(tiny_set), "--model", "test_vit", "--name", "moved", *FAST, "--epochs", "2", *options]
    ranks(*base, "--zero-stage", str(stage), "--stop-after-steps", "3")
    assert main(["--resume", "runs/moved", "--stop-after-steps", "5"]) == 0
    ranks("--resume", "runs/moved", world=4)
    assert [step for step, _ in losses(Path("runs/moved"))] == list(range(1, 9))
    for (_, a), (_, b) in zip(losses(alone), losses(Path("runs/moved")), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    for name, tensor in load_file(alone / "weights" / "last.safetensors").items():
        torch.testing.assert_close(load_file("runs/moved/weights/last.safetensors")[name], tensor, rtol=1e-3, atol=2e-5)
