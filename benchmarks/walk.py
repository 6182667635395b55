"""Does streaming keep up? The rate of walking a windowed plan with decoding, from a folder and from a loopback server.

    python benchmarks/walk.py --rounds 5                 a bare walk, which keeps every core busy
    python benchmarks/walk.py --rounds 5 --run 0.85      a run: the Loader, and a pause after each batch
    python benchmarks/walk.py --rounds 3 --model mobilenetv3_small_050      a run that trains a net on the CPU

Writes a set of JPEG textures, serves it with 20 ms before each answer from a process of its own, and walks the same
steps of the same plan from both, in turn, an empty cache each time: a sample is read, its hash checked, decoded and
resized to 224 px on `--threads` threads. Rates count from the end of the first window, when the cache has had its first
filling; the processor's time an image, of all threads of this process, tells the cost of fetching and hashing where the
machine has other work too. Prints one line a round and the medians. The result is recorded in benchmarks/README.md.

With `--run SHARE` the public Loader feeds a consumer that sleeps after each batch as long as a training step on a GPU
would take, so that it asks for SHARE of the images a second that the Loader makes from the folder without any pause
(measured in the same round). At `--run 1` nothing but the store's and the fetching's own work can be missing. With
`--model NAME` the consumer is a real training step of a timm model on the CPU, which fetching competes with.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from shards.loader import Batch, Loader
from shards.plan import Plan, PlanConfig
from shards.sets import write_set
from shards.shardset import ShardSet, Split
from shards.transforms import eval_transform
from shards.writer import Sample

SERVER = Path(__file__).resolve().parents[1] / "tests" / "faulty_server.py"
BATCH = 64


def samples(count: int, side: int) -> Iterator[Sample]:
    images = list(textures(64, side))  # rates do not depend on how many differ
    for number in range(count):
        yield Sample("train", f"{number:08d}", images[number % 64], "jpeg", (number % 2,), side, side, number)


def textures(count: int, side: int) -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side]
    for _ in range(count):
        noise = rng.normal(0, 12, (side, side, 3))
        wave = 60 * np.sin(x[..., None] * rng.uniform(0.02, 0.2, 3) + y[..., None] * rng.uniform(0.02, 0.2, 3))
        yield cv2.imencode(".jpg", np.clip(128 + wave + noise, 0, 255).astype(np.uint8))[1].tobytes()


@contextmanager
def served(folder: Path, latency: float, host: str = "localhost") -> Iterator[str]:
    command = [sys.executable, str(SERVER), str(folder), "--latency", str(latency), "--host", host]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None and server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


def look_at(split: Split, position: int) -> int:
    image = cv2.imdecode(np.frombuffer(split.read(position), np.uint8), cv2.IMREAD_COLOR)
    return int(cv2.resize(image, (224, 224), interpolation=cv2.INTER_AREA)[0, 0, 0])


Consume = Callable[[Batch], object]


class Walk(NamedTuple):
    """What one walk took."""

    first_window_seconds: float
    images_a_second: float  # after it
    cpu_ms_an_image: float  # after it


def walk(split: Split, plan: Plan, steps: int, warm: int, threads: int) -> Walk:
    ahead = split.fetch_ahead(plan)
    start = time.perf_counter()
    try:
        with ThreadPoolExecutor(threads) as pool:
            for step in range(steps):
                if step == warm:
                    middle, busy = time.perf_counter(), time.process_time()
                positions = plan.slice(step * BATCH, 1, 0).positions.tolist()
                list(pool.map(lambda position: look_at(split, position), positions))
                ahead.advance((step + 1) * BATCH)
    finally:
        ahead.close()
    images = (steps - warm) * BATCH
    cpu_ms = (time.process_time() - busy) * 1e3 / images
    return Walk(middle - start, images / (time.perf_counter() - middle), cpu_ms)


def run(split: Split, plan: Plan, steps: int, warm: int, threads: int, consume: Consume) -> Walk:
    """As `walk`, by the public Loader, with a consumer of each batch."""
    transform = eval_transform(224, [0.5] * 3, [0.2] * 3)
    loader = Loader(split, transform, global_batch=BATCH, plan=plan, threads=threads)
    start, batches = time.perf_counter(), iter(loader)
    for step in range(steps):
        if step == warm:
            middle, busy = time.perf_counter(), time.process_time()
        consume(next(batches))
    seconds, busy = time.perf_counter() - middle, time.process_time() - busy
    loader.close()
    images = (steps - warm) * BATCH
    return Walk(middle - start, images / seconds, busy * 1e3 / images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--side", type=int, default=256, help="pixels of the stored images")
    parser.add_argument("--shard-size", type=int, default=200, help="samples a shard")
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--window", type=int, default=2, help="shards a window")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=float, metavar="SHARE", help="a training that asks for this share of the rate")
    parser.add_argument("--model", help="a training of this timm model")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    folder = Path(tempfile.mkdtemp(prefix="streaming-"))
    try:
        measure(args, folder)
    finally:
        shutil.rmtree(folder)


def measure(args: argparse.Namespace, folder: Path) -> None:
    made = write_set(
        folder / "set",
        samples(args.samples, args.side),
        name="streaming",
        classes=["a", "b"],
        shard_size=args.shard_size,
        mean=[0.5] * 3,
        std=[0.2] * 3,
    )
    split = made.split("train")
    config = PlanConfig(BATCH, 0, order="windowed", window=args.window, partitions=args.partitions)
    plan = Plan(split.shard_sizes, config)
    bytes_a_shard = max(info.bytes for info in split.shards)
    limit = 3 * args.partitions * args.window * bytes_a_shard  # the windows being read, the next ones, and one more
    warm = -(-args.partitions * args.window * args.shard_size // BATCH)
    print(
        f"{args.samples} images of {args.side} px in {len(split.shards)} shards of {bytes_a_shard / 1e6:.1f} MB; cache "
        f"{limit / 1e6:.0f} MB; {args.latency * 1e3:g} ms; {args.threads} threads; first window {warm} steps"
    )
    walk(split, plan, warm + 1, warm, args.threads)  # the page cache, and the clock of the processor
    walks: dict[str, list[Walk]] = {"local": [], "remote": []}
    with served(folder / "set", args.latency) as url:
        for number in range(args.rounds):
            consume = consumer(args, split, plan, warm)
            for place in ("local", "remote") if number % 2 else ("remote", "local"):
                cache = folder / f"cache-{number}"
                there = made if place == "local" else ShardSet(url, cache=cache, cache_limit=limit)
                given = (there.split("train"), plan, plan.steps(1), warm, args.threads)
                result = run(*given, consume) if consume else walk(*given)
                walks[place].append(result)
                print(
                    f"round {number}  {place:6}  first window {result.first_window_seconds:5.2f} s  then "
                    f"{result.images_a_second:6.0f} images/s, {result.cpu_ms_an_image:.3f} ms CPU an image",
                    flush=True,
                )
    report("images/s", [walk.images_a_second for walk in walks["local"]], [w.images_a_second for w in walks["remote"]])
    report("ms CPU", [walk.cpu_ms_an_image for walk in walks["local"]], [w.cpu_ms_an_image for w in walks["remote"]])


def consumer(args: argparse.Namespace, split: Split, plan: Plan, warm: int) -> Consume | None:
    """What becomes of a batch; None for a bare walk."""
    if args.model is not None:
        return training(args.model)
    if args.run is None:
        return None
    most = run(split, plan, plan.steps(1), warm, args.threads, lambda batch: None).images_a_second
    pause = BATCH / most / args.run  # seconds, so that it asks for `--run` of what the Loader makes at most
    print(f"the Loader alone, from the folder: {most:.0f} images/s; a step takes {1e3 * pause:.1f} ms")
    return lambda batch: time.sleep(pause)


def training(model: str) -> Consume:
    """Forward, backward and a step of SGD on the CPU."""
    import timm
    import torch

    torch.manual_seed(0)
    net = timm.create_model(model, num_classes=2)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)

    def consume(batch: Batch) -> None:
        loss = torch.nn.functional.cross_entropy(net(batch.images), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return consume


def report(unit: str, local: list[float], remote: list[float]) -> None:
    ratios = [far / near for near, far in zip(local, remote, strict=True)]
    print(
        f"{unit}: median local {statistics.median(local):.4g}, remote {statistics.median(remote):.4g}; remote / local "
        f"a round: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
