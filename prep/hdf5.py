"""Reading single images out of HDF5 files of images uint8[n, h, w, 3]."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prep.images import UndecodableImage
from prep.places import StoreFailed, is_far, patiently

MAX_OPEN = 4


@lru_cache(maxsize=MAX_OPEN)
def open_images(path: Path, name: str = "x") -> Any:
    """The data set `name` of an HDF5 file, kept open for the process; ValueError where it is not of images."""
    import h5py  # needed only where HDF5 files are

    try:
        data = h5py.File(path.open("rb") if is_far(path) else path, "r")[name]
    except (OSError, KeyError) as error:
        raise ValueError(f"{path.name} is no HDF5 file with a data set {name!r} ({type(error).__name__})") from None
    return data


def read_row(path: Path, row: int) -> np.ndarray:
    """One image, uint8[h, w, 3]; UndecodableImage where it cannot be read."""
    try:
        images = open_images(path)
        pixels = np.asarray(patiently("a raw file", lambda: images[row], private=True) if is_far(path) else images[row])
    except StoreFailed:
        raise
    except (OSError, ValueError) as error:
        raise UndecodableImage(f"the row cannot be read ({type(error).__name__})") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise UndecodableImage("the row is no image of uint8 [height, width, 3]")
    return pixels
