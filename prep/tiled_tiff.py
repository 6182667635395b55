"""Writing a slide as scanners do: a tiled pyramid of JPEG in TIFF, for phantoms. OpenSlide reads it back."""

import io
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

TILE = 256
SHORT, LONG, RATIONAL = 3, 4, 5
FORMATS = {SHORT: "H", LONG: "I", RATIONAL: "II"}
CENTIMETRE = 3


def write_pyramid(path: Path, pixels: np.ndarray, microns: float, levels: int, quality: int = 80) -> None:
    """Write uint8[h, w, 3] and `levels` - 1 halvings of it; `microns` a pixel of level 0. Small files only (32 bit)."""
    data = bytearray(b"II*\0" + bytes(4))
    link = 4  # where the place of the next directory goes
    for level in range(levels):
        link = _add_level(data, link, pixels, microns * 2**level, quality)
        pixels = cv2.resize(pixels, (pixels.shape[1] // 2, pixels.shape[0] // 2), interpolation=cv2.INTER_AREA)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _add_level(data: bytearray, link: int, pixels: np.ndarray, microns: float, quality: int) -> int:
    height, width = pixels.shape[:2]
    offsets: list[int] = []
    counts: list[int] = []
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            tile = np.full((TILE, TILE, 3), 255, np.uint8)
            part = pixels[top : top + TILE, left : left + TILE]
            tile[: part.shape[0], : part.shape[1]] = part
            buffer = io.BytesIO()
            Image.fromarray(tile).save(buffer, "JPEG", quality=quality, subsampling=0)
            offsets.append(len(data))
            counts.append(buffer.tell())
            data += buffer.getvalue() + bytes(buffer.tell() % 2)
    per_centimetre = [round(1e4 / microns * 1000), 1000]
    tags: dict[int, tuple[int, list[int]]] = {
        254: (LONG, [int(link > 4)]),  # a reduced image of another
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [8, 8, 8]),  # bits a sample
        259: (SHORT, [7]),  # JPEG
        262: (SHORT, [6]),  # YCbCr
        277: (SHORT, [3]),  # samples a pixel
        282: (RATIONAL, per_centimetre),
        283: (RATIONAL, per_centimetre),
        296: (SHORT, [CENTIMETRE]),
        322: (SHORT, [TILE]),
        323: (SHORT, [TILE]),
        324: (LONG, offsets),
        325: (LONG, counts),
        530: (SHORT, [1, 1]),  # colour at full resolution
    }
    return _add_directory(data, link, tags)


def _add_directory(data: bytearray, link: int, tags: dict[int, tuple[int, list[int]]]) -> int:
    """Append values that do not fit into an entry, then the directory; returns where the next one is linked."""
    entries = b""
    for tag, (kind, values) in tags.items():
        number = len(values) // len(FORMATS[kind])
        packed = struct.pack("<" + FORMATS[kind] * number, *values)
        if len(packed) > 4:
            place = len(data)
            data += packed + bytes(len(packed) % 2)
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, kind, number) + packed.ljust(4, b"\0")
    struct.pack_into("<I", data, link, len(data))
    data += struct.pack("<H", len(tags)) + entries + bytes(4)
    return len(data) - 4
