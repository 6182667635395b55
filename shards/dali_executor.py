"""The DALI executor: the same drawn parameters, applied by one pure DALI graph on the GPU, or on the CPU.

The graph holds no random operator and no state. Bytes, windows, sizes and flips are fed in for each batch; pixels come
out, owned by the caller. A sample that DALI refuses breaks a whole DALI pipeline without a name, so then the samples of
that batch run one by one, the broken ones are named, and a new pipeline takes over.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue
from typing import Any, NamedTuple

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from shards import dali_colours, dali_graph, dali_levels
from shards.draws import DrawKeys
from shards.headers import misfit
from shards.host_executor import Failure
from shards.host_operators import refuse_bits
from shards.layout import Layout
from shards.operators import LARGEST_SIDE, HorizontalFlip, Normalize, Operator, RandomResizedCrop, VerticalFlip
from shards.views import AnyDrawn, AnyTransform, Views

BUILD = dali_graph.BUILD | dali_colours.BUILD | dali_levels.BUILD
Planes = tuple[torch.Tensor, ...]  # of each view
HW_DECODER_LOAD = 0.65  # of the JPEGs on GPUs with a hardware decoder; fixed, since it decides pixels


class DaliExecutor:
    """Encoded images and their parameters -> float32 or float16 [b, C, H, W] on the device; a tuple of several views.

    device_id: the GPU, None for the CPU. raw: the images are uint8 or uint16 rows, not encoded.
    """

    def __init__(
        self,
        transform: AnyTransform,
        *,
        bits: int = 8,
        threads: int = 2,
        batch: int,
        device_id: int | None = None,
        raw: bool = False,
        layout: Layout = Layout(),  # noqa: B008
    ):
        refuse_bits(transform.operators, bits)
        self._expected = expected_feeds(transform)
        self.transform, self.bits, self.raw, self.device_id, self.layout = transform, bits, raw, device_id, layout
        self._options: dict[str, Any] = {
            "batch_size": batch,
            "device_id": device_id,
            "prefetch_queue_depth": 1,  # the loader queues batches ahead; one more queue here would only hold memory
            "exec_dynamic": True,  # batches are owned by whoever holds them
        }
        first, *others = shares_of(threads, device_id)
        self._idle: LifoQueue[tuple[Any, int]] = LifoQueue()  # pipelines, and the threads of each
        for share in others:
            self._idle.put((None, share))  # built where it is first used, while the first works
        self._idle.put((self._build(first), first))
        self._callers = ThreadPoolExecutor(1 + len(others), "dali")

    def _build(self, threads: int, **options: Any) -> Any:
        made = graph(self.transform, self.bits, self.raw, "cpu" if self.device_id is None else "gpu", self.layout)(
            **self._options | {"num_threads": threads} | options
        )
        made.build()
        return made

    def run(
        self,
        images: Sequence[bytes | memoryview],
        encodings: Sequence[str],
        sizes: np.ndarray,
        parameters: AnyDrawn,
    ) -> tuple[Any, list[Failure]]:
        """Decode and transform b images, stored at sizes int64[b, 2] (height, width).

        Returns [b, C, H, W] on the device, a tensor of the caller's own (of several views a tuple), and the samples
        that failed, which stay zero.
        """
        wrong = self._misfits(images, encodings, sizes)
        if not wrong:
            made, failures = self._run(images, sizes, parameters)
        else:
            made, failures = self._without(wrong, images, sizes, parameters)
        return (made if isinstance(self.transform, Views) else made[0]), failures

    def _misfits(
        self, images: Sequence[bytes | memoryview], encodings: Sequence[str], sizes: np.ndarray
    ) -> dict[int, str]:
        """Images of another size than the index says, with the reason: DALI would cut its windows elsewhere."""
        pixel_bytes = self.transform.stored_channels * self.bits // 8
        found = {
            i: misfit(image, encoding, size[0], size[1], pixel_bytes)
            for i, (image, encoding, size) in enumerate(zip(images, encodings, sizes.tolist(), strict=True))
        }
        return {i: reason for i, reason in found.items() if reason is not None}

    def _without(
        self, wrong: Mapping[int, str], images: Sequence[bytes | memoryview], sizes: np.ndarray, parameters: AnyDrawn
    ) -> tuple[Planes, list[Failure]]:
        """All images but the wrong ones, which stay zero."""
        good, out = np.array([i for i in range(len(images)) if i not in wrong], np.int64), self._zeros(len(images))
        failures = list(wrong.items())
        if len(good):
            made, refused = self._run([images[i] for i in good], sizes[good], parameters.rows(good))
            for whole, view in zip(out, made, strict=True):
                whole[torch.from_numpy(good).to(whole.device)] = view
            failures += [(int(good[i]), reason) for i, reason in refused]
        return out, failures

    def _zeros(self, count: int) -> Planes:
        device = torch.device("cpu" if self.device_id is None else f"cuda:{self.device_id}")
        return tuple(self.layout.zeros(count, self.transform.channels, size, device) for size in self.transform.sizes)

    def _run(
        self, images: Sequence[bytes | memoryview], sizes: np.ndarray, parameters: AnyDrawn
    ) -> tuple[Planes, list[Failure]]:
        feeds = self._feeds(images, sizes, parameters)
        pipeline, threads = self._idle.get()
        try:
            pipeline = pipeline or self._build(threads)
            return self._apply(pipeline, feeds), []
        except RuntimeError:  # what DALI raises for any broken image; the pipeline is dead now
            pipeline = self._build(threads)
            return self._one_by_one(feeds, len(images))
        finally:
            self._idle.put((pipeline, threads))

    def start(
        self,
        images: Sequence[bytes | memoryview],
        encodings: Sequence[str],
        sizes: np.ndarray,
        parameters: AnyDrawn,
    ) -> Callable[[], tuple[Any, list[Failure]]]:
        """As the host executor's: threads of its own run DALI while the caller reads the images that come next."""
        return self._callers.submit(self.run, images, encodings, sizes, parameters).result

    def _one_by_one(self, feeds: dict[str, Any], count: int) -> tuple[Planes, list[Failure]]:
        out, failures, pipeline = self._zeros(count), list[Failure](), self._build(1, batch_size=1)
        for i in range(count):
            try:
                made = self._apply(pipeline, {name: feed[i : i + 1] for name, feed in feeds.items()})
                for all_of_view, one in zip(out, made, strict=True):
                    all_of_view[i] = one[0]
            except RuntimeError as error:
                failures.append((i, _reason(error)))
                pipeline = self._build(1, batch_size=1)
        return out, failures

    def _feeds(self, images: Sequence[bytes | memoryview], sizes: np.ndarray, parameters: AnyDrawn) -> dict[str, Any]:
        if self.raw:
            kind = np.uint8 if self.bits == 8 else np.dtype("<u2")
            encoded = [
                np.frombuffer(image, kind).reshape(*size, self.transform.stored_channels)
                for image, size in zip(images, sizes, strict=True)
            ]
        else:
            encoded = [np.frombuffer(image, np.uint8) for image in images]
        wanted = self._expected.items()
        columns = feed_columns(parameters)
        return {"encoded": encoded} | {name: columns[name].astype(feed.numpy, order="C") for name, feed in wanted}

    def _apply(self, pipeline: Any, feeds: dict[str, Any]) -> Planes:
        for name, feed in feeds.items():
            pipeline.feed_input(name, feed)
        return tuple(self.layout.planes(torch.from_dlpack(pixels.as_tensor())) for pixels in pipeline.run())

    def close(self) -> None:
        """End the threads, let go of the pipelines."""
        self._callers.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get()


def shares_of(threads: int, device_id: int | None) -> list[int]:
    """The threads of each pipeline.

    On a CPU two take turns with the batches: within one, the threads wait for each other behind every operator.
    """
    return [threads] if device_id is not None or threads < 2 else [threads - threads // 2, threads // 2]


def graph(
    transform: AnyTransform,
    bits: int,
    raw: bool,
    device: str,
    layout: Layout = Layout(),  # noqa: B008
) -> Any:
    """The pipeline definition, from external sources to normalised pixels; call it with a pipeline's options."""
    kind = types.DALIDataType.UINT8 if bits == 8 else types.DALIDataType.UINT16
    expected, (before, views) = expected_feeds(transform), _chains(transform)
    common = {"channels": transform.channels, "largest": 255.0 if bits == 8 else 65535.0, "kind": kind}
    first = (before or views[0])[0]
    # A plain transform that begins with a crop has the decoder decode that alone; views share one whole image.
    crops_first = isinstance(first[1], RandomResizedCrop) and not isinstance(transform, Views)

    @pipeline_def(enable_conditionals=True)
    def definition() -> Any:
        encoded = fn.external_source(
            name="encoded", ndim=3 if raw else 1, dtype=kind if raw else types.DALIDataType.UINT8
        )
        feeds = {
            name: fn.external_source(name=name, ndim=feed.ndim, dtype=feed.kind) for name, feed in expected.items()
        }
        region = feeds[first[0] + ".window"] if crops_first else None
        image = _stored(encoded, region, transform.stored_channels, kind, raw, device)

        def applied(steps: Steps, image: Any) -> Any:
            done: set[str] = set()
            for at, (name, operator) in enumerate(steps):
                if name in done:
                    continue
                prefix = name + "."
                own: dict[str, Any] = {
                    key.removeprefix(prefix): node for key, node in feeds.items() if key.startswith(prefix)
                }
                own |= common
                if flips := dali_graph.flips_behind(steps, at):
                    down, across = (
                        feeds[f"{flips[kind]}.active"] if kind in flips else None
                        for kind in (VerticalFlip, HorizontalFlip)
                    )
                    own["mirrored"] = dali_graph.mirrored(down, across)
                    done |= set(flips.values())
                if isinstance(operator, Normalize):
                    image = _normalize(operator, image, own["largest"], layout)
                elif region is not None and name == first[0]:
                    image = dali_graph.resize(operator, image, own)
                else:
                    image = BUILD[type(operator)](operator, image, own)
            return image

        image = applied(before, image)
        return tuple(applied(steps, image) for steps in views)

    return definition


Steps = list[tuple[str, Operator]]


def _chains(transform: AnyTransform) -> tuple[Steps, list[Steps]]:
    """What is done once, and what for each view, named as the feeds are."""
    if not isinstance(transform, Views):
        return [], [list(zip(transform.names, transform.operators, strict=True))]
    each = [
        [(f"{v}/{name}", op) for name, op in zip(view.names, view.operators, strict=True)]
        for v, view in enumerate(transform.transforms)
    ]
    return transform.before, each


def _stored(encoded: Any, region: Any, channels: int, kind: Any, raw: bool, device: str) -> Any:
    """The stored image [h, w, C], or a region of it: then the decoder decodes that alone."""
    if raw:
        stored = fn.reinterpret(encoded.gpu() if device == "gpu" else encoded, layout="HWC")
        return stored if region is None else fn.slice(stored, region[0:2], region[2:4], axes=(0, 1))
    options = {
        "device": "mixed" if device == "gpu" else "cpu",
        "output_type": types.DALIImageType.RGB if channels == 3 else types.DALIImageType.GRAY,
        "dtype": kind,
        "adjust_orientation": False,  # EXIF was applied, or refused, when the set was made
        "jpeg_fancy_upsampling": True,
        "hw_decoder_load": HW_DECODER_LOAD,
    }
    if region is None:
        return fn.decoders.image(encoded, **options)
    return fn.decoders.image_slice(encoded, region[0:2], region[2:4], axes=(0, 1), **options)


def _normalize(operator: Normalize, image: Any, largest: float, layout: Layout) -> Any:
    return fn.crop_mirror_normalize(
        image,
        dtype=types.DALIDataType.FLOAT16 if layout.dtype == "float16" else types.DALIDataType.FLOAT,
        output_layout="HWC" if layout.channels_last else "CHW",
        mean=[largest * m for m in operator.mean],
        std=[largest * s for s in operator.std],
    )


OF_COLOURS = re.compile(r"(saturation|hue)$|(^|/)Grayscale[.\d]")  # nothing of a graph on one channel asks for these


class Feed(NamedTuple):
    """An external source: dimensions of a sample's value, DALI type, numpy type."""

    ndim: int
    kind: Any
    numpy: Any


def expected_feeds(transform: AnyTransform) -> dict[str, Feed]:
    """What the graph wants beside the bytes, by operator and name."""
    one = DrawKeys(0, np.zeros(1, np.int64), np.zeros(1, np.uint64), np.zeros(1, np.int64))
    probe = transform.draw(one, np.array([LARGEST_SIDE]), np.array([LARGEST_SIDE]))
    types_of = {
        "b": (types.DALIDataType.BOOL, np.bool_),
        "f": (types.DALIDataType.FLOAT, np.float32),
        "i": (types.DALIDataType.INT32, np.int32),
    }
    return {
        name: Feed(column.ndim - 1, *types_of[column.dtype.kind])
        for name, column in feed_columns(probe).items()
        if transform.channels > 1 or not OF_COLOURS.search(name)
    }


def feed_columns(drawn: AnyDrawn) -> dict[str, np.ndarray]:
    """The arrays that the graph takes, [b, …], by operator and name."""
    return {
        f"{name}.{key}": column
        for name, operator, params in drawn.steps
        for key, column in dali_graph.columns(operator, params).items()
    }


def _reason(error: RuntimeError) -> str:
    """The telling line of one of DALI's long messages: the first behind `encountered:`."""
    lines = [line.strip(" :") for line in str(error).partition("encountered:")[2].splitlines() if line.strip()]
    told = " ".join(lines[0].replace(" sample #0", "").split())[:200] if lines else "no reason given"
    return f"DALI refuses it ({told})"
