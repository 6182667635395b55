"""CKA of unpooled activations: a layer's Gram matrix is made while the activations are there, and they are let go.

A ViT-S keeps 75,648 numbers an image and layer, so nothing is stored: each mini-batch gives [layers, b, b] Grams and
is gone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from analysis.similarity import MIN_IMAGES, Float64, batches_of, hsic_of_grams
from shards.shardset import Split
from train.hooks import Tap, tapped

if TYPE_CHECKING:
    from analysis.session import Session

CHUNK_FEATURES = 8192  # columns centred and multiplied at a time: they stay in the cache


class Side(NamedTuple):
    """A model with its weights, and the layers to look at."""

    model: nn.Module
    taps: Mapping[str, Tap]


def gram(activations: Tensor) -> Float64:
    """K = X X^T [b, b] of activations [b, ...] flattened, columns centred, summed in float64."""
    flat = activations.flatten(1).float()
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
    for part in flat.split(CHUNK_FEATURES, dim=1):
        centred = part - part.mean(0)
        total += centred @ centred.T
    return total.cpu().numpy()


def grams(side: Side, images: Tensor) -> Float64:
    """Gram matrices [L, b, b] of all layers in one forward pass."""
    with tapped(side.model, side.taps) as outputs, torch.inference_mode():
        side.model(images)
        return np.stack([gram(outputs[name]) for name in side.taps])


def token_hsic(sides: Sequence[tuple["Session", str]], minibatch: int, seed: int) -> tuple[Float64, int]:
    """HSIC_1 [sum L, sum L] over all layers of all sides, averaged over keyed mini-batches; and how many images it saw.

    Raises ValueError for a mini-batch or a split too small for unbiased CKA.
    """
    first = sides[0][0]
    split = first.split()
    positions = np.arange(first.num_images(split))
    parts = batches_of(split.sample_ids(positions), batch=minibatch, seed=seed)
    models = []
    for session, state in sides:
        model = session.run.build_model()
        model.load_state_dict(session.state(state))
        models.append(Side(model.to(session.device).eval(), session.taps_of(model)))
    loader = first.loader(Reordered(split, np.concatenate(parts)))
    total, count, images_seen = np.zeros(()), 0, 0
    for images in tqdm(_recut(loader, [len(part) for part in parts]), total=len(parts), unit="batch", disable=None):
        if len(images) < MIN_IMAGES:
            continue
        with first.autocast():
            stack = np.concatenate([grams(side, images.to(first.device)) for side in models])
        total, count, images_seen = total + hsic_of_grams(stack), count + 1, images_seen + len(images)
    if not count:
        raise ValueError("no mini-batch had enough valid images: are the images of the split damaged?")
    return total / count, images_seen


def _recut(loader: object, sizes: Sequence[int]) -> Iterator[Tensor]:
    """The valid images of a loader's batches, cut anew into batches of the given sizes (less what is not valid)."""
    waiting: list[Tensor] = []
    masks: list[Tensor] = []
    left = list(sizes)
    for images, _, _, valid in loader:  # type: ignore[attr-defined]
        waiting.append(images)
        masks.append(valid.to(images.device))
        while left and sum(map(len, waiting)) >= left[0]:
            joined, mask = torch.cat(waiting), torch.cat(masks)
            size = left.pop(0)
            yield joined[:size][mask[:size]]
            waiting, masks = [joined[size:]], [mask[size:]]


class Reordered(Split):
    """A split whose samples stand in another order, or are fewer: position i is the split's own position order[i]."""

    def __init__(self, split: Split, order: np.ndarray):
        self.__dict__.update(split.__dict__)
        self._whole, self._order = split, np.asarray(order, np.int64)
        self.shard_sizes = np.array([len(order)], np.int64)
        self._ends = self.shard_sizes.cumsum()

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of positions in the new order."""
        return self._whole.locate(self._order[np.asarray(positions, np.int64).reshape(-1)])

    def _locate_one(self, position: int) -> tuple[int, int]:
        return self._whole._locate_one(int(self._order[position]))
