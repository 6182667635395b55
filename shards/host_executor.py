"""The host executor: drawn parameters applied on the CPU by libjpeg-turbo, torch's uint8 resize and OpenCV.

On a machine without a GPU it is faster than DALI (docs/decisions/0003), and it is the oracle that DALI's graph is
tested against. Decoding, resizing and flipping hold no GIL, so plain threads use every core. A sample is computed by
one thread alone, from its bytes and its parameters: neither the rest of the batch nor the number of threads can change
it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch.nn import functional

from shards.decoding import decode
from shards.transforms import Parameters, Transform

Failure = tuple[int, str]  # number in the batch, reason


class HostExecutor:
    """Encoded images and their parameters -> float32[b, C, H, W] on the CPU."""

    def __init__(self, transform: Transform, *, bits: int = 8, threads: int = 2):
        cv2.setNumThreads(1)  # our threads take whole samples; OpenCV's would fight with them
        self.transform, self.bits, self.channels = transform, bits, transform.channels
        self._table = _normalisation_table(transform) if bits == 8 else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="host-executor")

    def run(
        self,
        images: Sequence[bytes | memoryview],
        encodings: Sequence[str],
        sizes: np.ndarray,
        parameters: Parameters,
    ) -> tuple[torch.Tensor, list[Failure]]:
        """Decode and transform b images, stored at sizes int64[b, 2] (height, width).

        Returns float32[b, C, H, W], a tensor of the caller's own, and the samples that failed, which stay zero.
        """
        out = np.zeros((len(images), self.channels, *self.transform.size), np.float32)
        geometry = parameters.geometry
        flips = np.where(parameters.hflip, np.where(parameters.vflip, -1, 1), np.where(parameters.vflip, 0, 2))

        def sample(i: int) -> str | None:
            try:
                stored = decode(images[i], encodings[i], self.channels, *sizes[i].tolist(), self.bits)
            except ValueError as error:
                return str(error)
            place = geometry.windows[i].tolist(), geometry.resized[i].tolist(), geometry.corners[i].tolist()
            image = _resample(stored, *place, geometry.size)
            self._finish(image if flips[i] == 2 else cv2.flip(image, int(flips[i])), out[i])
            return None

        reasons = self._pool.map(sample, range(len(images)))
        failures = [(i, reason) for i, reason in enumerate(reasons) if reason is not None]
        return torch.from_numpy(out), failures

    def _finish(self, image: np.ndarray, out: np.ndarray) -> None:
        """[H, W, C] or [H, W] of stored values -> normalised planes, in place."""
        planes = cv2.split(image)
        if self._table is not None:
            for plane, row, target in zip(planes, self._table, out, strict=True):
                cv2.LUT(plane, row, dst=target)
            return
        for plane, target, mean, std in zip(
            planes, out, self.transform.normalize.mean, self.transform.normalize.std, strict=True
        ):
            np.divide(plane / np.float32(65535) - np.float32(mean), np.float32(std), out=target)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _resample(
    stored: np.ndarray, window: list[int], resized: list[int], corner: list[int], size: tuple[int, int]
) -> np.ndarray:
    """Window of the stored image [h, w, C], resized with antialias, and the output cut from it: [H, W, C].

    torch's resize is the one that torchvision v2 calls on uint8 tensors; 16 bits go through float32.
    """
    top, left, height, width = window
    image = stored[top : top + height, left : left + width]
    if [height, width] != resized:
        tensor = torch.from_numpy(np.require(image, np.uint8 if image.dtype == np.uint8 else np.float32, ["C", "W"]))
        tensor = functional.interpolate(
            tensor.permute(2, 0, 1)[None], resized, mode="bilinear", align_corners=False, antialias=True
        )
        image = tensor[0].permute(1, 2, 0).numpy()
    top, left = corner
    return np.ascontiguousarray(image[top : top + size[0], left : left + size[1]])


def _normalisation_table(transform: Transform) -> np.ndarray:
    """float32[C, 256]: the normalised value of each stored one, computed as torchvision does, in float32."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = np.array(transform.normalize.mean, np.float32)[:, None]
    return (values - mean) / np.array(transform.normalize.std, np.float32)[:, None]
