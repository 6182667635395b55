"""Tumour outlines of slides: ASAP's xml, and PatchCamelyon's rule which tiles are tumour."""

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from prep.whole_slides import Region

# Camelyon16 names its groups _0, _1 (tumour) and _2 (a hole in it), or Tumor and Exclusion; Camelyon17 metastases and
# normal. An outline of no group is none of a tumour.
GROUPS = {
    "_0": True,
    "_1": True,
    "tumor": True,
    "metastases": True,
    "_2": False,
    "exclusion": False,
    "normal": False,
    "none": False,
}
SHIFT = 4  # outlines are drawn at a sixteenth of a pixel


@dataclass(frozen=True)
class Outline:
    """One polygon float64[n, 2] of (x, y) in pixels of level 0, around tumour or around what is none."""

    tumour: bool
    points: np.ndarray


def read_outlines(path: Path, where: str) -> list[Outline]:
    """All outlines of an ASAP file, tumour first, as later ones are drawn over earlier ones.

    Raises:
        ValueError: no ASAP annotation, or a group of unknown meaning. `where` stands for the name, which is private.
    """
    try:
        found = [_group_and_points(node) for node in ElementTree.parse(path).getroot().iter("Annotation")]
    except (ElementTree.ParseError, KeyError, ValueError):
        raise ValueError(f"the annotation of {where} is no ASAP xml file: is this the original?") from None
    if any(group not in GROUPS for group, _ in found):
        raise ValueError(f"the annotation of {where} has a group that is none of {', '.join(GROUPS)}")
    outlines = [Outline(GROUPS[group], points) for group, points in found if len(points) > 2]
    return sorted(outlines, key=lambda outline: not outline.tumour)


def _group_and_points(node: ElementTree.Element) -> tuple[str, np.ndarray]:
    places = sorted(node.iter("Coordinate"), key=lambda place: float(place.attrib["Order"]))
    points = [[float(place.attrib[axis].replace(",", ".")) for axis in "XY"] for place in places]
    return node.attrib["PartOfGroup"].lower(), np.array(points, float).reshape(-1, 2)


def tumour_labels(regions: list[Region], outlines: list[Outline]) -> np.ndarray:
    """1 where the middle third of a tile holds at least one pixel of tumour, else 0: int64[n]."""
    labels = np.zeros(len(regions), np.int64)
    if not regions or not outlines:
        return labels
    corners = np.array([(region.left, region.top) for region in regions])
    side, size = regions[0].side, regions[0].size
    middle = max(size // 3, 1)
    origins = corners + side * (size - middle) / 2 / size
    extent = side * middle / size
    for position in _near(origins, extent, [outline for outline in outlines if outline.tumour]):
        canvas = np.zeros((middle, middle), np.uint8)
        for outline in outlines:
            # OpenCV's pixels have their centres at whole numbers, the slide's at halves.
            points = (outline.points - origins[position]) * (middle / extent) - 0.5
            cv2.fillPoly(canvas, [np.rint(points * (1 << SHIFT)).astype(np.int32)], int(outline.tumour), shift=SHIFT)
        labels[position] = canvas.max()
    return labels


def _near(origins: np.ndarray, extent: float, outlines: list[Outline]) -> np.ndarray:
    """The squares that the bounding box of some outline touches."""
    near = np.zeros(len(origins), bool)
    for outline in outlines:
        low, high = outline.points.min(0), outline.points.max(0)
        near |= ((origins <= high) & (origins + extent >= low)).all(1)
    return np.flatnonzero(near)
