"""A step of the trainer beside the same step in plain torch. Run: pytest tests/test_steps.py"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from trainings import PLAIN, losses, train

from shards.loader import Batch, Loader
from shards.shardset import ShardSet
from shards.transforms import train_transform
from train import loop
from train.job import Job
from train.models import create
from train.objective import views_loss
from train.run import main

pytestmark = pytest.mark.usefixtures("one_rank")


def first_batch(shards: ShardSet, size: int) -> Batch:
    transform = train_transform(32, shards.manifest.mean, shards.manifest.std, scale=(0.8, 1.0))
    loader = Loader(shards.split("train"), transform, global_batch=size, seed=0, threads=1)
    batch = next(iter(loader))
    loader.close()
    return batch


def at_start(run: Path, model: str) -> torch.nn.Module:
    net = create(model, 3, img_size=32)
    net.load_state_dict(load_file(run / "weights" / "init.safetensors"))
    return net.train()


@pytest.mark.parametrize("weights", [[0.1, 0.2, 0.3], [0.0, 0.0, 0.0]])
def test_a_step_of_light_labels_is_plain_torchs(
    tiny_set: Path, weights: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two images weigh less than one; where nothing weighs anything, no weight of the net moves."""
    each = torch.tensor(weights)
    monkeypatch.setattr(Job, "class_weights", property(lambda _: each))
    run = train(tiny_set, "light", "--global-batch", "2", "--stop-after-steps", "1", "--no-tensorboard", *PLAIN)
    model, batch = at_start(run, "test_vit"), first_batch(ShardSet(tiny_set), 2)
    loss = F.cross_entropy(model(batch.images), batch.labels, weight=each) if any(weights) else torch.tensor(0.0)
    assert [value for _, value in losses(run)] == pytest.approx([loss.item()], abs=2e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    if any(weights):
        loss.backward()
        optimizer.step()
    after = load_file(run / "weights" / "last.safetensors")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(after[key], tensor, rtol=1e-4, atol=1e-6)


def test_statistics_are_those_of_the_images_that_can_be_read(make_set: Callable[..., ShardSet], tmp_path: Path) -> None:
    """Three of them, one a stand-in for the fourth, which is no image any more."""
    shards = make_set(tmp_path / "four", train=4, val=0, test=0, name="four")
    row, tar = shards.split("train").rows([2]), shards.path / "train-000000.tar"  # type: ignore[arg-type]
    content = bytearray(tar.read_bytes())
    content[int(row.offsets[0]) + 30] ^= 255
    tar.write_bytes(content)
    options = ["--global-batch", "4", "--max-bad", "1", "--stop-after-steps", "1", "--no-tensorboard", *PLAIN]
    run = train(shards.path, "four", *options, model="test_resnet")
    batch = first_batch(ShardSet(shards.path), 4)
    good = batch.images[batch.valid]
    assert len(good) == 3
    model = at_start(run, "test_resnet")
    F.cross_entropy(model(torch.cat([good, good[:1]]))[:3], batch.labels[batch.valid])
    after = load_file(run / "weights" / "last.safetensors")
    statistics = [key for key in after if key.endswith(("running_mean", "running_var"))]
    assert len(statistics) > 4
    for key in statistics:
        torch.testing.assert_close(after[key], model.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_finite_are_never_kept(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third step's loss is finite, its gradient is not: 0 times the slope of a square root at 0."""
    flags = ["--epochs", "1", "--checkpoint-every", "1", "--no-tensorboard"]
    whole, calls = train(tiny_set, "whole", *flags), []

    def poisoned(*args: Any, **options: Any) -> torch.Tensor:
        loss = views_loss(*args, **options)
        calls.append(loss.item())
        return loss + (loss * 0).sqrt() if len(calls) == 3 else loss

    with monkeypatch.context() as patch:
        patch.setattr(loop, "views_loss", poisoned)
        with pytest.raises(ValueError, match=r"the weights after step 3 are not finite, though its loss was"):
            train(tiny_set, "cut", *flags)
    assert all(map(math.isfinite, calls))
    for path in (Path("runs/cut/weights")).iterdir():
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values()), path
    assert main(["--resume", "runs/cut"]) == 0
    assert losses(Path("runs/cut")) == losses(whole)
