"""Operators as data: frozen dataclasses that turn uniforms into parameters, and leave the pixels to executors.

An operator's `draw` maps u float64[b, uniforms] and the sizes int64[b, 2] (height, width) that images have there to
named arrays [b, …] and the sizes after it. Meaning and distribution are those of torchvision's v2 transform of that
name on uint8 tensors. Here: the base, windows, sizes and flips; `shards.warps` and `shards.colours` hold the others.
"""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from shards.draws import DrawKeys

Params = dict[str, np.ndarray]
Size = tuple[int, int]
Kernel = Literal["bilinear", "bicubic"]  # of an antialiased resize
KERNELS = ("bilinear", "bicubic")
CROP_TRIES = 10  # torchvision's RandomResizedCrop and RandomErasing try so often
LARGEST_SIDE = 16384
MOST_TIMES = 1000.0  # of an area, an aspect, a zoom: far beyond what moves a window, and no number overflows
LARGEST_VALUE = 65504.0  # of float16


def require(condition: bool, message: str) -> None:
    """ValueError with the message where the condition does not hold."""
    if not condition:
        raise ValueError(message)


def check_probability(name: str, p: float) -> None:
    """Refuse a p outside 0..1."""
    require(0.0 <= p <= 1.0, f"{name}: p is {p}; give a probability within 0..1")


def check_range(name: str, what: str, pair: Sequence[float], low: float, high: float = np.inf) -> None:
    """Refuse a pair that does not ascend within low..high."""
    fine = len(pair) == 2 and low <= pair[0] <= pair[1] <= high
    require(fine, f"{name}: {what} is {tuple(pair)}; give two ascending numbers within {low}..{high}")


def check_choice(name: str, what: str, value: Any, known: Sequence[str]) -> None:
    """Refuse a value that is none of the known."""
    require(value in known, f"{name}: {what} is {reprlib.repr(value)}; known: {', '.join(known)}")


def as_size(name: str, size: int | Sequence[int]) -> Size:
    """(height, width) of a side or a pair, pixels. ValueError outside 1..16384."""
    pair = (size, size) if isinstance(size, int) else tuple(size)
    fine = len(pair) == 2 and all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in pair)
    require(fine, f"{name}: size is {size}; give one or two whole numbers of 1 to {LARGEST_SIDE} pixels")
    return pair[0], pair[1]


def between(u: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    """Uniforms stretched to low..high.

    `u` float64[b, …] in (0, 1), bounds that broadcast to it.
    """
    return low + u * (high - low)


def below(u: np.ndarray, limit: np.ndarray | int) -> np.ndarray:
    """Whole numbers 0 <= n < limit, int64.

    `u` float64[b, …] in (0, 1), limits that broadcast to it.
    """
    return np.minimum(np.floor(u * limit), np.asarray(limit) - 1).astype(np.int64)


@dataclass(frozen=True)
class More:
    """Further uniforms of one operator, for rejection sampling: each try has blocks of its own."""

    keys: DrawKeys
    name: str

    def __call__(self, rows: np.ndarray, n: int, first_block: int) -> np.ndarray:
        """float64[len(rows), n] from a block on, for some of the samples."""
        return self.keys.rows(rows).uniform(self.name, n, first_block)


@dataclass(frozen=True)
class Operator:
    """One step; this one draws nothing."""

    eight_bits_only: ClassVar[bool] = False  # has no meaning, or no executor, on 16 bits
    sixteen_bits_only: ClassVar[bool] = False  # has no meaning on 8 bits
    colours_only: ClassVar[bool] = False  # has no meaning on one channel

    @property
    def uniforms(self) -> int:
        """How many uniforms `draw` wants for each sample."""
        return 0

    def told(self, values: Params) -> str:
        """One sample's drawn values in words, for a sheet."""
        shown = {name: value for name, value in values.items() if name not in ("active", "matrix", "offset")}
        return " ".join(f"{name} {(np.round(value, 2) + 0).tolist()}" for name, value in shown.items())

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """Parameters, each [b, …], and the sizes after the operator, int64[b, 2].

        `u` float64[b, uniforms] in (0, 1); `sizes` int64[b, 2], height and width before it, in pixels.
        """
        return {}, sizes


@dataclass(frozen=True)
class Chance(Operator):
    """An operator that acts on a sample with probability p; the first uniform decides: `active` bool[b]."""

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(type(self).__name__, self.p)

    @property
    def uniforms(self) -> int:
        """The deciding number alone."""
        return 1

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """Whether each sample is acted on, `active` bool[b]."""
        return {"active": u[:, 0] < self.p}, sizes


@dataclass(frozen=True)
class HorizontalFlip(Chance):
    """Left and right exchanged."""


@dataclass(frozen=True)
class VerticalFlip(Chance):
    """Top and bottom exchanged."""


@dataclass(frozen=True)
class Rotate90(Chance):
    """With probability p a turn by 90, 180 or 270 degrees, each as likely as the others; exact."""

    p: float = 0.75

    @property
    def uniforms(self) -> int:
        """The decision and the number of quarter turns."""
        return 2

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """Quarter turns counterclockwise, int64[b] 0..3."""
        turns = np.where(u[:, 0] < self.p, 1 + below(u[:, 1], 3), 0)
        return {"turns": turns}, np.where((turns % 2 == 1)[:, None], sizes[:, ::-1], sizes)


@dataclass(frozen=True)
class Resize(Operator):
    """Antialiased resize: an int is the short side, (height, width) squashes.

    rounded: bytes come out as bytes. False leaves float32 levels between two, as evaluation wants them: executors then
    agree to a thousandth of a level. Behind it pixels may only be moved and normalised (`check_unrounded`).
    """

    size: int | Size = 256
    interpolation: Kernel = "bilinear"
    rounded: bool = True

    def __post_init__(self) -> None:
        as_size("Resize", self.size)
        check_choice("Resize", "interpolation", self.interpolation, KERNELS)
        require(isinstance(self.rounded, bool), f"Resize: rounded is {reprlib.repr(self.rounded)}; give true or false")

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`size` int64[b, 2]; the long side is truncated, as torchvision does."""
        if isinstance(self.size, int):
            target = self.size * sizes // sizes.min(axis=1, keepdims=True)
        else:
            target = np.broadcast_to(np.array(self.size, np.int64), sizes.shape)
        return {"size": target}, target


@dataclass(frozen=True)
class CenterCrop(Operator):
    """The middle window, padded with zeros where the image is smaller."""

    size: int | Size = 224

    def __post_init__(self) -> None:
        as_size("CenterCrop", self.size)

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`window` int64[b, 4] (top, left, height, width), rounded as torchvision does, padding first."""
        target = np.array(as_size("CenterCrop", self.size), np.int64)
        before = np.maximum(target - sizes, 0) // 2
        start = np.rint((np.maximum(sizes, target) - target) / 2.0).astype(np.int64) - before
        target = np.broadcast_to(target, sizes.shape)
        return {"window": np.concatenate([start, target], axis=1)}, target


@dataclass(frozen=True)
class RandomCrop(Operator):
    """A window of fixed size at random, after `padding` pixels of zeros on every side."""

    size: int | Size = 224
    padding: int = 0

    def __post_init__(self) -> None:
        as_size("RandomCrop", self.size)
        fine = 0 <= self.padding <= LARGEST_SIDE
        require(fine, f"RandomCrop: padding is {self.padding}; give 0 to {LARGEST_SIDE} pixels")

    @property
    def uniforms(self) -> int:
        """Top and left."""
        return 2

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`window` int64[b, 4], which may reach into the padding. ValueError where an image is too small."""
        target = np.array(as_size("RandomCrop", self.size), np.int64)
        start = below(u, self.check(sizes) + 1) - self.padding
        return {"window": np.concatenate([start, np.broadcast_to(target, sizes.shape)], axis=1)}, np.broadcast_to(
            target, sizes.shape
        )

    def check(self, sizes: np.ndarray) -> np.ndarray:
        """How far a window can move, int64[b, 2]. ValueError where an image is too small."""
        target = np.array(as_size("RandomCrop", self.size), np.int64)
        room = sizes + 2 * self.padding - target
        if (room < 0).any():
            height, width = sizes[(room < 0).any(axis=1)][0]
            raise ValueError(
                f"RandomCrop: {target[0]} x {target[1]} does not fit an image of {height} x {width} with padding "
                f"{self.padding}: crop less, pad more, or put a Resize before it"
            )
        return room


@dataclass(frozen=True)
class Boxes:
    """Windows of random area and aspect by torchvision's ten tries."""

    scale: tuple[float, float]  # share of the area
    ratio: tuple[float, float]
    erasing: bool = False  # RandomErasing's rule: the ratio is height / width, a box as large as a side is refused

    def attempt(self, u: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One try from u float64[b, 4]: windows int64[b, 4] and whether each fits."""
        area = sizes[:, 0] * sizes[:, 1] * between(u[:, 0], *self.scale)
        aspect = np.exp(between(u[:, 1], np.log(self.ratio[0]), np.log(self.ratio[1])))
        if self.erasing:
            aspect = 1.0 / aspect
        box = np.rint(np.sqrt(np.stack([area / aspect, area * aspect], axis=1))).astype(np.int64)
        fits = (box < sizes if self.erasing else (box <= sizes) & (box > 0)).all(axis=1)
        return np.concatenate([below(u[:, 2:4], np.maximum(sizes - box + 1, 1)), box], axis=1), fits

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More, first_block: int) -> tuple[np.ndarray, np.ndarray]:
        """Windows and who found one; the first try's uniforms are u, the others' start at `first_block`."""
        windows, fits = self.attempt(u, sizes)
        lost, tries = np.flatnonzero(~fits), CROP_TRIES - 1
        if len(lost):  # the other tries of all who need them in one pass: call by call costs more than the numbers
            others = more(lost, 4 * tries, first_block).reshape(-1, 4)
            found, good = self.attempt(others, np.repeat(sizes[lost], tries, axis=0))
            first, rows = np.argmax(good.reshape(-1, tries), axis=1), np.arange(len(lost))
            windows[lost] = found.reshape(-1, tries, 4)[rows, first]
            fits[lost] = good.reshape(-1, tries)[rows, first]
        return windows, fits


@dataclass(frozen=True)
class RandomResizedCrop(Operator):
    """A window of random share of the area and aspect (width / height), resized; else the largest central one.

    A scale above 1 is allowed: then most tries fail, and the fall-back comes oftener, as in torchvision.
    """

    size: int | Size = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Kernel = "bilinear"

    def __post_init__(self) -> None:
        as_size("RandomResizedCrop", self.size)
        check_choice("RandomResizedCrop", "interpolation", self.interpolation, KERNELS)
        check_range("RandomResizedCrop", "scale", self.scale, 1e-9, MOST_TIMES)
        check_range("RandomResizedCrop", "ratio", self.ratio, 1 / MOST_TIMES, MOST_TIMES)

    @property
    def uniforms(self) -> int:
        """Area, aspect, top, left of the first try."""
        return 4

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`window` int64[b, 4] of the image and the `size` it is resized to."""
        windows, fits = Boxes(self.scale, self.ratio).draw(u, sizes, more, first_block=1)
        if not fits.all():
            windows[~fits] = self._central(sizes[~fits])
        target = np.broadcast_to(np.array(as_size("", self.size), np.int64), sizes.shape)
        return {"window": windows, "size": target}, target

    def _central(self, sizes: np.ndarray) -> np.ndarray:
        height, width = sizes[:, 0], sizes[:, 1]
        aspect = width / height
        h = np.where(aspect < self.ratio[0], np.rint(width / self.ratio[0]), height).astype(np.int64)
        w = np.where(aspect > self.ratio[1], np.rint(height * self.ratio[1]), width).astype(np.int64)
        return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1)


@dataclass(frozen=True)
class Normalize(Operator):
    """(level / largest level - mean) / std per channel: uint8 or uint16 [h, w, c] becomes float32 [c, h, w]."""

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __post_init__(self) -> None:
        fine = len(self.mean) == len(self.std) and len(self.mean) > 0
        require(fine, f"Normalize: {len(self.mean)} means and {len(self.std)} stds; give one of each a channel")
        require(all(0 < s <= 1e6 for s in self.std), f"Normalize: std is {self.std}; give numbers above 0, 1e6 at most")
        fine = all(abs(m) <= 1e6 for m in self.mean)
        require(fine, f"Normalize: mean is {self.mean}; give numbers within -1e6..1e6, on the scale of 0..1")


@dataclass(frozen=True)
class Erasing(Chance):
    """A box of random area and aspect (height / width) set to `value`, after normalisation."""

    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("Erasing", "scale", self.scale, 0.0, 1.0)
        check_range("Erasing", "ratio", self.ratio, 1 / MOST_TIMES, MOST_TIMES)
        fine = abs(self.value) <= LARGEST_VALUE
        require(fine, f"Erasing: value is {self.value}; give a number within -{LARGEST_VALUE}..{LARGEST_VALUE}")

    @property
    def uniforms(self) -> int:
        """The first try's box, then the decision."""
        return 5

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`window` int64[b, 4]; inactive where ten tries found none."""
        windows, fits = Boxes(self.scale, self.ratio, erasing=True).draw(u[:, :4], sizes, more, first_block=2)
        active = (u[:, 4] < self.p) & fits
        return {"active": active, "window": np.where(fits[:, None], windows, 0)}, sizes
