"""The training loss with masks: sums and weights, so that any cut into ranks and micro-batches has the same gradient.

Loss of a global batch = sum over what counts / how much counts. Single-label: valid samples; multi-label: the labels of
valid samples that are not NaN. A rank backpropagates its own sum, scaled by `world / weight of the whole batch`, since
DeepSpeed averages gradients over ranks.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from train.mixing import Mix


class Inputs(NamedTuple):
    """A rank's part of a global batch of b images, as it enters the net: on its device, mixed."""

    views: list[Tensor]  # each float[b, channels, h, w]
    labels: Tensor  # int64[b], or float[b, classes] with NaN for ignored
    valid: Tensor  # bool[b]
    mixes: list[Mix | None]  # one a view

    def part(self, rows: slice) -> "Inputs":
        """Some whole pairs of it."""
        mixes = [None if mix is None else mix.part(rows) for mix in self.mixes]
        return Inputs([view[rows] for view in self.views], self.labels[rows], self.valid[rows], mixes)


def counted(labels: Tensor, valid: Tensor) -> Tensor:
    """What counts: bool[b] for class indices int64[b]; bool[b, c] for float targets [b, c] with NaN for ignored."""
    return valid if labels.ndim == 1 else valid[:, None] & ~labels.isnan()


def total_weight(labels: Tensor, valid: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """How much counts, a scalar: the number of what counts, or the sum of its classes' weights."""
    if class_weights is None:
        return counted(labels, valid).sum()
    return (class_weights[labels] * valid).sum()


def divisor(weight: float) -> float:
    """What a sum is divided by for its mean: the weight of a global batch; 1 where nothing counts."""
    return weight if weight > 0 else 1.0


def stand_ins(images: Tensor, valid: Tensor) -> Tensor:
    """Images [b, c, h, w] with rows that count in the place of those that do not, in turn; as they are where none does.

    The loss leaves them out in any case; BatchNorm's statistics would take an unreadable image, all zeros, for one.
    """
    good, bad = valid.nonzero().flatten(), (~valid).nonzero().flatten()
    if not len(good) or not len(bad):
        return images
    rows = torch.arange(len(valid), device=valid.device)
    rows[bad] = good[torch.arange(len(bad), device=valid.device) % len(good)]
    return images[rows.to(images.device)]


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Class weights n / (classes that occur * n_c), mean 1 over samples, 0 for a class without one: scikit-learn's."""
    present = sum(count > 0 for count in counts)
    return [sum(counts) / (present * count) if count else 0.0 for count in counts]


def loss_sum(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor,
    *,
    label_smoothing: float = 0.0,
    mix: Mix | None = None,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Sum of cross-entropy (int64[b]) or binary cross-entropy (float[b, c]) over what counts, float32 scalar.

    Rows that do not count have exactly zero gradient, whatever their (finite) logits. `class_weights` float32[classes]
    multiply the terms of their classes (single-label).
    """
    mask = counted(labels, valid)
    each = _each(logits.float(), labels, label_smoothing, class_weights)
    if mix is not None:
        other = _partner(labels)
        partner = _each(logits.float(), other, label_smoothing, class_weights)
        both = mask & _partner(mask)
        own = torch.where(both, mix.own if labels.ndim == 1 else mix.own[:, None], 1.0)
        each = own * each + torch.where(own < 1, (1 - own) * partner, 0.0)
    return torch.where(mask, each, 0.0).sum()


def views_loss(
    net: Callable[[Tensor], Tensor],
    views: Sequence[Tensor],
    labels: Tensor,
    valid: Tensor,
    *,
    mixes: Sequence[Mix | None],
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """`loss_sum` of each view [b, C, h, w] of the images, and of these sums the mean, float32 scalar.

    Views of one size that stand together go through the net together.
    """
    logits: list[Tensor] = []
    for _, same in groupby(views, key=lambda view: view.shape):
        group = list(same)
        logits += net(group[0] if len(group) == 1 else torch.cat(group)).chunk(len(group))
    sums = [
        loss_sum(each, labels, valid, label_smoothing=label_smoothing, mix=mix, class_weights=class_weights)
        for each, mix in zip(logits, mixes, strict=True)
    ]
    return sums[0] if len(sums) == 1 else torch.stack(sums).mean()


def _partner(values: Tensor) -> Tensor:
    return values.view(-1, 2, *values.shape[1:]).flip(1).reshape(values.shape)


def _each(logits: Tensor, labels: Tensor, label_smoothing: float, class_weights: Tensor | None) -> Tensor:
    if labels.ndim == 1:
        each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=label_smoothing)
        return each if class_weights is None else class_weights[labels] * each
    return F.binary_cross_entropy_with_logits(logits, torch.nan_to_num(labels), reduction="none")
