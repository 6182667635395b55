"""Images in two splits that are nearly the same: resized, recompressed, brightened. Found on request, never removed.

An image's descriptor d is the cosine transform C (DCT-II) of its grey values, averaged to 64 x 64, of which the lowest
16 x 16 frequencies are kept and the mean dropped; each value becomes sign(C) sqrt|C|, and d = that / its length. The
root keeps the few strongest frequencies, which all images of one kind share (a disc on black), from deciding alone.
Similarity of two images is d . d'. docs/preparing.md has what was measured. Perceptual hashes of 64 bits were tried
first and rejected: fundus photographs are too alike for them.

Cost: 256 multiplications for each pair of images of two splits, 1 KB of memory an image and BLOCK^2 similarities.
"""

import base64
from collections.abc import Iterator, Sequence
from itertools import combinations

import cv2
import numpy as np

THRESHOLD = 0.97
SIDE, KEPT = 64, 16
BLOCK = 2048
MAX_LISTED = 100_000  # pairs that the table names; all are counted


def descriptor(image: np.ndarray) -> np.ndarray:
    """The descriptor of uint8|uint16[h, w, 1|3]: float32[256] of length 1; zeros for a blank image, like to nothing."""
    channels = image.shape[2]
    grey = cv2.transform(image, np.full((1, channels), 1 / channels)).reshape(image.shape[:2]).astype(np.float32)
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(small)[:KEPT, :KEPT].reshape(-1).copy()
    low[0] = 0
    if small.std() < 0.5:  # of one grey level: what is left is noise
        return np.zeros_like(low)
    rooted = np.sign(low) * np.sqrt(np.abs(low))
    return (rooted / np.linalg.norm(rooted)).astype(np.float32)


def packed(values: np.ndarray) -> str:
    """A descriptor as text, in 16-bit floats: 684 characters.

    `values` float32[256].
    """
    return base64.b64encode(values.astype("<f2").tobytes()).decode()


def unpacked(texts: Sequence[str]) -> np.ndarray:
    """The descriptors of several images: float32[n, 256], of length 1 again, or 0."""
    raw = np.frombuffer(b"".join(base64.b64decode(text) for text in texts), "<f2").astype(np.float32)
    values = raw.reshape(len(texts), KEPT * KEPT)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), np.float32(1e-6))


def similar_pairs(
    splits: dict[str, np.ndarray], threshold: float = THRESHOLD
) -> Iterator[tuple[str, int, str, int, float]]:
    """(split, row, other split, row, similarity) of all pairs across splits that reach the threshold, in fixed order.

    `splits`: float32[n, 256] each.
    """
    for first, second in combinations(splits, 2):
        for top in range(0, len(splits[first]), BLOCK):
            for left in range(0, len(splits[second]), BLOCK):
                near = splits[first][top : top + BLOCK] @ splits[second][left : left + BLOCK].T
                for row, column in np.argwhere(near >= threshold).tolist():
                    yield first, top + row, second, left + column, min(float(near[row, column]), 1.0)
