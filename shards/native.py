"""The host executor's inner loops in C: `pixels.c`, compiled where it is first used.

Without it torch and NumPy make the same pixels more slowly (evaluation's within .003 levels).
"""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

from shards.compiled import compiled

SOURCE = Path(__file__).with_name("pixels.c")
# No contraction: a product and a sum fused would round otherwise than NumPy does.
FLAGS = (
    "-ffp-contract=off",
    *("-fno-math-errno", "-fno-trapping-math", "-ffinite-math-only", "-fno-signed-zeros"),  # none changes a rounding
)
MOST_STEPS = 8
STEP_KINDS = ("brightness", "contrast", "saturation", "hue", "gray", "solarize")
JOB = np.dtype(  # the struct of the same name in pixels.c
    [
        *((name, np.int32) for name in ("cut_top", "cut_left", "cut_height", "cut_width")),
        *((name, np.int32) for name in ("full_height", "full_width", "top", "left", "height", "width")),
        *((name, np.int32) for name in ("flip_x", "flip_y", "unrounded", "steps")),
        ("kind", np.int32, MOST_STEPS),
        ("factor", np.float32, MOST_STEPS),
    ]
)
WHOLE = -1  # cut_height: all of the image


@cache
def library() -> ctypes.CDLL | None:
    """The compiled loops; None where they cannot be had, with the reason in the log."""
    made = compiled(SOURCE, FLAGS)
    if made is None:
        return None
    pointer, number, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    made.pixels_run.argtypes = [
        *(pointer, pointer, number, number, number),
        *(pointer, pointer, pointer, number, pointer, pointer, size),
    ]
    made.pixels_run.restype = size
    made.pixels_run_all.argtypes = [
        *(pointer, pointer, pointer, pointer, size, pointer, number),
        *(pointer, pointer, pointer, number, pointer, size),
    ]
    made.pixels_run_all.restype = size
    return made


class Block:
    """Memory of one thread, used again for every image; it grows to what the largest one wanted."""

    def __init__(self) -> None:
        self.bytes, self.address, self.array = 0, 0, np.empty(0, np.uint8)

    def grow(self, count: int) -> None:
        """Hold at least so many bytes; what they are is arbitrary."""
        if self.bytes < count:
            self.array = np.empty(count + count // 4, np.uint8)
            self.bytes, self.address = len(self.array), self.array.ctypes.data


class Pixels:
    """The loops for one way of normalising: a table float32[C, 256] of what each stored level becomes."""

    def __init__(self, made: ctypes.CDLL, table: np.ndarray, mean: np.ndarray, std: np.ndarray):
        self._run, self._run_all, self.channels = made.pixels_run, made.pixels_run_all, len(table)
        self._levels = [np.ascontiguousarray(part, np.float32) for part in (table, mean, std)]
        pointers = [part.ctypes.data for part in self._levels]
        self._arguments = (*pointers, 0)
        self._arguments = (*pointers, 0 if self._arithmetic_is_exact() else 1)

    def run(self, job: int, image: int, height: int, width: int, out: int, scratch: Block) -> None:
        """One job on a contiguous uint8[height, width, C] to float32 planes; job, image and out are addresses.

        Raises:
            ValueError: the job asks for pixels that the image does not have.
        """
        asked = (job, image, height, width, self.channels, *self._arguments, out)
        wanted = self._run(*asked, scratch.address, scratch.bytes)
        if wanted > 0:
            scratch.grow(wanted)
            wanted = self._run(*asked, scratch.address, scratch.bytes)
        if wanted:
            raise _outside(height, width)

    def run_all(
        self, jobs: np.ndarray, images: np.ndarray, sizes: np.ndarray, outs: np.ndarray, scratch: Block
    ) -> None:
        """JOB[n] on n images of sizes int32[n, 2] in one call; images and outs are addresses, int64[n]; as `run`."""
        done = np.zeros(1, np.int64)
        columns = [column.ctypes.data for column in (jobs, images, sizes, outs)]
        while done[0] < len(jobs):
            asked = (*columns, len(jobs), done.ctypes.data, self.channels, *self._arguments)
            wanted = self._run_all(*asked, scratch.address, scratch.bytes)
            if wanted < 0:
                raise _outside(*sizes[done[0]].tolist())
            scratch.grow(wanted)

    def _arithmetic_is_exact(self) -> bool:
        """Whether the quicker way to a value than the table gives the table's, for every level of every channel."""
        image = np.repeat(np.arange(256, dtype=np.uint8), self.channels)
        job, out = jobs(1, (1, 256)), np.empty((self.channels, 256), np.float32)
        self.run(job.ctypes.data, image.ctypes.data, 1, 256, out.ctypes.data, Block())
        return bool((out == self._levels[0]).all())


def _outside(height: int, width: int) -> ValueError:
    return ValueError(f"an operator's window lies outside an image of {height} x {width} pixels")


def jobs(count: int, size: tuple[int, int]) -> np.ndarray:
    """Jobs that take the whole of images of this size as they are.

    A structured array [count] of JOB.
    """
    made = np.zeros(count, JOB)
    made["cut_height"] = WHOLE
    made["full_height"], made["full_width"] = made["height"], made["width"] = size
    return made
