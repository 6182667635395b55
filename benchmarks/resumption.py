"""Does resuming take longer than starting? The public Loader's first batch at 0 % and at 90 % of an epoch.

    python benchmarks/resumption.py --rounds 20

Writes a set of JPEG textures, and serves it with 20 ms before each answer from a process of its own. A start opens the
set (from the store: with an empty cache), makes the Loader there and takes one batch of 64. Starts at 0 % and at 90 %
of the fourth epoch take turns, so that other work on the machine meets both alike. Prints the median seconds, and the
median of the rounds' ratios of 90 % to 0 %, by the clock and by the processor's time: below 1.1 is what is promised.
The result is recorded in benchmarks/README.md; that of the plan alone, at 10^9 samples, is benchmarks/plan.py's.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from itertools import count
from pathlib import Path

from walk import BATCH, samples, served

from shards.loader import Loader
from shards.plan import Plan, PlanConfig
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.transforms import train_transform

ORDERS = {"global": PlanConfig(BATCH, 0), "windowed": PlanConfig(BATCH, 0, order="windowed", window=2, partitions=4)}
Start = tuple[float, float]  # seconds, and of the processor


def start(place: str, cache: Path, order: str, at: float) -> Start:
    """From nothing to the first batch."""
    begun, busy = time.perf_counter(), time.process_time()
    split = ShardSet(place, cache=cache).split("train")
    plan = Plan(split.shard_sizes, ORDERS[order], split.digest)
    consumed = int((3 + at) * plan.samples_per_epoch) // BATCH * BATCH
    transform = train_transform(224, [0.5] * 3, [0.2] * 3, preset="full")
    loader = Loader(split, transform, global_batch=BATCH, plan=plan, samples_consumed=consumed)
    batch = next(iter(loader))
    taken = time.perf_counter() - begun, time.process_time() - busy
    assert bool(batch.valid.all())
    loader.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--side", type=int, default=256, help="pixels of the stored images")
    parser.add_argument("--shard-size", type=int, default=200, help="samples a shard")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer of the store")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="resumption-"))
    try:
        options = {"name": "resumption", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
        write_set(folder / "set", samples(args.samples, args.side), shard_size=args.shard_size, **options)  # type: ignore[arg-type]
        print(f"{args.samples} images of {args.side} px; median of {args.rounds} rounds; ratio: 90 % to 0 %")
        print(f"{'':18}{'0 %, s':>9}{'90 %, s':>9}{'ratio':>8}{'CPU ratio':>11}")
        with served(folder / "set", args.latency) as url:
            for name, place in (("folder", str(folder / "set")), ("store", url)):
                for order in ORDERS:
                    measure(name, place, order, folder, args.rounds)
    finally:
        shutil.rmtree(folder)


def measure(name: str, place: str, order: str, folder: Path, rounds: int) -> None:
    """One line of the table."""
    caches, taken = (folder / f"cache-{number}" for number in count()), dict[float, list[Start]]()
    for number in range(rounds + 1):
        for at in (0.0, 0.9) if number % 2 else (0.9, 0.0):
            cache = next(caches)
            found = start(place, cache, order, at)
            shutil.rmtree(cache, ignore_errors=True)
            if number:  # the first round warms the page cache and loads what is loaded late
                taken.setdefault(at, []).append(found)
    early, late = ([run[0] for run in taken[at]] for at in (0.0, 0.9))
    ratios = [[b[i] / a[i] for a, b in zip(taken[0.0], taken[0.9], strict=True)] for i in (0, 1)]
    print(
        f"{name + ', ' + order:18}{statistics.median(early):9.3f}{statistics.median(late):9.3f}"
        f"{statistics.median(ratios[0]):8.3f}{statistics.median(ratios[1]):11.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
