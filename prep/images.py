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

A JPEG that is to be reduced is decoded at 1/2, 1/4 or 1/8 by its DCT while at least four times the wanted short side
remains, and averaged by area from there: a fifth of the time, within a mean of 1 and a 99th percentile of 4 levels of
the whole decode (docs/decisions/0012).
"""

import io
import warnings
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from prep.cropping import CROPS, Crop, crop
from prep.places import StoreFailed, is_far, patiently
from shards.index import MAX_PIXELS
from shards.metadata import Metadata, Value

Format = Literal["jpeg", "png", "htj2k", "raw"]
FORMATS: tuple[Format, ...] = ("jpeg", "png", "htj2k", "raw")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
DCT_SCALES = (8, 4, 2)
STRIP = 256  # lines that are converted at once
MAX_FILE_BYTES = 1 << 31  # a file is read whole
FINER = 4  # a JPEG decoded at a part of its size keeps at least so many times the wanted short side
ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF; these change the places of width and height
DICOM_PREFIX = 128  # a DICOM file has a preamble of 128 bytes, then DICM


class UndecodableImage(ValueError):
    """An image that gives no pixels. The text holds no path and no header value, so it may stand in a manifest."""


@dataclass(frozen=True)
class PixelOptions:
    """How pixels are stored. `short_side` in pixels (None: as they are), `quality` 1..100 and `chroma` of JPEG.

    `crop` and `mirror` (breasts to the left side) as prep/cropping.py says; `burned_in`: what becomes of DICOM files
    whose header says that text is burned into the pixels, perhaps a name. `enlarge`: smaller images grow to the short
    side (bicubic), which else stay as they are.
    """

    channels: Literal[1, 3] = 3
    short_side: int | None = 256
    format: Format = "jpeg"
    quality: int = 95
    chroma: Literal["4:2:0", "4:4:4"] = "4:2:0"
    bits: Literal[8, 16] = 8
    crop: Crop = "none"
    mirror: bool = False
    burned_in: Literal["refuse", "keep"] = "refuse"
    enlarge: bool = False

    def recorded(self) -> dict[str, Any]:
        """What the manifest records: crops and their kin only where they are on."""
        off = {"crop": "none", "mirror": False, "burned_in": "refuse", "enlarge": False}
        return {name: value for name, value in asdict(self).items() if name not in off or value != off[name]}

    def __post_init__(self) -> None:
        if self.short_side is not None and not 8 <= self.short_side <= 16384:
            raise ValueError(f"--short-side {self.short_side} is outside 8..16384 (0 keeps the size)")
        if self.format not in FORMATS:
            raise ValueError(f"--format {self.format!r} is unknown; known: {', '.join(FORMATS)}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"--quality {self.quality} is outside 1..100")
        if self.bits == 16 and self.format == "jpeg":
            raise ValueError("--bits 16 needs a lossless format: add --format png, htj2k or raw")
        if self.format == "htj2k" and find_spec("imagecodecs") is None:
            raise ValueError("--format htj2k needs the package imagecodecs: pip install -e '.[htj2k]', or take png")
        if self.bits == 16 and self.channels == 3:
            raise ValueError("--bits 16 is for one-channel images; this dataset has three channels")
        if self.crop not in CROPS:
            raise ValueError(f"--crop {self.crop!r} is unknown; known: {', '.join(CROPS)}")
        if self.enlarge and self.short_side is None:
            raise ValueError("--enlarge grows images to --short-side: give one of 8..16384")
        if self.mirror and self.crop != "breast":
            raise ValueError("--mirror turns breasts to one side: it needs --crop breast, which finds them")


class Prepared(NamedTuple):
    """One image as it is stored: pixels uint8|uint16[h, w] or [h, w, 3], their encoding, and what is known of it."""

    pixels: np.ndarray
    encoded: bytes
    metadata: dict[str, Value]
    frames: int = 1  # of the file, of which the first is taken


def prepare(data: bytes, options: PixelOptions, known: Metadata | None = None) -> Prepared:
    """From the bytes of a raw file to what is stored. `known`, of a table, goes before what a DICOM header tells.

    Raises:
        UndecodableImage: the file gives no pixels.
    """
    told: dict[str, Value] = {}
    frames = 1
    if is_dicom(data):
        from prep.dicom import frames_of  # pydicom is needed only where DICOM files are
        from prep.subgroups import of_dicom

        frames = frames_of(data, options.burned_in)
        told = of_dicom(data)
    wanted = options.short_side if options.crop == "none" else None
    pixels, size = _decode(data, options.channels, options.bits, wanted)
    return _finish(pixels, size, options, told | dict(known or {}))._replace(frames=frames)


def prepare_pixels(pixels: np.ndarray, options: PixelOptions, known: Metadata | None = None) -> Prepared:
    """As `prepare`, from pixels uint8[h, w] or [h, w, 3] that were stored without an encoding."""
    return _finish(_as_channels(pixels, options.channels), pixels.shape[:2], options, dict(known or {}))


def _finish(pixels: np.ndarray, size: tuple[int, ...], options: PixelOptions, told: dict[str, Value]) -> Prepared:
    """Crop, reduce or enlarge, encode. `size` is the whole picture's, of which `pixels` may be a smaller decode; a
    spacing in `told` is that of the whole picture, and becomes that of what is stored.
    """
    if options.crop != "none":
        pixels, box, flipped = crop(pixels, options.crop, options.mirror)
        size = pixels.shape[:2]
        told |= {f"crop_{side}": float(length) for side, length in box._asdict().items()}
        told |= {"flipped": "yes" if flipped else "no"} if options.mirror else {}
    stored = reduce(pixels, options.short_side, size)
    if options.enlarge and options.short_side is not None:
        stored = enlarge(stored, options.short_side)
    if isinstance(spacing := told.get("pixel_spacing_mm"), int | float):
        told["pixel_spacing_mm"] = spacing * size[0] / stored.shape[0]
    return Prepared(stored, encode(stored, options), told)


def is_dicom(data: bytes) -> bool:
    """Whether the bytes begin as a DICOM file does."""
    return data[DICOM_PREFIX : DICOM_PREFIX + 4] == b"DICM"


def decode(data: bytes, channels: Literal[1, 3], bits: Literal[8, 16] = 8) -> np.ndarray:
    """Decode to uint8 (bits 8) or uint16 (bits 16): [h, w] for one channel, [h, w, 3] RGB for three, upright."""
    return _decode(data, channels, bits, None)[0]


def _decode(
    data: bytes, channels: Literal[1, 3], bits: int, short_side: int | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(pixels as `decode` gives them, perhaps of a smaller picture where they shall be reduced to `short_side`; the
    whole picture's height and width).
    """
    if is_dicom(data):
        from prep.dicom import decode_dicom  # pydicom is needed only where DICOM files are

        pixels = _as_channels(decode_dicom(data, bits), channels)
        return pixels, pixels.shape[:2]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which is dropped here anyway
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _decode_pillow(data, channels, bits, short_side)
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


def _decode_pillow(
    data: bytes, channels: Literal[1, 3], bits: int, short_side: int | None
) -> tuple[np.ndarray, tuple[int, ...]]:
    if not data:
        raise UndecodableImage("the file is empty")
    with Image.open(io.BytesIO(data)) as opened:
        image: Image.Image = opened
        if image.width * image.height > MAX_PIXELS:
            raise UndecodableImage(f"more than {MAX_PIXELS} pixels")
        whole = _decode_at_a_part(image, short_side)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        size = whole or (image.height, image.width)
        if image.mode == "F":
            raise UndecodableImage("floating-point pixels have no defined range")
        if image.mode in SIXTEEN_BIT_MODES:
            return _as_channels(_sixteen(np.asarray(image), bits), channels), size
        pixels = np.empty((image.height, image.width, 3)[: 3 if channels == 3 else 2], np.uint8)
        for top in range(0, image.height, STRIP):  # so that no second whole image is in memory
            strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
            pixels[top : top + STRIP] = _plain(strip, channels)
    return pixels if bits == 8 else pixels.astype(np.uint16) * 257, size


def _plain(image: Image.Image, channels: Literal[1, 3]) -> np.ndarray:
    """Palette, alpha, CMYK and bits as grey or RGB."""
    grey = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return np.asarray(image.convert(grey).convert("L" if channels == 1 else "RGB"))


def _decode_at_a_part(image: Image.Image, short_side: int | None) -> tuple[int, int] | None:
    """Ask libjpeg for the smallest part of the size that keeps FINER times the short side.

    Returns height and width of the whole picture, upright, where that is done.
    """
    if short_side is None or image.format != "JPEG":
        return None
    width, height = image.size
    orientation = image.getexif().get(ORIENTATION, 1)
    for scale in DCT_SCALES:
        # `reduce` expects the line and column that reach beyond the picture at its end: not where it will be turned.
        whole = orientation == 1 or not (width % scale or height % scale)
        if whole and min(width, height) // scale >= FINER * short_side:
            image.draft(None, (width // scale, height // scale))
            return (width, height) if orientation in TURNED else (height, width)
    return None


def _sixteen(values: np.ndarray, bits: int) -> np.ndarray:
    if values.min() < 0 or values.max() > 65535:
        raise UndecodableImage("integer pixels outside 0..65535")
    if bits == 16:
        return values.astype(np.uint16, copy=False)
    result = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), STRIP):
        result[top : top + STRIP] = (values[top : top + STRIP].astype(np.uint32) * 255 + 32767) // 65535
    return result


def _as_channels(pixels: np.ndarray, channels: Literal[1, 3]) -> np.ndarray:
    if channels == 3 and pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if channels == 1 and pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    return pixels


def reduce(pixels: np.ndarray, short_side: int | None, size: tuple[int, ...] | None = None) -> np.ndarray:
    """Area-averaged reduction of [h, w] or [h, w, 3] to `short_side` pixels of the short side; smaller ones stay.

    `size` is the height and width that decide the stored ones, where `pixels` are of a smaller decode.
    """
    height, width = size or pixels.shape[:2]
    if short_side is None or min(height, width) <= short_side:
        return pixels
    scale = short_side / min(height, width)
    stored = (max(round(width * scale), short_side), max(round(height * scale), short_side))
    part = round(max(height, width) / max(pixels.shape[:2]))
    if part == 1:
        return cv2.resize(pixels, stored, interpolation=cv2.INTER_AREA)
    # The last line and column of a smaller decode may reach beyond the picture: so by factors, not by sizes.
    return cv2.resize(
        pixels, None, fx=stored[0] * part / width, fy=stored[1] * part / height, interpolation=cv2.INTER_AREA
    )


def enlarge(pixels: np.ndarray, short_side: int) -> np.ndarray:
    """Bicubic enlargement of [h, w] or [h, w, 3] to `short_side` pixels of the short side; larger ones stay.

    Raises:
        UndecodableImage: the image is so long and narrow that it would have more pixels than a set may hold.
    """
    height, width = pixels.shape[:2]
    if min(height, width) >= short_side:
        return pixels
    scale = short_side / min(height, width)
    stored = (round(width * scale), round(height * scale))
    if stored[0] * stored[1] > MAX_PIXELS:
        raise UndecodableImage(f"more than {MAX_PIXELS} pixels once it is enlarged")
    return cv2.resize(pixels, stored, interpolation=cv2.INTER_CUBIC)


def encode(pixels: np.ndarray, options: PixelOptions) -> bytes:
    """Encode uint8|uint16[h, w] or [h, w, 3] RGB. The same pixels and options give the same bytes."""
    if options.format == "raw":
        return np.ascontiguousarray(pixels).astype(pixels.dtype.newbyteorder("<"), copy=False).tobytes()
    if options.format == "htj2k":
        import imagecodecs  # an extra: no other reader or writer needs it

        return bytes(imagecodecs.htj2k_encode(np.ascontiguousarray(pixels), reversible=True))
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
        if is_far(path):
            return patiently("a raw file", path.read_bytes, private=True)
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UndecodableImage(f"the file has more than {MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except (StoreFailed, UndecodableImage):
        raise
    except FileNotFoundError:
        raise UndecodableImage("the file is missing") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UndecodableImage(f"the file cannot be read ({type(error).__name__})") from None
