"""Mixup and CutMix over ranks: one global batch, one set of soft labels. Run: pytest tests/test_mixing_ranks.py"""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from shards.loader import Batch, Loader
from shards.plan import rank_places
from shards.shardset import ShardSet
from shards.transforms import train_transform
from train.config import Training
from train.mixing import draw_mix, mix_images

BATCH, STEPS = 16, 3


def mixed(training: Training, step: int, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as they enter the net, and soft labels float32[b, 3], by the definition: own share, partner's share."""
    mix = draw_mix(training, step, batch.sample_ids, batch.valid, batch.images.shape[2:])
    assert mix is not None
    labels = functional.one_hot(batch.labels, 3).float()
    partner = labels.view(-1, 2, 3).flip(1).reshape(-1, 3)
    return mix_images(batch.images, mix), mix.own[:, None] * labels + (1 - mix.own[:, None]) * partner


@pytest.mark.parametrize("executor", ["host", "dali"])
def test_ranks_mix_one_global_batch(tiny_set: Path, executor: str) -> None:
    shards = ShardSet(tiny_set)
    transform = train_transform(24, shards.manifest.mean, shards.manifest.std)
    choices = [Training(mixup=0.4), Training(cutmix=1.0), Training(mixup=0.4, cutmix=1.0)]

    def of(rank: int, world: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        loader = Loader(
            shards.split("train"), transform, global_batch=BATCH, seed=3, rank=rank, world=world, executor=executor
        )  # type: ignore[arg-type]
        batches = list(islice(loader, STEPS))
        loader.close()
        return [[mixed(training, step, batch) for step, batch in enumerate(batches)] for training in choices]

    whole = of(0, 1)
    for world in (2, 4):
        for rank in range(world):
            places = rank_places(BATCH, world, rank)
            for mine, all_of_it in zip(of(rank, world), whole, strict=True):
                for (images, labels), (every_image, every_label) in zip(mine, all_of_it, strict=True):
                    assert torch.equal(images, every_image[places]) and torch.equal(labels, every_label[places])
    for steps in whole:
        soft = torch.cat([labels for _, labels in steps])
        assert torch.allclose(soft.sum(1), torch.ones(len(soft))) and ((soft > 0.01) & (soft < 0.99)).any()
