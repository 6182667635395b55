"""Reading images out of HDF5 files of images uint8[n, h, w, 3]: many in the order of the file, or a single one."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prep.images import UndecodableImage
from prep.places import StoreFailed, is_far, opened, patiently, state_of

MAX_OPEN = 4
BLOCK_ROWS = 64  # read at once where the file has no chunks, or small ones
BLOCK_BYTES = 1 << 28  # at most, however large its chunks are


def open_images(path: Path, name: str = "x") -> Any:
    """The data set `name` of an HDF5 file, kept open for the process unless the file changes; ValueError where it is
    not of images.
    """
    try:
        return _opened(path, name, state_of(path))
    except StoreFailed:
        raise
    except (OSError, KeyError) as error:
        raise ValueError(f"{path.name} is no HDF5 file with a data set {name!r} ({type(error).__name__})") from None


@lru_cache(maxsize=MAX_OPEN)
def _opened(path: Path, name: str, state: tuple[int, ...]) -> Any:
    import h5py  # needed only where HDF5 files are

    return h5py.File(opened(path) if is_far(path) else path, "r")[name]


@lru_cache(maxsize=64)
def layout_of(path: Path) -> tuple[int, int]:
    """(bytes of an image's pixels, rows that one chunk holds parts of)."""
    images = open_images(path)
    return math.prod(images.shape[1:]) * images.dtype.itemsize, images.chunks[0] if images.chunks else 1


def read_rows(path: Path, rows: Sequence[int]) -> Iterator[np.ndarray | UndecodableImage]:
    """Images of rising rows, uint8[h, w, 3], read in blocks of whole chunks; in place of one that cannot be read, why.

    A block is at most BLOCK_BYTES; where a chunk is larger, it is unpacked once a block.
    """
    row_bytes, chunk_rows = layout_of(path)
    at_once = max(min(-(-BLOCK_ROWS // chunk_rows) * chunk_rows, BLOCK_BYTES // max(row_bytes, 1)), 1)
    first, stop, block = 0, 0, np.empty(0)
    for row in rows:
        if not first <= row < stop:
            first = row // chunk_rows * chunk_rows if chunk_rows <= at_once else row
            stop = min(first + at_once, rows[-1] + 1)
            block = _block(path, first, stop)
        try:
            yield _checked(block[row - first]) if len(block) else read_row(path, row)
        except UndecodableImage as error:
            yield error


def _block(path: Path, start: int, stop: int) -> np.ndarray:
    """Rows of a file; none where one of them cannot be read: then each is read by itself, and named."""
    try:
        images = open_images(path)
        return np.asarray(_patiently(path, lambda: images[start:stop]))
    except StoreFailed:
        raise
    except (OSError, ValueError):
        return np.empty(0)


def read_row(path: Path, row: int) -> np.ndarray:
    """One image, uint8[h, w, 3]; UndecodableImage where it cannot be read."""
    try:
        images = open_images(path)
        pixels = np.asarray(_patiently(path, lambda: images[row]))
    except StoreFailed:
        raise
    except (OSError, ValueError) as error:
        raise UndecodableImage(f"the row cannot be read ({type(error).__name__})") from None
    return _checked(pixels)


def _patiently(path: Path, act: Any) -> Any:
    return patiently("a raw file", act, private=True) if is_far(path) else act()


def _checked(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise UndecodableImage("the row is no image of uint8 [height, width, 3]")
    return pixels
