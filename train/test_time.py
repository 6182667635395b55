"""Test-time augmentation: logits averaged over an image and its mirrored or turned versions.

All are exact permutations of pixels. Simonyan and Zisserman 2015, "Very Deep Convolutional Networks for Large-Scale
Image Recognition", section 4, average over mirrored images; tissue and skin have no up either.
"""

from typing import Literal

import torch
from torch import Tensor, nn

Tta = Literal["none", "flips", "rotations", "all"]
# Quarter turns, then whether the image is mirrored; the image as it is comes first.
VERSIONS: dict[Tta, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, True), (2, False)),
    "rotations": ((0, False), (1, False), (2, False), (3, False)),
    "all": tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}


def version(images: Tensor, turns: int, mirrored: bool) -> Tensor:
    """Square images [b, c, s, s] turned counterclockwise by quarters, then mirrored from left to right."""
    turned = torch.rot90(images, turns, (2, 3))
    return turned.flip(3) if mirrored else turned


def mean_logits(model: nn.Module, images: Tensor, logits: Tensor, tta: Tta) -> Tensor:
    """float32[b, classes]: the mean over all versions; `logits` are those of the images as they are."""
    total = logits
    for turns, mirrored in VERSIONS[tta][1:]:
        total = total + model(version(images, turns, mirrored)).float()
    return total / len(VERSIONS[tta])
