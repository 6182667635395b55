"""The public Loader at its edges: patches, originals of 12 megapixels, a paced consumer, memory, on this machine's CPU.

    python benchmarks/consumers.py patches
    python benchmarks/consumers.py originals --photos FOLDER      (photographs as they come from the camera)
    python benchmarks/consumers.py paced --photos FOLDER
    python benchmarks/consumers.py memory --batches 10000                    (--executor dali: DALI's buffers)

`patches`: 96 x 96 raw shards, light, at 96 px and enlarged to 224 px. `originals`: the study's way (PIL and torchvision
from the original file, 2 workers) and the Loader from shards of 256 px of the same photographs, in turn. `paced`: a
consumer that wants 90 % of the rate just measured, and how long it waited, with 2 and with 4 batches ahead. `memory`:
resident memory over many batches of images of 64 to 1,024 px. 2 threads, batches of 64. The result is recorded in
benchmarks/README.md.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from peers import BATCH, SCALE, SIZE, WORKERS, torchvision_transform

BOUNDS = (1e-4, 1e-3, 1e-2, 1e-1)  # seconds


def loader_of(folder: Path, size: int = SIZE, preset: str = "light", executor: Any = "auto", prefetch: int = 2) -> Any:
    from shards.loader import Loader
    from shards.shardset import ShardSet
    from shards.transforms import train_transform

    transform = train_transform(size, [0.5] * 3, [0.2] * 3, scale=SCALE, preset=preset)
    split = ShardSet(folder).split("train")
    return Loader(split, transform, global_batch=BATCH, threads=WORKERS, executor=executor, prefetch=prefetch)


def rate(batches: Iterator[Any], seconds: float, warm: int = 8) -> float:
    for _ in range(warm):
        next(batches)
    begun, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - begun) < seconds:
        next(batches)
        count += BATCH
    return count / passed


def write(folder: Path, images: list[bytes], encoding: Any, shapes: list[tuple[int, int]], count: int) -> Path:
    from shards.sets import write_set
    from shards.writer import Sample

    samples = (
        Sample("train", f"{n:08d}", images[n % len(images)], encoding, (n % 2,), *shapes[n % len(images)], n)
        for n in range(count)
    )
    write_set(folder, samples, name="consumers", classes=["a", "b"], shard_size=2000, mean=[0.5] * 3, std=[0.2] * 3)
    return folder


def patches(args: argparse.Namespace, folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (96, 96, 3), dtype=np.uint8).tobytes() for _ in range(512)]
    made = write(folder / "patches", images, "raw", [(96, 96)] * len(images), 20_000)
    found: dict[int, list[float]] = {96: [], SIZE: []}
    for _ in range(args.rounds):
        for size, rates in found.items():
            loader = loader_of(made, size)
            rates.append(rate(iter(loader), args.seconds))
            loader.close()
    for size, rates in found.items():
        print(f"96 x 96 raw patches, light, at {size} px: {statistics.median(rates):.0f} images/s (median of {rates})")


def study_way(paths: list[Path]) -> Iterator[Any]:
    import torch
    from PIL import Image

    transform = torchvision_transform("light", False)

    class Originals(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, number: int) -> Any:
            return transform(Image.open(paths[number]).convert("RGB"))

    images = Originals()
    sampler = torch.utils.data.RandomSampler(images, replacement=True, num_samples=10**6)
    return iter(torch.utils.data.DataLoader(images, 8, sampler=sampler, num_workers=WORKERS))


def originals(args: argparse.Namespace, folder: Path) -> None:
    from loaders import photographs

    from shards.decoding import probe

    paths = sorted(args.photos.rglob("*.jpg"))
    small = photographs(args.photos, 256)
    made = write(folder / "small", small, "jpeg", [probe(image)[:2] for image in small], 4000)
    for _ in range(args.rounds):
        theirs, loader = study_way(paths), loader_of(made)
        for _ in range(2):
            next(theirs)
        begun = time.perf_counter()
        for _ in range(6):
            next(theirs)
        slow = 48 / (time.perf_counter() - begun)
        del theirs
        fast = rate(iter(loader), args.seconds)
        loader.close()
        print(
            f"from originals {slow:.1f} images/s, from shards at 256 px {fast:.0f}: {fast / slow:.0f} times", flush=True
        )


def paced(args: argparse.Namespace, folder: Path) -> None:
    from loaders import photographs

    from shards.bench import PACE, paced_waits
    from shards.decoding import probe

    images = photographs(args.photos, 256)
    made = write(folder / "paced", images, "jpeg", [probe(image)[:2] for image in images], 6000)
    for prefetch in [2, 4] * args.rounds:
        loader = loader_of(made, prefetch=prefetch)
        step = BATCH / (PACE * rate(iter(loader), args.seconds))
        waits = paced_waits(loader, step, 3 * args.seconds)
        loader.close()
        share, edges = waits.sum() / (waits.sum() + step * len(waits)), [0.0, *BOUNDS, np.inf]
        counts = np.histogram(waits, edges)[0].tolist()
        shown = ", ".join(f"up to {edge:g} s: {n}" for edge, n in zip(edges[1:], counts, strict=True))
        pace = f"prefetch {prefetch}, steps of {1e3 * step:.1f} ms ({PACE:.0%} of capacity)"
        print(f"{pace}: waited {share:.2%} of the time; waits {shown}", flush=True)


def memory(args: argparse.Namespace, folder: Path) -> None:
    import cv2

    rng, images, shapes = np.random.default_rng(0), [], []
    for side in np.geomspace(64, 1024, 64).astype(int).tolist():
        shapes.append((side, int(side * rng.uniform(0.7, 1.4))))
        images.append(cv2.imencode(".jpg", cv2.blur(rng.integers(0, 256, (*shapes[-1], 3), dtype=np.uint8), (9, 9)))[1])
    made = write(folder / "mixed", [image.tobytes() for image in images], "jpeg", shapes, 4000)
    loader = loader_of(made, 32, "full", args.executor)
    for number, _ in enumerate(loader, 1):
        if number in (100, args.batches) or number % max(args.batches // 10, 1) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            print(f"batch {number}: {pages * resource.getpagesize() / 1e6:.0f} MB resident", flush=True)
        if number == args.batches:
            break


PARTS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "patches": patches,
    "originals": originals,
    "paced": paced,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--photos", type=Path, help="folder with .jpg photographs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, after the warm-up")
    parser.add_argument("--batches", type=int, default=10_000, help="of `memory`")
    parser.add_argument("--executor", choices=["host", "dali"], default="host", help="of `memory` (default host)")
    args = parser.parse_args()
    if args.part in ("originals", "paced") and not (args.photos and args.photos.is_dir()):
        parser.error(f"{args.part} wants --photos FOLDER")
    print(json.dumps({"part": args.part, "load": os.getloadavg()[0], "cores": len(os.sched_getaffinity(0))}))
    with tempfile.TemporaryDirectory(prefix="consumers-") as folder:
        PARTS[args.part](args, Path(folder))
    sys.stdout.flush()
    os._exit(0)  # workers end with the process


if __name__ == "__main__":
    main()
