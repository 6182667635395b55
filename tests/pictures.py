"""Pictures drawn for tests, and their files."""

import io

import cv2
import numpy as np
from PIL import Image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """The file of an image, in a format of Pillow's."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(height: int, width: int) -> np.ndarray:
    """Structures of many sizes, edges and sensor noise, uint8[h, w, 3]."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3))
    for cell in (8, 40, 200):
        coarse = rng.integers(0, 256, (-(-height // cell), -(-width // cell), 3), dtype=np.uint8)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 3.0
    cv2.circle(image, (width // 2, height // 2), height // 3, (250, 120, 20), 5)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
