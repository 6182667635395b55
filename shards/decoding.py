"""Decoding one stored image on the CPU, for checking, statistics and contact sheets; training decodes in the loader."""

from typing import TYPE_CHECKING

import cv2
import numpy as np

from shards.index import ENCODING_NAMES, ENCODINGS

if TYPE_CHECKING:
    from shards.split import Split

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # it warns of every grey JPEG 2000 without a profile


def decode(
    data: bytes | memoryview, encoding: str, channels: int, height: int, width: int, bits: int = 8
) -> np.ndarray:
    """Decode to uint8 (bits 8) or uint16 (bits 16) [height, width, channels], RGB; EXIF orientation is not applied.

    Raises:
        ValueError: the bytes do not decode, or to another size than the index says.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding {encoding!r} is unknown; known: {', '.join(ENCODINGS)}")
    dtype = np.uint16 if bits == 16 else np.uint8
    if encoding == "raw":
        wanted = height * width * channels * (bits // 8)
        if len(data) != wanted:
            raise ValueError(f"raw image has {len(data)} bytes, {height} x {width} x {channels} needs {wanted}")
        return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(height, width, channels)
    flags = cv2.IMREAD_IGNORE_ORIENTATION | (cv2.IMREAD_COLOR_RGB if channels == 3 else cv2.IMREAD_GRAYSCALE)
    flags |= cv2.IMREAD_ANYDEPTH if bits == 16 else 0
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"does not decode ({' '.join(str(error).split())[:200]})") from None
    if image is None:
        raise ValueError("does not decode")
    if image.shape[:2] != (height, width):
        raise ValueError(f"decodes to {image.shape[0]} x {image.shape[1]}, the index says {height} x {width}")
    if image.dtype != dtype:
        raise ValueError(f"decodes to {image.dtype}, the manifest says {bits} bits")
    return image[:, :, None] if channels == 1 else image


def stored_image(split: "Split", position: int) -> np.ndarray:
    """The image of one sample as it is stored, uint8 or uint16 [height, width, channels].

    Raises:
        ValueError: it is damaged or does not decode.
    """
    rows, manifest = split.rows(np.array([position])), split.manifest
    encoding, size = ENCODING_NAMES[int(rows.encodings[0])], (int(rows.heights[0]), int(rows.widths[0]))
    return decode(split.read(position), encoding, manifest.channels, *size, manifest.bits)


def probe(data: bytes | memoryview) -> tuple[int, int, int, int]:
    """Height, width, channels (1 or 3) and bits (8 or 16) of an encoded image, as it is stored.

    Raises:
        ValueError: the bytes do not decode.
    """
    flags = cv2.IMREAD_IGNORE_ORIENTATION | cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if len(data) else None
    except cv2.error as error:
        raise ValueError(f"does not decode ({' '.join(str(error).split())[:200]})") from None
    if image is None or image.dtype not in (np.uint8, np.uint16):
        raise ValueError("does not decode")
    return image.shape[0], image.shape[1], 1 if image.ndim == 2 else 3, 8 * image.dtype.itemsize
