"""Mixup and CutMix inside fixed pairs of a batch, drawn for the pair's first sample: alike on any number of ranks."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from shards.draws import uniform
from train.config import Training


class Mix(NamedTuple):
    """Pairs (2i, 2i + 1). `own`: weight of the own sample, float32[b]; 1 where a pair is not mixed.

    `boxes`: int64[b, 4] (top, left, bottom, right, pixels) that is taken from the partner; none: images are blended.
    Pairs with an empty box are blended by `own`.
    """

    own: Tensor
    boxes: Tensor | None = None

    def part(self, rows: slice) -> "Mix":
        """The mix of some whole pairs."""
        return Mix(self.own[rows], None if self.boxes is None else self.boxes[rows])


def draw_mix(config: Training, step: int, sample_ids: Tensor, valid: Tensor, size: Sequence[int]) -> Mix | None:
    """What the config's alphas ask for; None where they are 0. Pairs with a sample that does not count stay.

    Mixup: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", own weight from Beta(alpha, alpha). CutMix:
    Yun et al. 2019, equations 1 and 2, a box of the share 1 - own at a uniform place, cut off at the border. With both,
    each pair takes one or the other, as likely.

    `sample_ids` int64[b], `valid` bool[b]; `size` is (height, width) in pixels.
    """
    if not (config.mixup or config.cutmix):
        return None
    first = sample_ids.cpu().numpy().view(np.uint64)[::2]
    blend = uniform(config.seed, step, first, 0, 0, "mixup", 1)[:, 0]
    own = betaincinv(config.mixup, config.mixup, blend) if config.mixup else np.ones(len(first))
    boxes = np.zeros((len(first), 4), np.int64)
    if config.cutmix:
        drawn = uniform(config.seed, step, first, 0, 0, "cutmix", 4)
        cut = (drawn[:, 3] < 0.5) if config.mixup else np.ones(len(first), bool)
        boxes[cut] = draw_boxes(betaincinv(config.cutmix, config.cutmix, drawn[cut, 0]), drawn[cut, 1:3], size)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        own = np.where(cut, 1 - area / (size[0] * size[1]), own)
    both = (valid[::2] & valid[1::2]).cpu().numpy()
    own, boxes = np.where(both, own, 1.0), np.where(both[:, None], boxes, 0)
    pairs = [
        torch.from_numpy(each).to(valid.device).repeat_interleave(2, 0) for each in (own.astype(np.float32), boxes)
    ]
    return Mix(pairs[0], pairs[1] if config.cutmix else None)


def draw_boxes(own: np.ndarray, centres: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """int64[n, 4] from wanted own weights float64[n] and centres float64[n, 2] in 0..1, cut off at the border."""
    sides = np.sqrt(1 - own)[:, None] * np.array(size)
    middle = np.floor(centres * np.array(size))
    low = np.clip(np.floor(middle - sides / 2), 0, size)
    high = np.clip(np.floor(middle + sides / 2), 0, size)
    return np.concatenate([low, high], axis=1).astype(np.int64)


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Images [b, c, h, w] with each pair blended, or boxes exchanged."""
    partner = images.view(-1, 2, *images.shape[1:]).flip(1).reshape(images.shape)
    weight = mix.own[:, None, None, None].to(images.dtype)
    if mix.boxes is None:
        return weight * images + (1 - weight) * partner
    rows = torch.arange(images.shape[2], device=images.device)
    columns = torch.arange(images.shape[3], device=images.device)
    top, left, bottom, right = (edge[:, None] for edge in mix.boxes.unbind(1))
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    boxed = inside.any(dim=(1, 2))[:, None, None, None]
    blended = torch.where(boxed | (weight == 1), images, weight * images + (1 - weight) * partner)
    return torch.where(inside[:, None], partner, blended)
