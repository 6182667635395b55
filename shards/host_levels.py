"""The host executor's gamma, CLAHE and stains, on bytes [h, w, C] and, as float32 of 0..65535, on 16 bits."""

from typing import Any

import cv2
import numpy as np

from shards.host_colours import LUMA
from shards.levels import Clahe, Gamma
from shards.stains import DARKEST, StainJitter

LEVELS = np.arange(256, dtype=np.float32)
_DENSITY = -np.log(np.maximum(LEVELS / np.float32(255), np.float32(DARKEST)))
_LUMA_MATRIX = np.append(LUMA, -0.5)[None]  # OpenCV rounds where torchvision truncates


def gamma(operator: Gamma, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """torchvision's adjust_gamma: on bytes the share times 255.999, truncated."""
    power = np.float32(values["gamma"])
    if image.dtype != np.uint8:
        return np.power(np.asarray(image, np.float32) / np.float32(65535), power) * np.float32(65535)
    table = (np.power(LEVELS / np.float32(255), power) * np.float32(255.999)).astype(np.uint8)
    return cv2.LUT(np.ascontiguousarray(image), table).reshape(image.shape)


def clahe(operator: Clahe, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """OpenCV's, on the luma; each colour is scaled as the luma was."""
    equalizer = cv2.createCLAHE(operator.clip_limit, (operator.tiles, operator.tiles))
    image = np.ascontiguousarray(image)
    if image.shape[2] == 1:
        return equalizer.apply(image[:, :, 0])[:, :, None]
    luma = cv2.transform(image, _LUMA_MATRIX).reshape(image.shape[:2])
    gain = equalizer.apply(luma).astype(np.float32) / np.maximum(luma, 1)
    return np.minimum(image * gain[:, :, None] + np.float32(0.5), np.float32(255)).astype(np.uint8)


def stains(operator: StainJitter, image: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """A matrix on the optical density."""
    matrix = np.concatenate([values["matrix"].T, values["offset"][:, None]], axis=1).astype(np.float32)
    eight = image.dtype == np.uint8
    if eight:
        density = cv2.LUT(np.ascontiguousarray(image), _DENSITY)
    else:
        density = -np.log(np.maximum(np.asarray(image, np.float32) / np.float32(65535), np.float32(DARKEST)))
    light = cv2.exp(-cv2.transform(density, matrix))
    if eight:
        return np.minimum(light * np.float32(255) + np.float32(0.5), np.float32(255)).astype(np.uint8)
    return np.minimum(light, np.float32(1)) * np.float32(65535)
