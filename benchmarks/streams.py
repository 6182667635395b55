"""The loaders that side_by_side.py compares: the same batches and images, and a state, each as its own users write it.

All decode by libjpeg-turbo and resize by OpenCV's areas; each image bears its number in a comment of its JPEG.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from peers import BATCH, SIZE, WORKERS


class Run(NamedTuple):
    """What a loader is asked for."""

    source: str  # a folder or a URL
    cache: Path  # empty
    resume: Any  # what `Stream.state` gave, or None


class Stream(NamedTuple):
    """A loader at work."""

    batches: Iterator[tuple[Any, list[int]]]  # images, and numbers that tell the samples
    state: Callable[[], Any]  # what resumes after the batches that came, as JSON


def numbered(jpeg: bytes, number: int) -> bytes:
    """A JPEG with its number in a comment, so that it can be told in every format."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + jpeg[2:]


def look(data: Any) -> tuple[Any, int]:
    """The work that is the same for all: JPEG -> uint8[224, 224, 3], and its number."""
    import cv2
    import simplejpeg

    image = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA), int.from_bytes(data[6:14], "big")


def split_and_plan(run: Run) -> tuple[Any, Any]:
    from shards.plan import Plan, PlanConfig
    from shards.shardset import ShardSet

    split = ShardSet(f"{run.source}/set", cache=run.cache).split("train")
    config = PlanConfig(BATCH, 0, order="windowed", window=2, partitions=4)
    return split, Plan(split.shard_sizes, config, split.digest)


def ours(run: Run) -> Stream:
    """Our plan, cache and hashes; the threads decode as the others' workers do, two batches ahead as theirs."""
    import numpy as np

    split, plan = split_and_plan(run)
    consumed = [run.resume or 0]

    def batches() -> Iterator[tuple[Any, list[int]]]:
        ahead, pool = split.fetch_ahead(plan, consumed[0]), ThreadPoolExecutor(WORKERS)
        started: deque[list[Any]] = deque()
        planned = consumed[0]
        while True:
            while len(started) < 3:
                positions = plan.slice(planned, 1, 0).positions.tolist()
                started.append([pool.submit(lambda place: look(split.read(place)), place) for place in positions])
                planned += BATCH
            ahead.advance(consumed[0])
            images, numbers = zip(*(future.result() for future in started.popleft()), strict=True)
            consumed[0] += BATCH
            yield np.stack(images), list(numbers)

    return Stream(batches(), lambda: consumed[0])


def our_loader(run: Run) -> Stream:
    """The public Loader."""
    from shards.loader import Loader
    from shards.transforms import eval_transform

    split, plan = split_and_plan(run)
    transform = eval_transform(SIZE, [0.5] * 3, [0.2] * 3)
    loader = Loader(split, transform, global_batch=BATCH, plan=plan, threads=WORKERS, samples_consumed=run.resume or 0)
    return Stream(((batch.images, batch.sample_ids.tolist()) for batch in loader), lambda: loader.samples_consumed)


def webdataset_stream(run: Run) -> Stream:
    """webdataset over our tars; it has no state: it is asked for all that came before."""
    import webdataset

    names = sorted(path.name for path in (Path(os.environ["BENCHMARK_FOLDER"]) / "set").glob("train-*.tar"))
    tars = [f"{run.source}/set/{name}" for name in names]
    samples = webdataset.WebDataset(tars, shardshuffle=100, detshuffle=True, seed=0)
    samples = samples.shuffle(500, seed=0).to_tuple("jpg").map(lambda sample: look(sample[0])).batched(BATCH)
    loader = iter(webdataset.WebLoader(samples, batch_size=None, num_workers=WORKERS))
    came = [0]

    def batches() -> Iterator[tuple[Any, list[int]]]:
        for images, numbers in loader:
            came[0] += 1
            if came[0] > (run.resume or 0):
                yield images, [int(number) for number in numbers]

    return Stream(batches(), lambda: came[0])


def mosaic_stream(run: Run) -> Stream:
    """mosaicml-streaming: MDS shards, the hash checked on arrival as ours."""
    import streaming

    class Set(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[Any, int]:
            return look(super().__getitem__(index)["image"])

    streaming.base.util.clean_stale_shared_memory()
    where: dict[str, Any] = {"local": f"{run.source}/mosaic"}
    if run.source.startswith("s3://"):
        where = {"remote": f"{run.source}/mosaic", "local": str(run.cache), "validate_hash": "xxh3_64"}
    found = Set(**where, shuffle=True, batch_size=BATCH)
    for stream in found.streams:
        stream._downloader.clean_up()  # or its workers share the connection that fetched the index: wrong bytes
    loader = streaming.StreamingDataLoader(found, batch_size=BATCH, num_workers=WORKERS)
    if run.resume:
        loader.load_state_dict(run.resume)
    return Stream(((images, numbers.tolist()) for images, numbers in loader), loader.state_dict)


def litdata_stream(run: Run) -> Stream:
    """litData: chunks, its own cache."""
    import litdata
    from litdata.streaming import downloader

    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # a loopback store has no certificate

    class Set(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            return look(super().__getitem__(index)["image"])

    found = Set(f"{run.source}/litdata", cache_dir=str(run.cache), shuffle=True, drop_last=False)
    loader = litdata.StreamingDataLoader(found, batch_size=BATCH, num_workers=WORKERS)
    if run.resume:
        loader.load_state_dict(run.resume)
    return Stream(((images, numbers.tolist()) for images, numbers in loader), loader.state_dict)


STREAMS: dict[str, tuple[Callable[[Run], Stream], tuple[str, ...]]] = {  # and what is imported before the clock starts
    "ours": (ours, ("cv2", "simplejpeg", "shards.remote", "aiohttp", "fsspec.implementations.http")),
    "ours, Loader": (our_loader, ("shards.loader", "shards.remote", "aiohttp", "fsspec.implementations.http")),
    "webdataset": (webdataset_stream, ("cv2", "simplejpeg", "torch", "webdataset")),
    "mosaicml-streaming": (mosaic_stream, ("cv2", "simplejpeg", "torch", "streaming", "boto3.s3.transfer")),
    "litData": (litdata_stream, ("cv2", "simplejpeg", "torch", "litdata", "boto3.s3.transfer")),
}
