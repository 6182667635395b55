"""Test-time augmentation: logits of a net that cannot see the versions stay; of one that can, they are its mean."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from shards.loader import Batch
from train.evaluation import predict
from train.test_time import VERSIONS, mean_logits, version


class Corner(nn.Module):
    """The top left pixel of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :, 0, 0]


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flips", 4), ("rotations", 4), ("all", 8)])
def test_logits_are_the_mean_over_the_versions(tta: str, count: int) -> None:
    images = torch.randn(5, 3, 6, 6)
    made = [version(images, *each) for each in VERSIONS[tta]]  # type: ignore[index]
    assert len({tuple(each.flatten().tolist()) for each in made}) == count  # no version comes twice
    wanted = torch.stack([each[:, :, 0, 0] for each in made]).mean(0)
    torch.testing.assert_close(mean_logits(Corner(), images, Corner()(images), tta), wanted)  # type: ignore[arg-type]
    batch = Batch(images, torch.zeros(5, dtype=torch.int64), torch.arange(5), torch.ones(5, dtype=torch.bool))
    found = predict(Corner(), [batch], device=torch.device("cpu"), precision="fp32", tta=tta)  # type: ignore[arg-type]
    assert found is not None
    np.testing.assert_allclose(found.logits, wanted.numpy(), rtol=1e-6)


def test_flips_and_turns_are_what_they_are_called() -> None:
    image = torch.arange(9.0).reshape(1, 1, 3, 3)
    flips = [version(image, *each) for each in VERSIONS["flips"]]
    wanted = [image, image.flip(3), image.flip(2), image.flip(2, 3)]
    assert all(torch.equal(a, b) for a, b in zip(flips, wanted, strict=True))
    everything = {tuple(version(image, *each).flatten().tolist()) for each in product(range(4), (False, True))}
    assert everything == {tuple(version(image, *each).flatten().tolist()) for each in VERSIONS["all"]}
