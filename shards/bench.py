"""Images a second of reading, of decoding and of the whole pipeline here, the limit, and the prefetch to take.

python -m shards bench data/shards/DDSM --preset full --threads 8

Reads in the order of training, through the public Loader. Writes nothing.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from shards.command_line import Parser, add_debug_flag, positive
from shards.executors import choose_executor
from shards.host_executor import decode_fast
from shards.index import ENCODING_NAMES
from shards.loader import Loader
from shards.plan import Plan, PlanConfig
from shards.shardset import ShardSet, Split
from shards.transforms import PRESETS, Transform, train_transform

PACE = 0.9  # of what the pipeline makes: the rate of the consumer whose waits are measured
MOST_WAITING = 0.01  # of its time
DEPTHS = (2, 4, 8)  # steps ahead, tried in turn
BUSY = 0.25  # load a core, before we begin, above which the figures are only good as ratios


@dataclass(frozen=True)
class Result:
    """What was measured, in images a second, and where."""

    name: str
    split: str
    images: int
    median_height: int
    median_width: int
    kilobytes: float  # mean of an encoded image
    encoding: str
    preset: str
    size: int
    batch: int
    executor: str
    device: str
    threads: int
    cores: int
    load: float  # of one minute, before the measurement
    read: float  # and hash, one thread
    decode: float  # libjpeg-turbo or OpenCV, `threads` threads
    pipeline: float
    first_batch_seconds: float
    cpu_share: float  # of `cores`, in use during the pipeline
    prefetch: int  # the fewest steps ahead with which a paced consumer hardly waits, or the most that were tried
    waiting: float  # share of that consumer's time

    @property
    def shares(self) -> dict[str, float]:
        """Parts of the pipeline's time an image: read, decode and the rest.

        The loader reads a batch, then decodes and transforms it, so the parts add up; on DALI, whose decoder is another
        one, they are estimates.
        """
        read, decode = self.pipeline / self.read, self.pipeline / self.decode
        total = max(read + decode, 1.0)
        return {"read": read / total, "decode": decode / total, "rest": max(1 - read - decode, 0.0)}


def measure(
    shard_set: ShardSet,
    *,
    split: str = "train",
    preset: str = "light",
    size: int = 224,
    batch: int = 64,
    threads: int = 2,
    executor: str = "auto",
    seconds: float = 3.0,
) -> Result:
    """Measure a split for `seconds` a stage. ValueError for numbers out of range, and for a damaged image."""
    if seconds <= 0:
        raise ValueError(f"--seconds is {seconds}; give a number above 0")
    part, manifest, load = shard_set.split(split), shard_set.manifest, os.getloadavg()[0]
    transform = train_transform(size, manifest.mean, manifest.std, preset=preset)
    on_gpu = executor != "host" and torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"

    def loader(prefetch: int = DEPTHS[0]) -> Loader:
        return Loader(
            part,
            transform,
            global_batch=batch,
            executor=executor,  # type: ignore[arg-type]
            device=device,
            threads=threads,
            prefetch=prefetch,
        )

    rows = part.rows(np.linspace(0, part.num_samples - 1, min(part.num_samples, 4096)).astype(np.int64))
    read = read_rate(part, batch, seconds)
    decode = decode_rate(part, transform, batch, threads, seconds)
    first, pipeline, cpu = pipeline_rate(loader(), seconds)
    prefetch, waiting = depth_wanted(loader, batch / (PACE * pipeline), seconds)
    cores = len(os.sched_getaffinity(0))
    return Result(
        name=manifest.name,
        split=split,
        images=part.num_samples,
        median_height=int(np.median(rows.heights)),
        median_width=int(np.median(rows.widths)),
        kilobytes=round(float(rows.sizes.mean()) / 1e3, 1),
        encoding=manifest.encoding,
        preset=preset,
        size=size,
        batch=batch,
        executor=choose_executor(executor, torch.device(device)),  # type: ignore[arg-type]
        device=torch.cuda.get_device_name() if on_gpu else "cpu",
        threads=threads,
        cores=cores,
        load=round(load, 2),
        read=round(read, 1),
        decode=round(decode, 1),
        pipeline=round(pipeline, 1),
        first_batch_seconds=round(first, 3),
        cpu_share=round(cpu / cores, 3),
        prefetch=prefetch,
        waiting=round(waiting, 4),
    )


def positions_of(split: Split, batch: int) -> Iterable[list[int]]:
    """Positions of one global batch after another, endless, in the order of training."""
    plan = Plan(split.shard_sizes, PlanConfig(batch, 0), split.digest)
    return (plan.slice(step * batch, 1, 0).positions.tolist() for step in itertools.count())


def rate(work: Callable[[list[int]], object], batches: Iterable[list[int]], seconds: float) -> float:
    """Images a second of doing `work` on batches for so long; the first is a warm-up."""
    batches = iter(batches)
    work(next(batches))
    begun, images = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds or not images:
        images += len(batch := next(batches))
        work(batch)
    return images / (time.perf_counter() - begun)


def read_rate(split: Split, batch: int, seconds: float) -> float:
    """Reading and hashing on one thread, as the loader does."""
    return rate(lambda positions: [split.read(p) for p in positions], positions_of(split, batch), seconds)


def decode_rate(split: Split, transform: Transform, batch: int, threads: int, seconds: float) -> float:
    """The host's decoder alone on `threads` threads; its images are read beforehand and thrown away.

    Raises:
        ValueError: a stored image is damaged.
    """
    batches = list(itertools.islice(positions_of(split, batch), max(1, min(512, split.num_samples) // batch)))
    encoded = {p: (split.key(p), split.read(p), _form(split, p)) for p in itertools.chain(*batches)}

    def one(position: int) -> None:
        key, image, form = encoded[position]
        try:
            decode_fast(image, form[0], transform.stored_channels, *form[1:], bits=split.manifest.bits)
        except ValueError as error:
            raise ValueError(f"sample {key} of {split.name}: {error}; run python -m shards check") from None

    with ThreadPoolExecutor(threads) as pool:
        return rate(lambda positions: list(pool.map(one, positions)), itertools.cycle(batches), seconds)


def _form(split: Split, position: int) -> tuple[str, int, int]:
    rows = split.rows(np.array([position]))
    return ENCODING_NAMES[int(rows.encodings[0])], int(rows.heights[0]), int(rows.widths[0])


def pipeline_rate(loader: Loader, seconds: float) -> tuple[float, float, float]:
    """Seconds to the first batch, then images a second, and cores in use, of the loader as a trainer iterates it."""
    begun, batches = time.perf_counter(), iter(loader)
    next(batches)
    first = time.perf_counter() - begun
    for _ in range(loader.prefetch + 1):  # what was prepared ahead would count as if it had cost nothing
        next(batches)
    begun, busy, images = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begun < seconds or not images:
        images += len(next(batches).sample_ids)
    if loader.device.type == "cuda":
        torch.cuda.synchronize(loader.device)
    passed, busy = time.perf_counter() - begun, time.process_time() - busy
    loader.close()
    return first, images / passed, busy / passed


def depth_wanted(loader: Callable[[int], Loader], step: float, seconds: float) -> tuple[int, float]:
    """The fewest steps ahead with which a consumer of `step` seconds hardly waits, and the share of time it does."""
    for depth in DEPTHS:
        opened = loader(depth)
        waits = paced_waits(opened, step, seconds)
        opened.close()
        share = float(waits.sum() / (waits.sum() + step * len(waits)))
        if share <= MOST_WAITING:
            break
    return depth, share


def paced_waits(loader: Loader, step: float, seconds: float) -> np.ndarray:
    """Seconds float64[n] that a training whose step takes `step` seconds waits for each batch.

    It sleeps its step away, as a GPU's would pass, and begins when the batches ahead are there; a late batch delays all
    that follow.
    """
    batches, waits = iter(loader), list[float]()
    next(batches)
    time.sleep((loader.prefetch + 1) * step)
    end = time.perf_counter() + seconds
    while (begun := time.perf_counter()) < end or not waits:
        next(batches)
        waits.append(time.perf_counter() - begun)
        time.sleep(step)
    return np.array(waits)


def verdict(result: Result) -> str:
    """One line: what limits this pipeline, and what to change."""
    name, share = max(result.shares.items(), key=lambda item: item[1])
    side, spare = min(result.median_height, result.median_width), result.cores - result.threads
    more = f"more threads (--threads {result.cores}: {spare} cores are free), " if spare > 0 else ""
    if name == "read":
        what, change = (
            "reading and hashing",
            "a local disk or memory instead of a network, bigger shards, or fewer bytes",
        )
    elif name == "decode":
        smaller = (
            f"store nearer to {result.size} px than {side} (prep/make_shards.py)" if side > 1.3 * result.size else ""
        )
        what, change = "decoding", more + (smaller or "a GPU, or store small images raw")
    else:
        lighter = (
            "a smaller --image-size, or a GPU"
            if result.preset == "light"
            else "preset light, a smaller --image-size, or a GPU"
        )
        what, change = "augmentation (resize, colour, normalisation)", more + lighter
    if (result.executor, result.device) == ("dali", "cpu") and name != "read":
        change = f"--executor host, which suits a CPU, {change}"
    return f"limit: {what}, {share:.0%} of the time; to go faster: {change}"


def table(result: Result) -> str:
    """The result as text."""
    r, shares = result, result.shares
    stages = {
        "read and hash": (r.read, shares["read"]),
        "decode alone": (r.decode, shares["decode"]),
        "all the rest": (None, shares["rest"]),
        "whole pipeline": (r.pipeline, 1.0),
    }
    lines = [
        f"{r.name} {r.split}: {r.images} images, median {r.median_height} x {r.median_width} px, {r.kilobytes:g} kB "
        f"each, {r.encoding}",
        f"preset {r.preset}, {r.size} px, batches of {r.batch}; executor {r.executor} on {r.device}; threads "
        f"{r.threads}, cores {r.cores}",
        f"{'stage':16}{'images/s':>10}{'ms/image':>10}{'of the time':>13}",
    ]
    for name, (speed, share) in stages.items():
        shown = f"{speed:10,.0f}{1e3 / speed:10.3f}" if speed else f"{'':10}{share * 1e3 / r.pipeline:10.3f}"
        lines.append(f"{name:16}{shown}{share:13.0%}")
    lines.append(f"first batch after {r.first_batch_seconds:.2f} s; {r.cpu_share:.0%} of the cores in use")
    ahead = f"with --prefetch {r.prefetch} a training that wants {PACE:.0%} of them waits {r.waiting:.1%} of its time"
    lines.append(ahead)
    if r.load > BUSY * r.cores:
        lines.append(f"note: other work ran here (load {r.load} on {r.cores} cores): take the rates as ratios only")
    return "\n".join([*lines, verdict(r)])


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards bench`."""
    cores = len(os.sched_getaffinity(0))
    parser = Parser(
        prog="python -m shards bench",
        description="Measure reading, decoding and the whole pipeline here; say which is the limit, and how many steps "
        "to prepare ahead. Files read lately come from memory, not from the disk.",
        epilog="example: python -m shards bench data/shards/DDSM --preset full --threads 8",
    )
    parser.add_argument("shards", help="shard set, a folder or a URL")
    parser.add_argument("--cache", type=Path, help="folder for what is fetched from a URL; the fetching counts")
    parser.add_argument("--threads", type=positive, default=cores, help="decoding threads (default: all cores)")
    parser.add_argument("--batch", type=positive, default=64, help="images a step")
    parser.add_argument("--image-size", dest="size", type=int, default=224, help="side of the square input, pixels")
    parser.add_argument("--preset", choices=list(PRESETS), default="light", help="augmentation")
    parser.add_argument("--executor", choices=("auto", "host", "dali"), default="auto", help="who makes the pixels")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--split", default="train", help="split to read")
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON document")
    add_debug_flag(parser)
    o = parser.parse_args(argv)
    names = ("split", "preset", "size", "batch", "threads", "executor", "seconds")
    result = measure(ShardSet(o.shards, cache=o.cache), **{name: getattr(o, name) for name in names})
    shares = {name: round(share, 4) for name, share in result.shares.items()}
    print(
        json.dumps(asdict(result) | {"shares": shares, "verdict": verdict(result)}, indent=1)
        if o.json
        else table(result)
    )
    return 0
