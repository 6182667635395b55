"""The host executor's TrivialAugment and RandAugment: torchvision's operations on bytes [h, w, C]."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from shards.host_colours import STEPS
from shards.host_levels import LEVELS
from shards.policies import GEOMETRIC, OPERATIONS, RandAugment, TrivialAugment

_SHARPNESS = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def policy(operator: TrivialAugment | RandAugment, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """The operations drawn, one after the other."""
    for choice, magnitude, matrix in zip(values["choice"], values["magnitude"], values["matrix"], strict=True):
        name = OPERATIONS[int(choice)]
        if name in GEOMETRIC:
            image = warped(image, matrix, operator.interpolation)
        elif name != "Identity":
            image = _APPLY[name](np.ascontiguousarray(image), float(magnitude))
    return image


def warped(image: np.ndarray, matrix: np.ndarray, interpolation: str) -> np.ndarray:
    """Each pixel [h, w] from where the matrix takes it; 0 from outside."""
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_NEAREST if interpolation == "nearest" else cv2.INTER_LINEAR)
    size = (image.shape[1], image.shape[0])
    return cv2.warpPerspective(np.ascontiguousarray(image), matrix, size, flags=flags).reshape(image.shape)


def _by_channel(image: np.ndarray, table_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Each channel [h, w] through a table uint8[256] of its own."""
    planes = [cv2.LUT(plane, table_of(plane)) for plane in cv2.split(image)]
    return cv2.merge(planes).reshape(image.shape)


def _sharpness(image: np.ndarray, magnitude: float) -> np.ndarray:
    """Away from a 3 x 3 smoothing, or towards it; the outermost pixels stay."""
    if min(image.shape[:2]) <= 2:
        return image
    levels = image.astype(np.float32)
    inside = np.rint(cv2.filter2D(levels, -1, _SHARPNESS)).reshape(image.shape)[1:-1, 1:-1]
    levels[1:-1, 1:-1] += np.float32(-magnitude) * (inside - levels[1:-1, 1:-1])
    return np.clip(levels, 0, 255).astype(np.uint8)


def _posterize(image: np.ndarray, bits: float) -> np.ndarray:
    return image & np.uint8(256 - (1 << (8 - int(bits))))


def _solarize(image: np.ndarray, share: float) -> np.ndarray:
    return cv2.LUT(image, np.where(share * 255 <= LEVELS, 255 - LEVELS, LEVELS).astype(np.uint8)).reshape(image.shape)


def _stretch(plane: np.ndarray) -> np.ndarray:
    least, most = np.float32(plane.min()), np.float32(plane.max())
    if least == most:
        return LEVELS.astype(np.uint8)
    scale = (most - least) * np.float32(1 / 255)
    return np.clip((LEVELS - least) / scale, 0, 255).astype(np.uint8)


def _equal(plane: np.ndarray) -> np.ndarray:
    """Pillow's table: what lies below a level, in steps of the pixels below the highest over 255."""
    counts = np.bincount(plane.ravel(), minlength=256)
    step = (plane.size - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:
        return LEVELS.astype(np.uint8)
    below = np.concatenate([[0], np.cumsum(counts)[:-1]])
    table = np.where(np.arange(256) == 0, 0, (below + step // 2) // step)
    return np.clip(table, 0, 255).astype(np.uint8)


_APPLY: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "Brightness": lambda image, magnitude: STEPS["brightness"](image, 1 + magnitude),
    "Color": lambda image, magnitude: STEPS["saturation"](image, 1 + magnitude),
    "Contrast": lambda image, magnitude: STEPS["contrast"](image, 1 + magnitude),
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": lambda image, magnitude: _by_channel(image, _stretch),
    "Equalize": lambda image, magnitude: _by_channel(image, _equal),
}
