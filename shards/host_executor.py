"""The host executor: drawn parameters applied on the CPU by libjpeg-turbo and compiled loops, else torch and OpenCV.

On a machine without a GPU it is faster than DALI (docs/decisions/0003), and it is the oracle that DALI's graph is
tested against. Decoding, resizing and flipping hold no GIL, so plain threads use every core. A sample is computed by
one thread alone, from its bytes and its parameters: what else is in the batch, and how many threads there are, cannot
change it. The end of a transform runs in one call of compiled loops (`shards.native`) where there is a compiler; the
operators (`shards.host_operators`) give the same pixels, and in evaluation, which does not round, within .003 levels.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch

from shards import native
from shards.chain import Drawn, Transform
from shards.decoding import decode
from shards.host_operators import programs_of, refuse_bits
from shards.host_plan import jobs_of, native_from
from shards.layout import Layout

Failure = tuple[int, str]  # number in the batch, reason
Executed = tuple[torch.Tensor, list[Failure]]
PIECES = 2  # that each thread gets of a batch of images stored as pixels
CHUNK = 4  # samples a thread takes at a time: handing over each by itself costs more, and large ones leave threads idle


class _Own(threading.local):
    """What each thread keeps: memory for the decoder and for the loops."""

    def __init__(self) -> None:
        self.decoded, self.scratch = native.Block(), native.Block()


OWN = _Own()


class HostExecutor:
    """Encoded images and their parameters -> float32 or float16 [b, C, H, W] on the CPU.

    pool: threads of somebody else's, in place of `threads` of its own. compiled: False leaves the compiled loops out,
    as on a machine without a compiler.
    """

    def __init__(
        self,
        transform: Transform,
        *,
        bits: int = 8,
        threads: int = 2,
        layout: Layout = Layout(),  # noqa: B008
        pool: ThreadPoolExecutor | None = None,
        compiled: bool = True,
    ):
        refuse_bits(transform.operators, bits)
        cv2.setNumThreads(1)  # our threads take whole samples; OpenCV's would fight with them
        self.transform, self.bits, self.channels, self.layout = transform, bits, transform.channels, layout
        self._stored_channels = transform.stored_channels
        self._table = _normalisation_table(transform).astype(layout.numpy_type) if bits == 8 else None
        self._pixels, self._first = self._loops() if compiled else None, native_from(transform)
        self._memory = Memory()
        self._own_pool = pool is None
        self._threads = threads
        self._pool = pool or make_pool(threads)

    def _loops(self) -> native.Pixels | None:
        """The compiled loops, where they do what is wanted."""
        if self._table is None or self.layout != Layout() or self.channels not in (1, 3):
            return None
        made, normalize = native.library(), self.transform.normalize
        if made is None:
            return None
        return native.Pixels(made, self._table, np.array(normalize.mean), np.array(normalize.std))

    def run(
        self, images: Sequence[bytes | memoryview], encodings: Sequence[str], sizes: np.ndarray, drawn: Drawn
    ) -> Executed:
        """Decode and transform b images, stored at sizes int64[b, 2] (height, width).

        Returns [b, C, H, W], a tensor of the caller's own, and the samples that failed, which are zero.
        """
        return self.start(images, encodings, sizes, drawn)()

    def start(
        self, images: Sequence[bytes | memoryview], encodings: Sequence[str], sizes: np.ndarray, drawn: Drawn
    ) -> Callable[[], Executed]:
        """Hand the images to the threads; the call waits for what `run` returns."""
        stored = self._memory.take(
            self.layout.stored(len(images), self.channels, self.transform.size), self.layout.numpy_type
        )
        out = self.layout.planes(stored)
        jobs, by_loops = jobs_of(drawn, self._first, self.transform.size, sizes)
        by_loops &= self._pixels is not None
        before = programs_of(Drawn(drawn.steps[: self._first]), len(images))
        after = programs_of(Drawn(drawn.steps[self._first :]), len(images), ~by_loops)
        job, place, room = jobs.ctypes.data, out.ctypes.data, out.strides[0]
        shapes, chosen = sizes.tolist(), by_loops.tolist()

        def sample(i: int) -> str | None:
            data, encoding = images[i], encodings[i]
            try:
                image = decode_fast(data, encoding, self._stored_channels, *shapes[i], bits=self.bits, into=OWN.decoded)
            except ValueError as error:
                out[i] = 0
                return str(error)
            for apply, operator, values in before[i]:
                image = apply(operator, image, values)
            if chosen[i]:
                self._by_loops(job + i * jobs.itemsize, image, place + i * room)
                return None
            for apply, operator, values in after[i]:
                image = apply(operator, image, values)
            self._normalize(image, out[i])
            return None

        def some(rows: list[int]) -> list[tuple[int, str]]:
            return [(i, reason) for i in rows if (reason := sample(i)) is not None]

        stored_so = self._stored_as_pixels(images, encodings, sizes)
        at_once = np.flatnonzero(by_loops & stored_so & np.array([not program for program in before], bool))
        begun = self._start_at_once(at_once, images, sizes, jobs, place + at_once * room)
        others = np.setdiff1d(np.arange(len(images)), at_once).tolist()
        chunks = [self._pool.submit(some, others[i : i + CHUNK]) for i in range(0, len(others), CHUNK)]

        def finish() -> Executed:
            for chunk in begun:
                chunk.result()
            failures = [failure for chunk in chunks for failure in chunk.result()]
            self._erase(drawn, out)
            for i, _ in failures:
                out[i] = 0
            return self.layout.planes(torch.from_numpy(stored)), failures

        return finish

    def _stored_as_pixels(
        self, images: Sequence[bytes | memoryview], encodings: Sequence[str], sizes: np.ndarray
    ) -> np.ndarray:
        """bool[b]: what is stored is the image itself, of 8 bits and of the length that it should have."""
        raw = np.array([encoding == "raw" for encoding in encodings], bool)
        if self.bits != 8 or not raw.any():
            return np.zeros(len(images), bool)
        lengths = np.array([len(image) for image in images], np.int64)
        return raw & (lengths > 0) & (lengths == sizes.prod(axis=1) * self.channels)

    def _start_at_once(
        self,
        rows: np.ndarray,
        images: Sequence[bytes | memoryview],
        sizes: np.ndarray,
        jobs: np.ndarray,
        outs: np.ndarray,
    ) -> list[Future[None]]:
        """Images that need no decoding, numbered by rows, through their jobs to addresses: a call a piece of them."""
        if self._pixels is None or not len(rows):
            return []
        arrays = [np.frombuffer(images[i], np.uint8) for i in rows.tolist()]
        addresses = np.array([array.__array_interface__["data"][0] for array in arrays], np.int64)
        columns = (jobs[rows], addresses, sizes[rows].astype(np.int32), outs)
        run = self._pixels.run_all

        def some(start: int, stop: int, held: list[np.ndarray]) -> None:
            part, at, shapes, places = (column[start:stop] for column in columns)
            run(part, at, shapes, places, OWN.scratch)

        step = max(CHUNK, -(-len(rows) // (PIECES * self._threads)))
        return [self._pool.submit(some, at, at + step, arrays) for at in range(0, len(rows), step)]

    def _by_loops(self, job: int, image: np.ndarray, out: int) -> None:
        """A job and planes by their addresses, an image uint8[h, w, C]."""
        assert self._pixels is not None
        image = np.ascontiguousarray(image)
        height, width = image.shape[:2]
        self._pixels.run(job, image.ctypes.data, height, width, out, OWN.scratch)

    def _normalize(self, image: np.ndarray, out: np.ndarray) -> None:
        """[H, W, C] of stored values, or float32 levels between them -> normalised planes, in place."""
        if self._table is not None and image.dtype == np.uint8:
            look_up(image, self._table, out, self.layout.channels_last)
            return
        planes = cv2.split(np.ascontiguousarray(image)) if self.channels > 1 else [image.reshape(image.shape[:2])]
        for plane, target, mean, std in zip(
            planes, out, self.transform.normalize.mean, self.transform.normalize.std, strict=True
        ):
            target[...] = (plane / np.float32(2**self.bits - 1) - np.float32(mean)) / np.float32(std)

    @staticmethod
    def _erase(drawn: Drawn, out: np.ndarray) -> None:
        for name, operator, params in drawn.steps:
            if name.startswith("Erasing"):
                for i in np.flatnonzero(params["active"]):
                    top, left, height, width = params["window"][i].tolist()
                    out[i, :, top : top + height, left : left + width] = operator.value  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the threads, where they are its own."""
        if self._own_pool:
            self._pool.shutdown(wait=True, cancel_futures=True)


def decode_fast(
    data: bytes | memoryview,
    encoding: str,
    channels: int,
    height: int,
    width: int,
    *,
    bits: int,
    into: native.Block | None = None,
) -> np.ndarray:
    """Stored image [h, w, C]. simplejpeg gives Pillow's pixels sooner; what it refuses OpenCV may still read.

    into: memory that the image may lie in, until its thread decodes the next: fresh pages cost more than a small image.
    """
    if encoding == "jpeg" and bits == 8:
        if into is not None:
            into.grow(height * width * channels)
        buffer = None if into is None else into.array
        try:
            image = simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY", buffer=buffer)
        except ValueError:
            return decode(data, encoding, channels, height, width, bits)
        if image.shape[:2] == (height, width):
            return image
    return decode(data, encoding, channels, height, width, bits)


def make_pool(threads: int) -> ThreadPoolExecutor:
    """Threads that each keep torch to themselves."""
    return ThreadPoolExecutor(threads, thread_name_prefix="host-executor", initializer=_one_thread)


def look_up(image: np.ndarray, table: np.ndarray, out: np.ndarray, channels_last: bool) -> None:
    """uint8 [H, W, C] through a table [C, 256] into planes [C, H, W], in place.

    OpenCV's look-up moves numbers of a size, whatever they mean: float16 goes through as uint16.
    """
    if table.dtype == np.float16:
        table, out = table.view(np.uint16), out.view(np.uint16)
    if channels_last and len(table) > 1:
        cv2.LUT(np.ascontiguousarray(image), np.ascontiguousarray(table.T)[None], dst=out.transpose(1, 2, 0))
        return
    planes = cv2.split(np.ascontiguousarray(image)) if len(table) > 1 else [image.reshape(image.shape[:2])]
    for plane, row, target in zip(planes, table, out, strict=True):
        cv2.LUT(np.ascontiguousarray(plane), row, dst=target)


class Memory:
    """Batch arrays used again once nobody holds them: fresh pages cost more than the resize (19 ms for 64 x 224 x 224).

    An array taken is the caller's own. When it and every tensor on it are gone, its memory may be taken again.
    """

    def __init__(self, keep: int = 8):
        self._free: dict[int, deque[np.ndarray]] = {}
        self._keep = keep

    def take(self, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array of this shape; what it holds is arbitrary."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        free = self._free.setdefault(count, deque(maxlen=self._keep))
        try:
            block = free.pop()
        except IndexError:
            block = np.empty(count, np.uint8)
        lease = block.view(dtype).reshape(shape)
        weakref.finalize(lease, free.append, block).atexit = False
        return lease


def _one_thread() -> None:
    torch.set_num_threads(1)


def _normalisation_table(transform: Transform) -> np.ndarray:
    """float32[C, 256]: the normalised value of each stored one, computed as torchvision does, in float32."""
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    mean = np.array(transform.normalize.mean, np.float32)[:, None]
    return (values[None] - mean) / np.array(transform.normalize.std, np.float32)[:, None]
