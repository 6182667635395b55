"""The host executor's colours on 16-bit images: torchvision's meaning on floats, in float32 of 0..65535.

A resize leaves levels between two of 16 bits; nothing is rounded here, and the end of the chain divides by 65535.
Images are uint16|float32[h, w, C] and come out as float32[h, w, C]; `values` are one sample's drawn parameters.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from shards.colours import JITTER_STEPS, ColorJitter, Grayscale, Solarize
from shards.host_colours import LUMA
from shards.windows import Window

Apply = Callable[[Any, np.ndarray, dict[str, Any]], np.ndarray]
LARGEST = np.float32(65535)
_GRAY = np.tile(LUMA, (3, 1)).astype(np.float32)


def _floats(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image, np.float32)


def _clipped(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, LARGEST)


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _clipped(image * np.float32(factor))


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    means = cv2.mean(image)
    middle = means[0] if image.shape[2] == 1 else float(np.dot(means[:3], LUMA))
    return _clipped(image * np.float32(factor) + np.float32((1 - factor) * middle))


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    if image.shape[2] == 1:
        return image
    matrix = (factor * np.eye(3) + (1 - factor) * LUMA).astype(np.float32)
    return _clipped(cv2.transform(image, matrix))


def _hue(image: np.ndarray, turns: float) -> np.ndarray:
    """A shift of H; OpenCV counts it in degrees where the image is of floats."""
    if image.shape[2] == 1:
        return image
    hsv = cv2.cvtColor(image / LARGEST, cv2.COLOR_RGB2HSV)
    hsv[:, :, 0] = (hsv[:, :, 0] + np.float32(360 * turns)) % np.float32(360)
    return _clipped(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * LARGEST)


_STEPS = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def by_depth(eight: Apply, deep: Apply) -> Apply:
    """One operator for both: bytes go to the first, 16 bits and floats to the second."""
    return lambda operator, image, values: (eight if image.dtype == np.uint8 else deep)(operator, image, values)


def jitter(operator: ColorJitter, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """The steps that the operator has, in the order drawn."""
    image = _floats(image)
    for number in values["order"].tolist():
        name = JITTER_STEPS[number]
        if getattr(operator, name) > 0:
            image = _STEPS[name](image, float(values[name]))
    return image


def gray(operator: Grayscale, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Luma on all channels."""
    return image if image.shape[2] == 1 else cv2.transform(_floats(image), _GRAY)


def solarize(operator: Solarize, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Levels from the threshold on, which is given on the scale of 8 bits, are inverted."""
    image = _floats(image)
    return np.where(image >= np.float32(operator.threshold) * np.float32(257), LARGEST - image, image)


def window(operator: Window, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Stored levels by each window: a channel each where there are several."""
    levels = _floats(image)
    made = [_by_window(levels, c, w) for c, w in zip(values["center"].tolist(), values["width"].tolist(), strict=True)]
    return made[0] if len(made) == 1 else np.concatenate(made, axis=2)


def _by_window(levels: np.ndarray, center: float, width: float) -> np.ndarray:
    share = (levels - np.float32(center - 0.5)) * np.float32(1 / (width - 1)) + np.float32(0.5)
    return np.clip(share, 0, 1, out=share) * LARGEST
