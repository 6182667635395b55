"""The host executor's colours in NumPy: torchvision's meaning on uint8, clipped and truncated after each step.

The order of operations, all in float32, is that of `pixels.c`, to the bit; `tests/test_native.py` holds the two equal.
Images are uint8[h, w, C] and stay so; `values` are one sample's drawn parameters.
"""

from typing import Any

import cv2
import numpy as np

from shards.colours import JITTER_STEPS, ColorJitter, GaussianBlur, Grayscale, Solarize

LUMA = np.array([0.2989, 0.587, 0.114], np.float32)
_LEVELS = np.arange(256, dtype=np.float32)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A table of floats, clipped and truncated, over all channels."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)


def _luma(image: np.ndarray) -> np.ndarray:
    """Truncated grey levels of uint8[h, w, 3], float32[h, w, 1]."""
    red, green, blue = (image[..., n : n + 1].astype(np.float32) for n in range(3))
    return np.trunc(LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(image, _LEVELS * np.float32(factor))


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Towards the mean of the truncated grey image."""
    gray = image if image.shape[2] == 1 else _luma(image)
    middle = np.float32(gray.sum(dtype=np.float64) / gray.size)
    return _look_up(image, np.float32(factor) * _LEVELS + (np.float32(1) - np.float32(factor)) * middle)


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    if image.shape[2] == 1:
        return image
    rest = (np.float32(1) - np.float32(factor)) * _luma(image)
    return np.clip(np.float32(factor) * image.astype(np.float32) + rest, 0, 255).astype(np.uint8)


def _hue(image: np.ndarray, turns: float) -> np.ndarray:
    """A shift in HSV, there and back in float32.

    With M = max, C = M - min and the hue h in sixths, channel n in (5, 3, 1) is M - C clamp(min(k, 4 - k), 0, 1), where
    k = (n + h + 6 turns) mod 6.
    """
    if image.shape[2] == 1:
        return image
    red, green, blue = (image[..., n].astype(np.float32) for n in range(3))
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = most - least
    safe, (two, four, six) = np.maximum(chroma, np.float32(1)), np.array([2, 4, 6], np.float32)
    by_green = np.where(most == green, (blue - red) / safe + two, (red - green) / safe + four)
    hue = np.where(most == red, (green - blue) / safe, by_green) + np.float32(6.0 * (turns - np.floor(turns)))
    planes = []
    for n in (5, 3, 1):
        k = hue + np.float32(n)
        k = k - six * np.trunc(k * (np.float32(1) / six))
        part = np.clip(np.minimum(k, four - k), np.float32(0), np.float32(1))
        planes.append((most - chroma * part) * (np.float32(255.999) / np.float32(255)))
    return np.stack(planes, axis=2).astype(np.uint8)


STEPS = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def jitter(operator: ColorJitter, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """The steps that the operator has, in the order drawn."""
    for number in values["order"].tolist():
        name = JITTER_STEPS[number]
        if getattr(operator, name) > 0:
            image = STEPS[name](image, float(values[name]))
    return image


def gray(operator: Grayscale, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Luma on all channels."""
    return image if image.shape[2] == 1 else np.repeat(_luma(image).astype(np.uint8), 3, axis=2)


def blur(operator: GaussianBlur, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """A Gaussian mirrored at the border without repeating the edge."""
    kernel, sigma = (operator.kernel_size, operator.kernel_size), float(values["sigma"])
    image = np.ascontiguousarray(image)
    return cv2.GaussianBlur(image, kernel, sigma, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def solarize(operator: Solarize, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Levels from the threshold on are inverted."""
    return _look_up(image, np.where(operator.threshold <= _LEVELS, 255 - _LEVELS, _LEVELS))
