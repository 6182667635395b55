"""The raw layout of whole slides, for phantoms: Camelyon16's names, pyramids in TIFF, ASAP's xml."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from prep.layouts import Drawing, Layout
from prep.tiled_tiff import write_pyramid

DRAWN = "drawn"  # drawn here first, then packed
MICRONS = 0.243  # a pixel of level 0, as Camelyon's first scanner
HEADER = '<?xml version="1.0"?>\n<ASAP_Annotations>\n <Annotations>\n'
FOOTER = " </Annotations>\n <AnnotationGroups/>\n</ASAP_Annotations>\n"


def plan_slides(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """A slide for every ten images asked for, at least six: normal, tumour and test ones; `pack_slides` writes them."""
    for number in range(max(count // 10, 6)):
        kind, tumour = (("normal", False), ("tumor", True), ("test", number % 2 == 0))[number % 3]
        middle, spread = rng.uniform(0.4, 0.6, 2) * size, rng.uniform(0.16, 0.24) * size
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        outline = middle + spread * np.c_[np.cos(angles), np.sin(angles)]
        name = f"{kind}_{number + 1:03d}"
        arguments = {"side": size, "outline": outline.round(2).tolist() if tumour else []}
        if tumour:
            (root / DRAWN).mkdir(parents=True, exist_ok=True)
            (root / DRAWN / f"{name}.json").write_text(json.dumps(arguments["outline"]))
        yield root / DRAWN / f"{name}.png", "slide", arguments


def annotation(polygons: list[tuple[str, list[list[float]]]]) -> str:
    """ASAP's xml of (group, points) in pixels of level 0."""
    text = HEADER
    for number, (group, points) in enumerate(polygons):
        text += f'  <Annotation Name="Annotation {number}" Type="Polygon" PartOfGroup="{group}" Color="#F4FA58">\n'
        text += "   <Coordinates>\n"
        for order, (x, y) in enumerate(points):
            text += f'    <Coordinate Order="{order}" X="{x}" Y="{y}" />\n'
        text += "   </Coordinates>\n  </Annotation>\n"
    return text + FOOTER


def pack_slides(root: Path) -> None:
    """training/{normal,tumor}/*.tif, testing/images/*.tif and lesion_annotations/*.xml."""
    for drawn in sorted((root / DRAWN).glob("*.png")):
        kind = drawn.stem.split("_")[0]
        part = root / ("testing" if kind == "test" else "training")
        pixels = cv2.imread(str(drawn))
        assert pixels is not None, drawn
        folder = part / ("images" if kind == "test" else kind)
        write_pyramid(folder / f"{drawn.stem}.tif", cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), MICRONS, 4)
        outline = drawn.with_suffix(".json")
        if outline.is_file():
            (part / "lesion_annotations").mkdir(parents=True, exist_ok=True)
            text = annotation([("_0", json.loads(outline.read_text()))])
            (part / "lesion_annotations" / f"{drawn.stem}.xml").write_text(text)
    shutil.rmtree(root / DRAWN)


LAYOUTS: dict[str, Layout] = {"Camelyon-slides": Layout(plan_slides, 2048, pack_slides)}
