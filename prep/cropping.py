"""Optional crops, off by default: a mammogram to the breast, mirrored to one side; a fundus photograph to its disc.

Both find the largest bright region of a small copy of the image and keep its bounding box. Of a mammogram, what is
not the breast (labels, white borders of the scanner, dust) becomes black inside the box too, so that nothing burned in
beside the breast is kept. An image in which no region stands out is kept whole.
"""

from typing import Literal, NamedTuple

import cv2
import numpy as np

Crop = Literal["none", "breast", "disc"]
CROPS: tuple[Crop, ...] = ("none", "breast", "disc")
SEEN_AT = 512  # pixels of the long side of the small copy
LEAST_SHARE = 0.04  # of the image: a smaller region is no breast and no disc
MARGIN = 0.02  # of the long side, around the region
BRIGHT = 180  # of 255
OPENING = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17))  # letters and marks are narrower


class Box(NamedTuple):
    """A part of an upright image, in its pixels."""

    left: int
    top: int
    width: int
    height: int


def crop(pixels: np.ndarray, kind: Crop, mirror: bool) -> tuple[np.ndarray, Box, bool]:
    """(the part that is kept, its box, whether it was mirrored so that the breast lies at the left).

    `pixels` uint8|uint16[h, w] or [h, w, 3].
    """
    small = _small(pixels)
    region = breast(small) if kind == "breast" else disc(small)
    box = _box(region, pixels.shape[:2])
    kept = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    if kind == "breast" and region.any():
        kept = _blacken(kept, box, region, pixels.shape[:2])
    flipped = mirror and _lies_right(region)
    return np.ascontiguousarray(kept[:, ::-1] if flipped else kept), box, flipped


def _small(pixels: np.ndarray) -> np.ndarray:
    """A grey copy uint8 of at most SEEN_AT pixels a side, by area average; 16 bits by their own range."""
    height, width = pixels.shape[:2]
    scale = min(SEEN_AT / max(height, width), 1.0)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    grey = small.max(2) if small.ndim == 3 else small
    if grey.dtype == np.uint8:
        return grey
    low, high = np.percentile(grey, [0.1, 99.9])
    return (np.clip((grey - low) / max(high - low, 1), 0, 1) * 255).astype(np.uint8)


def breast(grey: np.ndarray) -> np.ndarray:
    """The breast in a mammogram uint8[h, w]: bool[h, w], empty where nothing stands out."""
    kept = _without_borders(grey)
    blurred = cv2.GaussianBlur(kept, (5, 5), 0)
    dark = int(np.bincount(blurred.ravel(), minlength=256)[:64].argmax())  # the film or the air around the breast
    tissue = blurred > dark + max(6, 0.08 * (int(np.percentile(blurred, 99)) - dark))
    edge = max(grey.shape) // 64  # frames of the scanner are thin: what hangs together by them alone comes apart
    tissue[:edge] = tissue[-edge:] = tissue[:, :edge] = tissue[:, -edge:] = False
    opened = cv2.morphologyEx(tissue.astype(np.uint8), cv2.MORPH_OPEN, OPENING)
    return _largest(opened)


def _without_borders(grey: np.ndarray) -> np.ndarray:
    """Lines and columns at the edges that are bright nearly all along are the scanner's: they become black."""
    kept = grey.copy()
    for turned in (kept, kept[::-1], kept.T, kept.T[::-1]):
        outer = turned[: max(len(turned) // 12, 1)]
        bright = np.flatnonzero(np.percentile(outer, 25, axis=1) > BRIGHT)
        if len(bright):
            outer[: bright[-1] + 1] = 0
    return kept


def disc(grey: np.ndarray) -> np.ndarray:
    """The field of view of a fundus photograph uint8[h, w] (the brightest channel): bool[h, w]."""
    blurred = cv2.GaussianBlur(grey, (5, 5), 0)
    corners = np.concatenate(
        [part.ravel() for part in (blurred[:4, :4], blurred[:4, -4:], blurred[-4:, :4], blurred[-4:, -4:])]
    )
    seen = blurred > max(int(np.median(corners)) + 10, 15)
    return _largest(seen.astype(np.uint8))


def _largest(mask: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    if count < 2:
        return np.zeros(mask.shape, bool)
    best = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    return labels == best if stats[best, cv2.CC_STAT_AREA] >= LEAST_SHARE * mask.size else np.zeros(mask.shape, bool)


def _box(region: np.ndarray, size: tuple[int, int]) -> Box:
    """The bounding box of a region of the small copy in pixels of the image, with a margin; all where it is empty."""
    height, width = size
    if not region.any():
        return Box(0, 0, width, height)
    edges = []
    for axis, length in ((1, height), (0, width)):
        found = np.flatnonzero(region.any(axis))
        scale, margin = length / region.shape[1 - axis], MARGIN * max(size)
        edges.append(
            (max(int(found[0] * scale - margin), 0), min(int(np.ceil((found[-1] + 1) * scale + margin)), length))
        )
    (top, bottom), (left, right) = edges
    return Box(left, top, right - left, bottom - top)


def _blacken(kept: np.ndarray, box: Box, region: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Black where the grown region is not."""
    grown = cv2.dilate(region.astype(np.uint8), np.ones((25, 25), np.uint8))
    rows = np.minimum((np.arange(box.top, box.top + box.height) + 0.5) * region.shape[0] / size[0], region.shape[0] - 1)
    columns = np.minimum(
        (np.arange(box.left, box.left + box.width) + 0.5) * region.shape[1] / size[1], region.shape[1] - 1
    )
    inside = grown[np.ix_(rows.astype(int), columns.astype(int))].astype(bool)
    return np.where(inside if kept.ndim == 2 else inside[:, :, None], kept, kept.dtype.type(0))


def _lies_right(region: np.ndarray) -> bool:
    """Whether the breast lies at the right: its wide side, the chest wall, is there."""
    if not region.any():
        return False
    half = region.shape[1] // 2
    return bool(region[:, -half:].sum() > region[:, :half].sum())
