"""The host executor of several views: an image is decoded once, and what comes before its crops is done once."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from shards.host_executor import CHUNK, Failure, HostExecutor, decode_fast, make_pool
from shards.host_operators import programs_of, refuse_bits
from shards.layout import Layout
from shards.views import DrawnViews, Views

ExecutedViews = tuple[tuple[torch.Tensor, ...], list[Failure]]


class HostViews:
    """Encoded images and their parameters -> one [b, C, h, w] a view, on the CPU."""

    def __init__(self, views: Views, *, bits: int = 8, threads: int = 2, layout: Layout = Layout()):  # noqa: B008
        refuse_bits(views.operators, bits)
        self.views, self.bits = views, bits
        self._pool = make_pool(threads)
        self._each = [
            HostExecutor(view, bits=bits, threads=threads, layout=layout, pool=self._pool) for view in views.transforms
        ]

    def run(
        self, images: Sequence[bytes | memoryview], encodings: Sequence[str], sizes: np.ndarray, drawn: DrawnViews
    ) -> ExecutedViews:
        """Decode and transform b images, stored at sizes int64[b, 2] (height, width).

        Returns a tensor of the caller's own for each view, and the samples that failed, which are zero.
        """
        return self.start(images, encodings, sizes, drawn)()

    def start(
        self, images: Sequence[bytes | memoryview], encodings: Sequence[str], sizes: np.ndarray, drawn: DrawnViews
    ) -> Callable[[], ExecutedViews]:
        """Hand the images to the threads; the call waits for what `run` returns."""
        programs = programs_of(drawn.before, len(images))

        def one(i: int) -> tuple[memoryview, str | None]:
            try:
                image = decode_fast(
                    images[i], encodings[i], self.views.stored_channels, *sizes[i].tolist(), bits=self.bits
                )
            except ValueError as error:
                return self._as_stored(np.zeros((*drawn.sizes[i].tolist(), self.views.channels))), str(error)
            for apply, operator, values in programs[i]:
                image = apply(operator, image, values)
            return self._as_stored(image), None

        def some(first: int) -> list[tuple[memoryview, str | None]]:
            return [one(i) for i in range(first, min(first + CHUNK, len(images)))]

        chunks = [self._pool.submit(some, first) for first in range(0, len(images), CHUNK)]

        def finish() -> ExecutedViews:
            found = [each for chunk in chunks for each in chunk.result()]
            raw, names = [image for image, _ in found], ["raw"] * len(found)
            begun = [
                executor.start(raw, names, drawn.sizes, view)
                for executor, view in zip(self._each, drawn.views, strict=True)
            ]
            made = tuple(finish_view()[0] for finish_view in begun)
            failures = [(i, reason) for i, (_, reason) in enumerate(found) if reason is not None]
            for i, _ in failures:
                for view in made:
                    view[i] = 0
            return made, failures

        return finish

    def _as_stored(self, image: np.ndarray) -> memoryview:
        """The bytes of an image as a raw set stores it; 16-bit levels that a resize left between two are rounded."""
        kind = np.uint8 if self.bits == 8 else np.dtype("<u2")
        if image.dtype != kind:
            image = np.rint(image).astype(kind)
        return np.ascontiguousarray(image).reshape(-1).view(np.uint8).data

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
