"""Transforms as data: an ordered tuple of operators, and the drawing of their parameters outside the pixels.

`Transform.draw` turns the names of b samples (seed, epoch, sample id, occurrence) and their stored sizes into arrays of
parameters. An executor then applies these; neither it nor a graph of DALI ever draws a number. The meaning and the
distribution of each operator's parameters are torchvision's (transforms v2), on the stored image.

Every transform has the same shape: one geometry (which window of the stored image becomes which output), flips, and the
normalisation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shards.draws import DrawKeys

CROP_TRIES = 10  # torchvision's RandomResizedCrop tries so often before it falls back to the centre
Size = tuple[int, int]


class Geometry(NamedTuple):
    """For b samples: a window of the stored image is resized whole, and the output is cut from that."""

    windows: np.ndarray  # int64[b, 4]: top, left, height, width in the stored image, pixels
    resized: np.ndarray  # int64[b, 2]: height and width that the window is resized to
    corners: np.ndarray  # int64[b, 2]: top and left of the output within the resized window
    size: Size  # height and width of the output


class Parameters(NamedTuple):
    """All that was drawn for b samples."""

    geometry: Geometry
    hflip: np.ndarray  # bool[b]
    vflip: np.ndarray  # bool[b]

    def rows(self, chosen: np.ndarray) -> "Parameters":
        """The parameters of some of the samples."""
        g = self.geometry
        return Parameters(
            Geometry(g.windows[chosen], g.resized[chosen], g.corners[chosen], g.size),
            self.hflip[chosen],
            self.vflip[chosen],
        )


def _check_size(operator: str, size: Size) -> None:
    if len(size) != 2 or not all(1 <= side <= 16384 for side in size):
        raise ValueError(f"{operator}: size is {size}; give (height, width) of 1 to 16384 pixels")


def _check_probability(operator: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{operator}: p is {p}; give a probability within 0..1")


@dataclass(frozen=True)
class RandomResizedCrop:
    """A window of a random share of the area and a random aspect, resized to `size`; torchvision's RandomResizedCrop.

    scale: share of the image's area, above 1 allowed (then most tries fail and the fall-back comes oftener, as there).
    ratio: width / height.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _check_size("RandomResizedCrop", self.size)
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ValueError(f"RandomResizedCrop: {name} is ({low}, {high}); give two numbers, 0 < low <= high")

    def geometry(self, keys: DrawKeys, heights: np.ndarray, widths: np.ndarray) -> Geometry:
        """The first of ten windows that fits, or the largest central one within the ratio."""
        area, aspect, down, right = keys.uniform("RandomResizedCrop", 4 * CROP_TRIES).reshape(-1, CROP_TRIES, 4).T
        whole_height, whole_width = heights.astype(np.float64), widths.astype(np.float64)
        target = whole_height * whole_width * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)  # [tries, b]
        low, high = np.log(self.ratio)
        aspect = np.exp(low + (high - low) * aspect)
        width, height = np.rint(np.sqrt(target * aspect)), np.rint(np.sqrt(target / aspect))
        fits = (width > 0) & (width <= whole_width) & (height > 0) & (height <= whole_height)
        first, each = fits.argmax(0), np.arange(len(heights))
        height, width = height[first, each], width[first, each]
        top = np.floor(down[first, each] * (whole_height - height + 1))
        left = np.floor(right[first, each] * (whole_width - width + 1))
        windows = np.stack([top, left, height, width], axis=1)
        lost = ~fits.any(0)
        windows[lost] = self._central(whole_height[lost], whole_width[lost])
        return _whole_output(windows.astype(np.int64), self.size)

    def _central(self, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        aspect = widths / heights
        width = np.where(aspect > self.ratio[1], np.rint(heights * self.ratio[1]), widths)
        height = np.where(aspect < self.ratio[0], np.rint(widths / self.ratio[0]), heights)
        return np.stack([(heights - height) // 2, (widths - width) // 2, height, width], axis=1)


@dataclass(frozen=True)
class ResizeCenterCrop:
    """The whole image resized, then its centre: the transform of evaluation.

    resize: the short side in pixels, aspect kept; or (height, width), which squashes (the study's). size: of the crop.
    """

    resize: int | Size
    size: Size

    def __post_init__(self) -> None:
        _check_size("ResizeCenterCrop", self.size)
        resize = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        _check_size("ResizeCenterCrop", resize)
        if resize[0] < self.size[0] or resize[1] < self.size[1]:
            raise ValueError(
                f"ResizeCenterCrop: the crop {self.size[0]} x {self.size[1]} is larger than the image resized to "
                f"{self.resize}: resize to at least {max(self.size)}, or crop less"
            )

    def geometry(self, keys: DrawKeys, heights: np.ndarray, widths: np.ndarray) -> Geometry:
        """The whole image as the window; nothing is drawn."""
        sides = np.stack([heights, widths], axis=1).astype(np.int64)
        if isinstance(self.resize, int):
            resized = self.resize * sides // sides.min(1, keepdims=True)  # torchvision truncates the long side
        else:
            resized = np.broadcast_to(np.array(self.resize, np.int64), sides.shape).copy()
        corners = np.rint((resized - np.array(self.size)) / 2).astype(np.int64)
        return Geometry(np.concatenate([np.zeros_like(sides), sides], axis=1), resized, corners, self.size)


@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("HorizontalFlip", self.p)


@dataclass(frozen=True)
class VerticalFlip:
    """Top and bottom exchanged with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("VerticalFlip", self.p)


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std for each channel, x on the 0..1 scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"Normalize: {len(self.mean)} means and {len(self.std)} stds; give one of each a channel")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"Normalize: std is {self.std}; give numbers above 0")


@dataclass(frozen=True)
class Transform:
    """Stored image -> float32[C, H, W]: a geometry, flips and the normalisation."""

    geometry: RandomResizedCrop | ResizeCenterCrop
    normalize: Normalize
    hflip: HorizontalFlip = HorizontalFlip(0.0)
    vflip: VerticalFlip = VerticalFlip(0.0)

    @property
    def size(self) -> Size:
        """Height and width of the output, pixels."""
        return self.geometry.size

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return len(self.normalize.mean)

    def draw(self, keys: DrawKeys, heights: np.ndarray, widths: np.ndarray) -> Parameters:
        """Parameters of b samples whose stored sizes are `heights` and `widths`, int[b], pixels."""
        return Parameters(
            self.geometry.geometry(keys, np.asarray(heights), np.asarray(widths)),
            keys.uniform("HorizontalFlip", 1)[:, 0] < self.hflip.p,
            keys.uniform("VerticalFlip", 1)[:, 0] < self.vflip.p,
        )


def train_transform(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    scale: tuple[float, float] = (0.8, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    hflip: float = 0.5,
    vflip: float = 0.5,
) -> Transform:
    """Random resized crop to size x size, both flips, normalisation."""
    crop = RandomResizedCrop((size, size), scale, ratio)
    return Transform(crop, Normalize(tuple(mean), tuple(std)), HorizontalFlip(hflip), VerticalFlip(vflip))


def eval_transform(size: int, mean: Sequence[float], std: Sequence[float], *, resize: int | None = None) -> Transform:
    """Short side resized to `resize` (none: size * 256 / 224), the central size x size, normalisation."""
    geometry = ResizeCenterCrop(resize or round(size * 256 / 224), (size, size))
    return Transform(geometry, Normalize(tuple(mean), tuple(std)))


def _whole_output(windows: np.ndarray, size: Size) -> Geometry:
    resized = np.broadcast_to(np.array(size, np.int64), (len(windows), 2)).copy()
    return Geometry(windows, resized, np.zeros_like(resized), size)
