"""The host executor's colours: torchvision's meaning on uint8, by look-up tables, matrices and OpenCV's HSV."""

from typing import Any

import cv2
import numpy as np

from shards.colours import JITTER_STEPS, ColorJitter, GaussianBlur, Grayscale, Solarize

LUMA = np.array([0.2989, 0.587, 0.114])
_LEVELS = np.arange(256, dtype=np.float32)
_GRAY_MATRIX = np.tile(np.append(LUMA, -0.5), (3, 1))  # OpenCV rounds where torchvision truncates


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """A table of floats, clipped and truncated, over all channels."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)


def _brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return _look_up(image, _LEVELS * np.float32(factor))


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Towards the mean of the truncated grey image; truncation lowers a mean by half a level."""
    means = cv2.mean(np.ascontiguousarray(image))
    middle = means[0] if image.shape[2] == 1 else float(np.dot(means[:3], LUMA)) - 0.5
    return _look_up(image, np.float32(factor) * _LEVELS + np.float32((1 - factor) * middle))


def _saturation(image: np.ndarray, factor: float) -> np.ndarray:
    if image.shape[2] == 1:
        return image
    matrix = np.empty((3, 4))
    matrix[:, :3] = factor * np.eye(3) + (1 - factor) * LUMA
    matrix[:, 3] = -0.5 - (1 - factor) * 0.5
    return cv2.transform(np.ascontiguousarray(image), matrix)


def _hue(image: np.ndarray, turns: float) -> np.ndarray:
    """A shift of H on a circle of 256 steps; V stays exact, S within a level."""
    if image.shape[2] == 1:
        return image
    hsv = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV_FULL)
    planes = list(cv2.split(hsv))
    planes[0] = cv2.LUT(planes[0], np.rint(_LEVELS + turns * 256).astype(np.int64).astype(np.uint8))
    return cv2.cvtColor(cv2.merge(planes), cv2.COLOR_HSV2RGB_FULL)


_STEPS = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def jitter(operator: ColorJitter, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """The steps that the operator has, in the order drawn."""
    for number in values["order"].tolist():
        name = JITTER_STEPS[number]
        if getattr(operator, name) > 0:
            image = _STEPS[name](image, float(values[name]))
    return image


def gray(operator: Grayscale, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Luma on all channels."""
    return image if image.shape[2] == 1 else cv2.transform(np.ascontiguousarray(image), _GRAY_MATRIX)


def blur(operator: GaussianBlur, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """A Gaussian mirrored at the border without repeating the edge."""
    kernel, sigma = (operator.kernel_size, operator.kernel_size), float(values["sigma"])
    image = np.ascontiguousarray(image)
    return cv2.GaussianBlur(image, kernel, sigma, borderType=cv2.BORDER_REFLECT_101).reshape(image.shape)


def solarize(operator: Solarize, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Levels from the threshold on are inverted."""
    return _look_up(image, np.where(operator.threshold <= _LEVELS, 255 - _LEVELS, _LEVELS))
