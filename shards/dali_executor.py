"""The DALI executor: the same drawn parameters, applied by one pure DALI graph on the GPU, or on the CPU.

The graph holds no random operator and no state. Bytes, windows, sizes and flips are fed in for each batch; pixels come
out, owned by the caller. A sample that DALI refuses breaks a whole DALI pipeline without a name, so then the samples of
that batch run one by one, the broken ones are named, and a new pipeline takes over.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from shards.host_executor import Failure
from shards.transforms import Parameters, Transform

HW_DECODER_LOAD = 0.65  # of the JPEGs on GPUs with a hardware decoder; fixed, since it decides pixels


class DaliExecutor:
    """Encoded images and their parameters -> float32[b, C, H, W] on the device.

    device_id: the GPU, None for the CPU. raw: the images are uint8 or uint16 rows, not encoded.
    """

    def __init__(
        self,
        transform: Transform,
        *,
        bits: int = 8,
        threads: int = 2,
        batch: int,
        device_id: int | None = None,
        raw: bool = False,
    ):
        self.transform, self.bits, self.raw, self.device_id = transform, bits, raw, device_id
        self._options: dict[str, Any] = {
            "batch_size": batch,
            "num_threads": threads,
            "device_id": device_id,
            "prefetch_queue_depth": 1,  # the loader queues batches ahead; one more queue here would only hold memory
            "exec_dynamic": True,  # batches are owned by whoever holds them
        }
        self._pipeline = self._build()

    def _build(self, **options: Any) -> Any:
        made = graph(self.transform, self.bits, self.raw, "cpu" if self.device_id is None else "gpu")(
            **self._options | options
        )
        made.build()
        return made

    def run(
        self,
        images: Sequence[bytes | memoryview],
        encodings: Sequence[str],
        sizes: np.ndarray,
        parameters: Parameters,
    ) -> tuple[torch.Tensor, list[Failure]]:
        """Decode and transform b images, stored at sizes int64[b, 2] (height, width).

        Returns float32[b, C, H, W] on the device, a tensor of the caller's own, and the samples that failed, which stay
        zero.
        """
        feeds = self._feeds(images, sizes, parameters)
        try:
            return self._apply(self._pipeline, feeds), []
        except RuntimeError:  # what DALI raises for any broken image; the pipeline is dead now
            self._pipeline = self._build()
            return self._one_by_one(feeds, len(images))

    def _one_by_one(self, feeds: dict[str, Sequence[np.ndarray]], count: int) -> tuple[torch.Tensor, list[Failure]]:
        device = "cpu" if self.device_id is None else f"cuda:{self.device_id}"
        out = torch.zeros((count, self.transform.channels, *self.transform.size), device=device)
        failures, pipeline = [], self._build(batch_size=1)
        for i in range(count):
            try:
                out[i] = self._apply(pipeline, {name: feed[i : i + 1] for name, feed in feeds.items()})[0]
            except RuntimeError as error:
                failures.append((i, _reason(error)))
                pipeline = self._build(batch_size=1)
        return out, failures

    def _feeds(
        self, images: Sequence[bytes | memoryview], sizes: np.ndarray, parameters: Parameters
    ) -> dict[str, Sequence[np.ndarray]]:
        geometry = parameters.geometry
        if self.raw:
            kind = np.uint8 if self.bits == 8 else np.dtype("<u2")
            encoded = [
                np.frombuffer(image, kind).reshape(*size, self.transform.channels)
                for image, size in zip(images, sizes, strict=True)
            ]
        else:
            encoded = [np.frombuffer(image, np.uint8) for image in images]
        return {
            "encoded": encoded,
            "anchor": list(geometry.windows[:, :2].astype(np.int32)),
            "shape": list(geometry.windows[:, 2:].astype(np.int32)),
            "resized": list(geometry.resized.astype(np.float32)),
            "corner": list(geometry.corners.astype(np.int32)),
            "hflip": list(parameters.hflip.astype(np.int32)),
            "vflip": list(parameters.vflip.astype(np.int32)),
        }

    @staticmethod
    def _apply(pipeline: Any, feeds: dict[str, Sequence[np.ndarray]]) -> torch.Tensor:
        for name, feed in feeds.items():
            pipeline.feed_input(name, feed)
        (pixels,) = pipeline.run()
        return torch.from_dlpack(pixels.as_tensor())

    def close(self) -> None:
        """Let go of the pipeline."""
        self._pipeline = None


def graph(transform: Transform, bits: int, raw: bool, device: str) -> Any:
    """The pipeline definition, from external sources to normalised planes; call it with a pipeline's options."""
    kind = types.DALIDataType.UINT8 if bits == 8 else types.DALIDataType.UINT16
    colours = types.DALIImageType.RGB if transform.channels == 3 else types.DALIImageType.GRAY
    scale = 255.0 if bits == 8 else 65535.0

    @pipeline_def
    def definition() -> Any:
        encoded = fn.external_source(name="encoded", ndim=3 if raw else 1, dtype=kind if raw else types.UINT8)
        feed = {
            name: fn.external_source(name=name, ndim=1, dtype=types.FLOAT if name == "resized" else types.INT32)
            for name in ("anchor", "shape", "resized", "corner")
        }
        hflip, vflip = (fn.external_source(name=name, ndim=0, dtype=types.INT32) for name in ("hflip", "vflip"))
        if raw:
            stored = encoded.gpu() if device == "gpu" else encoded
            stored = fn.reinterpret(stored, layout="HWC")
            window = fn.slice(stored, feed["anchor"], feed["shape"], axes=(0, 1))
        else:
            # Only the window is decoded. EXIF was applied, or refused, when the set was made.
            window = fn.decoders.image_slice(
                encoded,
                feed["anchor"],
                feed["shape"],
                axes=(0, 1),
                device="mixed" if device == "gpu" else "cpu",
                output_type=colours,
                dtype=kind,
                adjust_orientation=False,
                jpeg_fancy_upsampling=True,
                hw_decoder_load=HW_DECODER_LOAD,
            )
        image = fn.resize(window, size=feed["resized"], interp_type=types.INTERP_LINEAR, antialias=True)
        image = fn.slice(image, feed["corner"], list(transform.size), axes=(0, 1))
        image = fn.flip(image, horizontal=hflip, vertical=vflip)
        return fn.crop_mirror_normalize(
            image,
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[scale * m for m in transform.normalize.mean],
            std=[scale * s for s in transform.normalize.std],
        )

    return definition


def _reason(error: RuntimeError) -> str:
    """The telling line of one of DALI's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "rror" in line and not line.startswith(("Error in", "Error when", "C++"))]
    return " ".join((telling or lines or ["DALI refuses it"])[0].split())[:200]
