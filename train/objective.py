"""The training loss with masks: sums and weights, so that any cut into ranks and micro-batches has the same gradient.

Loss of a global batch = sum over what counts / how much counts. Single-label: valid samples; multi-label: the labels of
valid samples that are not NaN. A rank backpropagates its own sum, scaled by `world / weight of the whole batch`, since
DeepSpeed averages gradients over ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Mix(NamedTuple):
    """Mixup inside fixed pairs (2i, 2i+1): weight of the own sample, float32[b]; 1 where a pair is not mixed."""

    own: Tensor


def counted(labels: Tensor, valid: Tensor) -> Tensor:
    """What counts: bool[b] for class indices int64[b]; bool[b, c] for float targets [b, c] with NaN for ignored."""
    return valid if labels.ndim == 1 else valid[:, None] & ~labels.isnan()


def loss_sum(
    logits: Tensor, labels: Tensor, valid: Tensor, *, label_smoothing: float = 0.0, mix: Mix | None = None
) -> Tensor:
    """Sum of cross-entropy (int64[b]) or binary cross-entropy (float[b, c]) over what counts, float32 scalar.

    Rows that do not count have exactly zero gradient, whatever their (finite) logits.
    """
    mask = counted(labels, valid)
    each = _each(logits.float(), labels, label_smoothing)
    if mix is not None:
        other = _partner(labels)
        partner = _each(logits.float(), other, label_smoothing)
        both = mask & _partner(mask)
        own = torch.where(both, mix.own if labels.ndim == 1 else mix.own[:, None], 1.0)
        each = own * each + torch.where(own < 1, (1 - own) * partner, 0.0)
    return torch.where(mask, each, 0.0).sum()


def mix_images(images: Tensor, mix: Mix) -> Tensor:
    """Images [b, c, h, w] with each pair mixed by the weights of its two samples."""
    own = mix.own[:, None, None, None].to(images.dtype)
    return own * images + (1 - own) * _partner(images)


def _partner(values: Tensor) -> Tensor:
    return values.view(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)


def _each(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
    return F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(labels), reduction="none")
