"""Whole slides through OpenSlide: which tiles hold tissue, and single tiles at a chosen resolution.

A slide is never whole in memory: tissue is looked for in blocks of at most 2048 x 2048 pixels of the coarsest fitting
level, a tile is read by its own region. Tissue is what is coloured: PatchCamelyon's own rule, a saturation of at least
.07 after blurring.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from prep.images import UndecodableImage
from prep.places import state_of

MAX_OPEN = 4  # a thread
BLOCK = 2048  # pixels of one side of what is read at once
FINENESS = 8  # tissue is looked for at this many pixels a side of a tile
SATURATION = round(0.07 * 255)
DARK = 20  # of 255: below it the saturation of ink and scanner borders is noise
FINER = 1.02  # a level may be coarser than wanted by this much, as scanners' resolutions scatter


class _Slides(threading.local):
    """What a thread holds open: another one could close it in the middle of a read."""

    def __init__(self) -> None:
        self.open: OrderedDict[Path, tuple[tuple[int, ...], Any]] = OrderedDict()


_slides = _Slides()


@dataclass(frozen=True)
class TileOptions:
    """Tiles of `size` pixels at `microns` a pixel; `tissue` is the least share of tissue; at most `most` tiles a slide
    and class (None: all).
    """

    size: int = 96
    microns: float = 0.972
    tissue: float = 0.5
    most: int | None = None

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 4096 or not 0.05 <= self.microns <= 100:
            raise ValueError(f"tiles of {self.size} pixels at {self.microns:g} um: 16..4096 pixels at 0.05..100 um")
        if not 0 <= self.tissue <= 1 or (self.most is not None and self.most < 1):
            raise ValueError("--min-tissue is a share from 0 to 1, --tiles-per-slide at least 1")


class Region(NamedTuple):
    """A square of a slide: left and top in pixels of level 0, its side there, and the side of the tile made of it."""

    left: float
    top: float
    side: float
    size: int


def open_slide(path: Path) -> Any:
    """The slide, kept open for the thread unless the file changes; UndecodableImage where OpenSlide gives none."""
    import openslide  # needed only where slides are

    held = _slides.open
    try:
        state = state_of(path)
        if path in held and held[path][0] == state:
            held.move_to_end(path)
            return held[path][1]
        slide = openslide.OpenSlide(str(path))
    except FileNotFoundError:
        raise UndecodableImage("the file is missing") from None
    except (openslide.OpenSlideError, OSError):
        raise UndecodableImage("no slide that OpenSlide reads") from None
    if path in held:
        held.pop(path)[1].close()
    held[path] = state, slide
    if len(held) > MAX_OPEN:
        held.popitem(last=False)[1][1].close()
    return slide


def microns_of(slide: Any) -> float | None:
    """Micrometres a pixel of level 0, or None where the slide does not say."""
    try:
        microns = float(slide.properties["openslide.mpp-x"])
    except (KeyError, ValueError):
        return None
    return microns if microns > 0 else None


def side_at_level_0(slide: Any, options: TileOptions) -> float | str:
    """The side of a tile in pixels of level 0, or the reason why the slide gives no such tiles."""
    microns = microns_of(slide)
    if microns is None:
        return "a slide that does not say its micrometres a pixel"
    if microns > options.microns * FINER:
        return "a slide coarser than the wanted micrometres a pixel"
    return options.size * options.microns / microns


def read_region(path: Path, left: float, top: float, side: tuple[float, float], wanted: float) -> np.ndarray:
    """Part of a slide from the coarsest level that has at most `wanted` pixels of level 0 a pixel: uint8[h, w, 3].

    `left`, `top` and `side` (width, height) are in pixels of level 0. What the scanner left out is white. Left and top
    are taken to the nearest whole pixel of the level: between two, OpenSlide interpolates, at four times the cost.

    Raises:
        UndecodableImage: the slide is damaged there.
    """
    import openslide

    slide = open_slide(path)
    fitting = [i for i, scale in enumerate(slide.level_downsamples) if scale <= wanted * FINER]
    level = max(fitting, default=0)
    scale = slide.level_downsamples[level]
    size = tuple(max(round(length / scale), 1) for length in side)
    corner = (round(round(left / scale) * scale), round(round(top / scale) * scale))
    try:
        pixels = np.asarray(slide.read_region(corner, level, size))
    except openslide.OpenSlideError:
        _slides.open.pop(path)[1].close()  # after an error a handle gives nothing more
        raise UndecodableImage("a part of the slide does not decode") from None
    opaque = pixels[..., 3:] > 0
    return np.where(opaque, pixels[..., :3], np.uint8(255))


def read_tile(path: Path, region: Region) -> np.ndarray:
    """One tile, uint8[size, size, 3], area-averaged from the next finer level.

    Raises:
        UndecodableImage: OpenSlide does not read it.
    """
    pixels = read_region(path, region.left, region.top, (region.side, region.side), region.side / region.size)
    if pixels.shape[0] == region.size:
        return pixels
    return cv2.resize(pixels, (region.size, region.size), interpolation=cv2.INTER_AREA)


def tissue_shares(path: Path, side: float) -> np.ndarray:
    """The share of tissue in every whole tile of a grid from the upper left corner: float32[rows, columns]."""
    slide = open_slide(path)
    columns, rows = (int(length // side) for length in slide.dimensions)
    shares = np.zeros((rows, columns), np.float32)
    at_once = max(int(BLOCK * _mask_scale(slide, side) // side), 1)
    for row in range(0, rows, at_once):
        for column in range(0, columns, at_once):
            down, across = min(at_once, rows - row), min(at_once, columns - column)
            block = read_region(path, column * side, row * side, (across * side, down * side), side / FINENESS)
            shares[row : row + down, column : column + across] = _tissue(block, down, across)
    return shares


def _mask_scale(slide: Any, side: float) -> float:
    return max((scale for scale in slide.level_downsamples if scale <= side / FINENESS * FINER), default=1.0)


def _tissue(block: np.ndarray, down: int, across: int) -> np.ndarray:
    small = cv2.resize(block, (across * FINENESS, down * FINENESS), interpolation=cv2.INTER_AREA)
    value, lowest = small.max(2).astype(np.float32), small.min(2).astype(np.float32)
    saturation = np.where(value > DARK, 255 * (value - lowest) / np.maximum(value, 1), 0)
    coloured = cv2.GaussianBlur(saturation, (3, 3), 0) >= SATURATION
    return coloured.reshape(down, FINENESS, across, FINENESS).mean((1, 3))


def tiles(path: Path, side: float, options: TileOptions) -> Iterator[Region]:
    """The tiles with enough tissue, row by row."""
    for row, column in np.argwhere(tissue_shares(path, side) >= max(options.tissue, 1e-9)):
        yield Region(float(column) * side, float(row) * side, side, options.size)
