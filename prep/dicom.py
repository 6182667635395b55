"""DICOM pixels: one frame, as a radiologist's screen would show it, or its stored values with 16 bits.

For 8 bits: rescale slope and intercept, then the first VOI LUT, else the first window (LINEAR, LINEAR_EXACT or
SIGMOID; DICOM PS3.3 C.11.2.1), else the full range of the stored bits. MONOCHROME1 is inverted, so that more tissue
is always brighter. Padding becomes black. Overlays are not drawn. For 16 bits the stored values are kept as they are,
moved to 0 where signed and inverted within their bits where MONOCHROME1: no window is applied.

Of a file with several frames the first is taken, and the manifest warns of how many such files there are: frames of one
file (slices of a tomosynthesis, a film) share label and patient, so which of them are samples is the user's choice,
made by writing them as files.

Decoders: pydicom's own and Pillow's, python-gdcm (JPEG lossless, JPEG-LS) and pylibjpeg-openjpeg (JPEG 2000, HTJ2K).
No text of the header leaves this file: reasons name the transfer syntax at most.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from prep.images import STRIP, UndecodableImage
from prep.places import StoreFailed, opened
from shards.index import MAX_PIXELS


def decode_dicom(data: bytes, bits: int = 8) -> np.ndarray:
    """Decode the first frame: uint8 (bits 8) or uint16 (bits 16), [h, w] or [h, w, 3] RGB.

    Raises:
        UndecodableImage: no pixels, no decoder for them, or a damaged file.
    """
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their texts quote header values, which may be private
        try:
            header = pydicom.dcmread(io.BytesIO(data))
        except Exception as error:
            raise UndecodableImage(f"a broken DICOM header ({type(error).__name__})") from None
        if "PixelData" not in header:
            raise UndecodableImage("a DICOM file without pixels")
        try:
            return _render(header, bits)
        except (UndecodableImage, MemoryError):
            raise
        except Exception as error:
            syntax = getattr(header.file_meta.get("TransferSyntaxUID", ""), "name", "unknown")
            stored = header.get("BitsStored", "?")
            raise UndecodableImage(f"no decoder for DICOM {syntax}, {stored} bits ({type(error).__name__})") from None


def frames_of(data: bytes, burned_in: str) -> int:
    """The number of frames; UndecodableImage where `burned_in` is "refuse" and the header says that text is burned into
    the pixels: it may be a patient's name.
    """
    import pydicom

    wanted = ["BurnedInAnnotation", "NumberOfFrames"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=wanted)
        except Exception:  # a broken header is told of, with its reason, when the pixels are decoded
            return 1
        if burned_in == "refuse" and str(header.get("BurnedInAnnotation") or "").upper() == "YES":
            raise UndecodableImage("its header says that text is burned into the pixels (--burned-in keep takes it)")
        try:
            return int(header.get("NumberOfFrames") or 1)
        except Exception:  # no number: the same
            return 1


def pixel_size(path: Path) -> tuple[int, int]:
    """(height, width) of a DICOM file or another image from its header alone; (0, 0) where that cannot be read."""
    import pydicom

    try:
        with opened(path) as file:
            if path.suffix.lower() != ".dcm":
                with Image.open(file) as image:
                    return image.height, image.width
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
                return int(header.Rows), int(header.Columns)
    except StoreFailed:
        raise
    except Exception:  # a file that is broken here is told of, with its reason, when it is decoded
        return 0, 0


def _render(header, bits: int) -> np.ndarray:  # type: ignore[no-untyped-def]  # pydicom is untyped here
    from pydicom.pixels import apply_color_lut, pixel_array

    if int(header.Rows) * int(header.Columns) > MAX_PIXELS:
        raise UndecodableImage(f"more than {MAX_PIXELS} pixels")
    values, stored = pixel_array(header, index=0), int(header.BitsStored)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        values, stored = apply_color_lut(values, header), int(header.RedPaletteColorLookupTableDescriptor[2])
    if bits == 16 and (values.ndim == 3 or stored > 16):
        raise UndecodableImage("colour, or more than 16 bits stored: neither is kept in 16 bits of grey")
    if values.ndim == 3:
        return (values[..., :3] >> max(stored - 8, 0)).astype(np.uint8)  # a palette may have an alpha, too
    low = -(1 << (stored - 1)) if header.PixelRepresentation else 0
    result = np.empty(values.shape, np.uint16 if bits == 16 else np.uint8)
    for top in range(0, len(values), STRIP):  # so that float64 is never there of a whole image
        result[top : top + STRIP] = _shown(header, values[top : top + STRIP], low, stored, bits)
    return result


def _shown(header, values: np.ndarray, low: int, stored: int, bits: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Lines of stored grey values, `stored` bits from `low` on, as uint8 or uint16."""
    top = (1 << stored) - 1
    if not header.PixelRepresentation:
        values = values & top  # old files keep overlays in the unused high bits
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if bits == 16:
        moved = (values.astype(np.int64) - low).astype(np.uint16)
        result = top - moved if inverted else moved
    else:
        shown = _window(header, values, low, low + top)
        result = np.rint(255 * (1 - shown if inverted else shown)).astype(np.uint8)
    if "PixelPaddingValue" in header:
        result[values == header.PixelPaddingValue] = 0
    return result


def _window(header, values: np.ndarray, low: int, high: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Stored values to what is shown, float64[h, w] in 0..1."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    if header.get("VOILUTSequence"):
        item = header.VOILUTSequence[0]
        shown = apply_voi(apply_modality_lut(values, header).astype(values.dtype, copy=False), header, index=0)
        return np.clip(shown / float((1 << int(item.LUTDescriptor[2])) - 1), 0, 1)
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    scaled = values * slope + intercept
    if header.get("WindowCenter") is None or header.get("WindowWidth") is None:
        ends = sorted((low * slope + intercept, high * slope + intercept))
        return (scaled - ends[0]) / (ends[1] - ends[0])
    centre, width = _first(header.WindowCenter), _first(header.WindowWidth)
    kind = header.get("VOILUTFunction") or "LINEAR"
    if kind == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (scaled - centre) / width))
    if kind == "LINEAR_EXACT":
        return np.clip((scaled - centre) / width + 0.5, 0, 1)
    return np.clip((scaled - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)


def _first(value) -> float:  # type: ignore[no-untyped-def]
    return float(value[0]) if hasattr(value, "__len__") and not isinstance(value, str) else float(value)
