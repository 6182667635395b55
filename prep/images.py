"""One raw image becomes stored pixels: decode, turn upright, reduce, encode. Here stand the rules of special cases.

| in the file | becomes |
|---|---|
| EXIF orientation | applied once, here; stored images carry no EXIF |
| grey, for 3 channels | the same value thrice |
| colour, for 1 channel | ITU-R 601 luma, as JPEG's own Y |
| palette | its colours |
| alpha | laid over black |
| CMYK, YCCK | RGB by Pillow's plain formula, Adobe's inversion respected |
| 1 bit | 0 and 255 |
| 16 bit, stored as 8 | value / 257, the full range, rounded |
| 8 bit, stored as 16 | value * 257 |
| ICC profile | ignored |
| DICOM | see prep/dicom.py |
| float, 12-bit JPEG, anything else | refused, with one line |
"""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prep.places import StoreFailed, is_far, patiently
from shards.index import MAX_PIXELS

Format = Literal["jpeg", "png", "raw"]
FORMATS: tuple[Format, ...] = ("jpeg", "png", "raw")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
DICOM_PREFIX = 128  # a DICOM file has a preamble of 128 bytes, then DICM


class UndecodableImage(ValueError):
    """An image that gives no pixels. The text holds no path and no header value, so it may stand in a manifest."""


@dataclass(frozen=True)
class PixelOptions:
    """How pixels are stored. `short_side` in pixels (None: as they are), `quality` 1..100 and `chroma` of JPEG."""

    channels: Literal[1, 3] = 3
    short_side: int | None = 256
    format: Format = "jpeg"
    quality: int = 95
    chroma: Literal["4:2:0", "4:4:4"] = "4:2:0"
    bits: Literal[8, 16] = 8

    def __post_init__(self) -> None:
        if self.short_side is not None and not 8 <= self.short_side <= 16384:
            raise ValueError(f"--short-side {self.short_side} is outside 8..16384 (0 keeps the size)")
        if self.format not in FORMATS:
            raise ValueError(f"--format {self.format!r} is unknown; known: {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality} is outside 1..100")
        if self.bits == 16 and self.format == "jpeg":
            raise ValueError("--bits 16 needs a lossless format: add --format png (or raw)")
        if self.bits == 16 and self.channels == 3:
            raise ValueError("--bits 16 is for one-channel images; this dataset has three channels")


def prepare(data: bytes, options: PixelOptions) -> tuple[np.ndarray, bytes]:
    """From the bytes of a raw file to (pixels uint8|uint16[h, w] or [h, w, 3], encoded bytes).

    Raises:
        UndecodableImage: the file gives no pixels.
    """
    pixels = reduce(decode(data, options.channels, options.bits), options.short_side)
    return pixels, encode(pixels, options)


def prepare_pixels(pixels: np.ndarray, options: PixelOptions) -> tuple[np.ndarray, bytes]:
    """As `prepare`, from pixels uint8[h, w] or [h, w, 3] that were stored without an encoding."""
    reduced = reduce(_as_channels(pixels, options.channels), options.short_side)
    return reduced, encode(reduced, options)


def decode(data: bytes, channels: Literal[1, 3], bits: Literal[8, 16] = 8) -> np.ndarray:
    """Decode to uint8 (bits 8) or uint16 (bits 16): [h, w] for one channel, [h, w, 3] RGB for three, upright."""
    if data[DICOM_PREFIX : DICOM_PREFIX + 4] == b"DICM":
        from prep.dicom import decode_dicom  # pydicom is needed only where DICOM files are

        return _as_channels(decode_dicom(data, bits), channels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which is dropped here anyway
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode_pillow(data, channels, bits)
    except UndecodableImage:
        raise
    except MemoryError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UndecodableImage(f"more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise UndecodableImage("no known image format, or a broken header") from None
    except Exception as error:  # decoders raise a dozen kinds; their texts may quote the file, so only the kind is told
        reason = (
            "the file is truncated" if "truncated" in str(error) else f"the decoder refuses it ({type(error).__name__})"
        )
        raise UndecodableImage(reason) from None


def _decode_pillow(data: bytes, channels: Literal[1, 3], bits: int) -> np.ndarray:
    if not data:
        raise UndecodableImage("the file is empty")
    with Image.open(io.BytesIO(data)) as opened:
        image: Image.Image = opened
        if image.width * image.height > MAX_PIXELS:
            raise UndecodableImage(f"more than {MAX_PIXELS} pixels")
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode == "F":
            raise UndecodableImage("floating-point pixels have no defined range")
        if image.mode in SIXTEEN_BIT_MODES:
            return _as_channels(_sixteen(np.asarray(image), bits), channels)
        grey = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
        if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        pixels = np.asarray(image.convert(grey).convert("L" if channels == 1 else "RGB"))
    return pixels if bits == 8 else pixels.astype(np.uint16) * 257


def _sixteen(values: np.ndarray, bits: int) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise UndecodableImage("integer pixels outside 0..65535")
    if bits == 16:
        return values.astype(np.uint16)
    return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _as_channels(pixels: np.ndarray, channels: Literal[1, 3]) -> np.ndarray:
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if channels == 1 and pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return pixels


def reduce(pixels: np.ndarray, short_side: int | None) -> np.ndarray:
    """Area-averaged reduction so that the short side has `short_side` pixels; smaller images stay as they are."""
    height, width = pixels.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    size = (max(round(width * scale), short_side), max(round(height * scale), short_side))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def encode(pixels: np.ndarray, options: PixelOptions) -> bytes:
    """Encode uint8|uint16[h, w] or [h, w, 3] RGB. The same pixels and options give the same bytes."""
    if options.format == "raw":
        return np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    if options.format == "png":
        ordered = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(".png", ordered, [cv2.IMWRITE_PNG_COMPRESSION, 4])
        assert done
        return data.tobytes()
    buffer = io.BytesIO()
    subsampling = 0 if options.chroma == "4:4:4" else 2
    Image.fromarray(pixels).save(buffer, "JPEG", quality=options.quality, subsampling=subsampling)
    return buffer.getvalue()


def read_file(path: Path) -> bytes:
    """The bytes of a raw file; UndecodableImage, without its path, where it is missing or unreadable.

    Raises:
        StoreFailed: a store does not give it, which says nothing of the image.
    """
    try:
        return patiently("a raw file", path.read_bytes) if is_far(path) else path.read_bytes()
    except StoreFailed:
        raise
    except FileNotFoundError:
        raise UndecodableImage("the file is missing") from None
    except OSError as error:
        raise UndecodableImage(f"the file cannot be read ({type(error).__name__})") from None
