"""CKA of unpooled activations, which are never stored: a ViT-S keeps 75,648 numbers an image and layer.

Mini-batches: Grams are made while the activations of a batch are there. Whole split: the n x n Grams of all layers
exist one tile at a time. The activations of a block of rows are held, those of all later images pass by batch after
batch, and each tile leaves three things behind:

    T = sum_ij K~_ij L~_ij for all pairs of layers [L, L], the row sums of each K~ [L, n], and is gone.

With them HSIC_1 = [T + (1^T K~ 1)(1^T L~ 1) / ((n-1)(n-2)) - 2 / (n-2) (K~ 1).(L~ 1)] / (n (n-3)), the formula of
`similarity.py` written over tiles. Memory is the held block, which `memory` bounds; with B blocks the images are passed
through the models (B + 1) / 2 times.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from analysis.grams import cross, grams
from analysis.similarity import MIN_IMAGES, Float64, batches_of, hsic_of_grams, hsic_of_sums
from shards.shardset import Split
from train.hooks import Tap, tapped

if TYPE_CHECKING:
    from analysis.session import Session

FLOAT32 = 4  # bytes


class Side(NamedTuple):
    """A model with its weights, the layers to look at, and whose images it takes."""

    session: "Session"
    model: nn.Module
    taps: Mapping[str, Tap]

    def activations(self, images: Tensor) -> list[Tensor]:
        """Outputs of all taps [b, ...] in one forward pass."""
        with tapped(self.taps) as outputs, torch.inference_mode(), self.session.autocast():
            self.model(images.to(self.session.device))
            return [outputs[name] for name in self.taps]


class TokenHsic(NamedTuple):
    """HSIC_1 of unpooled activations: of each mini-batch [m, L, L], or of the whole split as the only one."""

    batches: Float64
    images: int
    passes: float = 1.0  # forward passes an image


def token_hsic(
    states: Sequence[tuple["Session", str]], minibatch: int, seed: int, *, as_stored: bool = False
) -> TokenHsic:
    """HSIC_1 over all layers of all sides, in keyed mini-batches, or (the published way) in the order of the shards.

    Raises ValueError for a mini-batch or a split too small for unbiased CKA.
    """
    first = states[0][0]
    split, total = first.split(), first.num_images(first.split())
    parts = batches_of(split.sample_ids(np.arange(total)), batch=minibatch, seed=seed)
    if as_stored:
        parts = np.split(np.arange(total), range(minibatch, total, minibatch))
    sides, order = _sides(states), np.concatenate(parts)
    streams = [
        _recut(session.loader(Reordered(split, order)), [len(part) for part in parts]) for session in _distinct(sides)
    ]
    found, seen = [], 0
    with first.progress(total, "tokens") as bar:
        for part, batch in zip(parts, zip(*streams, strict=True), strict=True):
            images = _together(batch)
            bar.update(len(part))
            if len(images[0]) < MIN_IMAGES:
                continue
            found.append(hsic_of_grams(grams(_activations(sides, images))))
            seen += len(images[0])
    if not found:
        raise ValueError("no mini-batch had enough valid images: are the images of the split damaged?")
    return TokenHsic(np.stack(found), seen)


def whole_token_hsic(states: Sequence[tuple["Session", str]], memory: float) -> TokenHsic:
    """HSIC_1 over all layers of all sides and the whole split, by tiles within about `memory` bytes.

    Raises ValueError where `memory` holds no batch, or the split is too small.
    """
    first, sides = states[0][0], _sides(states)
    total, start, passed = first.num_images(first.split()), 0, 0
    tiles = _Tiles(sum(len(side.taps) for side in sides), total)
    with first.progress(None, "tiles") as bar:
        while start < total:
            held: list[_Rows] = []
            room, end = 0, start
            for rows in tiles.rows(sides, start):
                room = room or _batches_within(memory, rows)
                if len(held) < room:
                    held.append(rows)
                    end += rows.taken
                for earlier in held:
                    tiles.add(earlier, rows)
                passed += rows.taken
                bar.update(rows.taken)
            start = end
    return TokenHsic(tiles.hsic()[None], tiles.images, passed / total)


class _Rows(NamedTuple):
    """One batch as rows of every layer's Gram matrix, less the reference."""

    places: np.ndarray  # int64[b], of valid images only
    layers: list[Tensor]  # float32[b, d] each
    taken: int  # images of the split, damaged ones too

    @property
    def bytes(self) -> int:
        return FLOAT32 * sum(layer.numel() for layer in self.layers)


class _Tiles:
    """What tiles leave behind: sums over pairs of layers, and over rows."""

    def __init__(self, layers: int, total: int):
        self.trace = np.zeros((layers, layers))
        self.sums = np.zeros((layers, total))
        self.valid = np.zeros(total, bool)
        self.reference: list[
            Tensor
        ] = []  # the mean of the first batch: what it is does not matter, that it is near does

    def rows(self, sides: Sequence[Side], start: int) -> Iterator[_Rows]:
        """The split's batches from image `start` on, as rows."""
        session, total = sides[0].session, len(self.valid)
        loaders = [each.loader(each.split(), start) for each in _distinct(sides)]
        for batches in zip(*loaders, strict=True):
            taken = min(len(batches[0][0]), total - start)
            inside = torch.arange(len(batches[0][0])) < taken
            keep = torch.stack([batch[3].to(inside.device) for batch in batches]).all(0) & inside
            outputs = _activations(sides, [batch[0][keep.to(batch[0].device)] for batch in batches])
            flat = [each.flatten(1).float() for each in outputs]
            self.reference = self.reference or [each.mean(0) for each in flat]
            places = start + keep.nonzero().flatten().numpy()
            self.valid[places] = True
            yield _Rows(places, [each - mean for each, mean in zip(flat, self.reference, strict=True)], taken)
            start += taken
            if start >= total:
                return
        assert start == total, f"{session.run.name}: the loader ended at image {start} of {total}"

    def add(self, upper: _Rows, lower: _Rows) -> None:
        """A tile of all layers, and its mirror image below the diagonal."""
        tile = np.stack([cross(*pair).cpu().numpy() for pair in zip(upper.layers, lower.layers, strict=True)])
        flat = tile.reshape(len(tile), -1)
        if upper is lower:
            diagonal = np.arange(len(upper.places))
            tile[:, diagonal, diagonal] = 0
            self.trace += flat @ flat.T
        else:
            self.trace += 2 * flat @ flat.T
            self.sums[:, lower.places] += tile.sum(1)
        self.sums[:, upper.places] += tile.sum(2)

    @property
    def images(self) -> int:
        return int(self.valid.sum())

    def hsic(self) -> Float64:
        return hsic_of_sums(self.trace, self.sums[:, self.valid])


def _batches_within(memory: float, rows: _Rows) -> int:
    """Batches that may be held beside the one that passes and the outputs it is made of."""
    fitting = int(memory // max(1, rows.bytes)) - 2
    if fitting < 1:
        raise ValueError(
            f"--memory {memory / 1e9:g} GB holds no batch: {len(rows.places)} images are {rows.bytes / 1e9:.2g} GB of "
            f"activations; give --memory {3 * rows.bytes / 1e9:.2g} or more, fewer --layers, or a smaller --batch"
        )
    return fitting


def _sides(states: Sequence[tuple["Session", str]]) -> list[Side]:
    sides = []
    for session, state in states:
        model = session.run.build_model()
        model.load_state_dict(session.state(state))
        sides.append(Side(session, model.to(session.device).eval(), session.taps_of(model)))
    return sides


def _distinct(sides: Sequence[Side]) -> list["Session"]:
    """One session for every transform: models that take the same pixels share a decoding."""
    return list({repr(side.session.transform): side.session for side in sides}.values())


def _activations(sides: Sequence[Side], images: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of all layers of all sides; `images` in the order of `_distinct`."""
    of = dict(zip((repr(session.transform) for session in _distinct(sides)), images, strict=True))
    return [output for side in sides for output in side.activations(of[repr(side.session.transform)])]


class _Cut(NamedTuple):
    """A batch cut anew."""

    images: Tensor
    valid: Tensor


def _together(batch: Sequence[_Cut]) -> list[Tensor]:
    """The images that are valid under every transform."""
    keep = torch.stack([each.valid.cpu() for each in batch]).all(0)
    return [each.images[keep.to(each.images.device)] for each in batch]


def _recut(loader: Iterable[Any], sizes: Sequence[int]) -> Iterator[_Cut]:
    """A loader's batches, cut anew into batches of the given sizes."""
    waiting: list[Tensor] = []
    masks: list[Tensor] = []
    left = list(sizes)
    for images, _, _, valid, *_ in loader:
        waiting.append(images)
        masks.append(valid)
        while left and sum(map(len, waiting)) >= left[0]:
            joined, mask = torch.cat(waiting), torch.cat(masks)
            size = left.pop(0)
            yield _Cut(joined[:size], mask[:size])
            waiting, masks = [joined[size:]], [mask[size:]]


class Reordered(Split):
    """A split whose samples stand in another order, or are fewer: position i is the split's own position order[i]."""

    def __init__(self, split: Split, order: np.ndarray):
        self.__dict__.update(split.__dict__)
        self._whole, self._order = split, np.asarray(order, np.int64)
        self.shard_sizes = np.array([len(order)], np.int64)
        self._ends = self.shard_sizes.cumsum()

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of positions in the new order.

        All int64[n].
        """
        return self._whole.locate(self._order[np.asarray(positions, np.int64).reshape(-1)])

    def _locate_one(self, position: int) -> tuple[int, int]:
        return self._whole._locate_one(int(self._order[position]))
