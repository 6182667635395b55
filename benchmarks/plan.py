"""The plan measured: first batch of a huge set in a fresh process, samples planned a second, quality of the shuffle.

    python benchmarks/plan.py                    about a minute on one core; --samples, --shards for another size

Prints versions, hardware and four tables. Reads and writes nothing. The orders of others are run as their code does:
webdataset's own `shuffle` filter, and DALI's reader buffer as its documentation states it (a random one of the buffer
goes out, the next sample takes its place), simulated here because the reader gives no positions out.
"""

import argparse
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from shards.balance import BalancedOrder
from shards.mixture import Mixture
from shards.plan import ORDERS, Plan, PlanConfig
from shards.subsets import Subset, keep_fraction

BATCH = 64


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--shards", type=int, default=10**5)
    parser.add_argument(
        "--first-batch", choices=ORDERS, help="one measurement in this process (used by the script itself)"
    )
    parser.add_argument("--at", type=float, default=0.9, help="with --first-batch: at which part of epoch 700")
    return parser.parse_args()


def make_plan(args: argparse.Namespace, order: str, batch: int) -> Plan:
    sizes = np.full(args.shards, args.samples // args.shards)
    return Plan(sizes, PlanConfig(batch, 0, order=order), "benchmark")  # type: ignore[arg-type]


def first_batch(args: argparse.Namespace) -> None:
    """Seconds from nothing to rank 63's slice, and the peak memory of the process, imports included."""
    started = time.perf_counter()
    plan = make_plan(args, args.first_batch, 1024)
    plan.slice(int((700 + args.at) * args.samples) // 1024 * 1024, 64, 63)
    print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure_first_batch(args: argparse.Namespace) -> None:
    print(
        f"\nfirst batch of {args.samples:.0e} samples in {args.shards:.0e} shards, world 64, fresh process, median of 5"
    )
    print(f"{'order':12}{'at 0 %, ms':>12}{'at 90 %, ms':>13}{'peak RSS, MB':>14}")
    for order in ORDERS:
        size = ["--samples", str(args.samples), "--shards", str(args.shards)]
        runs = {at: [_fresh(["--first-batch", order, "--at", at, *size]) for _ in range(5)] for at in ("0", ".9")}
        start, late = (np.median(runs[at], axis=0) for at in ("0", ".9"))
        print(f"{order:12}{start[0] * 1e3:12.1f}{late[0] * 1e3:13.1f}{late[1]:14.0f}")


def _fresh(arguments: list[str]) -> tuple[float, ...]:
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


def measure_rate(args: argparse.Namespace) -> None:
    print("\nsamples planned a second of CPU time on one core, the whole batch, step by step (best of 3)")
    print(f"{'order':12}" + "".join(f"{f'batch {batch}':>14}" for batch in (64, 1024, 16384)))
    for order in ORDERS:
        rates = [_rate(make_plan(args, order, batch), batch) for batch in (64, 1024, 16384)]
        print(f"{order:12}" + "".join(f"{rate:14.2e}" for rate in rates))


def _rate(plan: Plan, batch: int) -> float:
    """CPU time of this process, so that neighbours on the machine do not count."""
    steps, best = max(200_000 // batch, 5), float("inf")
    plan.slice(0, 1, 0)
    for _ in range(3):
        started = time.process_time()
        for step in range(steps):
            plan.slice(step * batch, 1, 0)
        best = min(best, time.process_time() - started)
    return steps * batch / best


def measure_shuffle() -> None:
    """100,000 samples sorted by 10 classes in 100 shards; ideal: chi2/df 1, both correlations 0."""
    count, shards = 100_000, 100
    print(f"\nshuffle of {count} samples sorted by 10 classes in {shards} shards, batches of {BATCH}")
    print(f"{'order':52}{'classes':>9}{'chi2/df':>9}{'r(lag 1)':>10}{'r(lag 64)':>11}{'r(time)':>9}")
    for name, order in _orders_of_an_epoch(count, shards):
        print(f"{name:52}" + _quality(order, count))


def _orders_of_an_epoch(count: int, shards: int) -> Iterator[tuple[str, np.ndarray]]:
    sizes, stream = [count // shards] * shards, np.arange(count)
    yield "sequential", stream
    for window, partitions in ((1, 1), (4, 4), (16, 1), (4, 16), (16, 64)):
        config = PlanConfig(BATCH, 0, order="windowed", window=window, partitions=partitions)
        yield f"ours, windowed, {window} shards x {partitions} partitions", Plan(sizes, config).at(stream)[0]
    yield "ours, global", Plan(sizes, PlanConfig(BATCH, 0)).at(stream)[0]
    yield "an independent random permutation (numpy)", np.random.default_rng(0).permutation(count)
    shuffled = np.random.default_rng(0).permutation(count // 1000)[:, None] * 1000 + np.arange(1000)
    for buffer in (1000, 10_000):
        yield f"webdataset, shuffle({buffer})", _webdataset(stream, buffer)
        yield f"webdataset, shards shuffled, shuffle({buffer})", _webdataset(shuffled.ravel(), buffer)
    yield "DALI, initial_fill=1024 (its default)", _reservoir(stream, 1024)
    yield "DALI, initial_fill=10000", _reservoir(stream, 10_000)


def _webdataset(stream: np.ndarray, buffer: int) -> np.ndarray:
    from webdataset.filters import _shuffle

    return np.fromiter(_shuffle(iter(stream.tolist()), bufsize=buffer, initial=buffer, rng=random.Random(0)), np.int64)


def _reservoir(stream: np.ndarray, fill: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    buffer, out = stream[:fill].copy(), []
    for following in stream[fill:]:
        chosen = rng.integers(fill)
        out.append(buffer[chosen])
        buffer[chosen] = following
    return np.concatenate([np.array(out, np.int64), rng.permutation(buffer)])


def _quality(order: np.ndarray, count: int) -> str:
    """Mean classes a batch; chi-square a degree of freedom of the classes a batch; correlations of stored position."""
    classes = (order * 10 // count)[: count // BATCH * BATCH].reshape(-1, BATCH)
    table = np.stack([(classes == number).sum(1) for number in range(10)], 1)
    expected = BATCH / 10
    chi = ((table - expected) ** 2 / expected).sum(1).mean() / 9
    lags = [np.corrcoef(order[:-lag], order[lag:])[0, 1] for lag in (1, BATCH)]
    drift = np.corrcoef(np.arange(count), order)[0, 1]
    return f"{(table > 0).sum(1).mean():9.2f}{chi:9.2f}{lags[0]:10.3f}{lags[1]:11.3f}{drift:9.3f}"


def measure_parts(args: argparse.Namespace, count: int = 10**7) -> None:
    rng = np.random.default_rng(0)
    classes = rng.choice(5, count, p=[0.5, 0.25, 0.15, 0.07, 0.03]).astype(np.int8)
    groups = rng.integers(0, 2**63, count // 4).astype(np.uint64)[rng.integers(0, count // 4, count)]
    print(
        f"\nparts of {count:.0e} samples, 5 classes, {count // 4:.1e} groups; seconds to make, then a batch of 1024, ms"
    )
    config = PlanConfig(1024, 0)
    _report("fraction .1", lambda: _subset_plan(keep_fraction(0.1, groups, classes.astype(np.int64), seed=0), config))
    _report("balance classes", lambda: Plan([count], config, order=BalancedOrder(classes, 0)))
    sources = [make_plan(args, "windowed", 1024) for _ in range(2)]
    _report(f"mixture of two sets of {args.samples:.0e}, windowed", lambda: Mixture(sources, [0.7, 0.3]))


def _subset_plan(kept: np.ndarray, config: PlanConfig) -> Plan:
    return Plan([kept.size], config, subset=Subset(kept))


def _report(name: str, make: Callable[[], Plan]) -> None:
    started = time.process_time()
    plan = make()
    made, consumed = time.process_time(), 10**9 // 1024 * 1024
    plan.slice(consumed, 1, 0)
    batch = time.process_time()
    for step in range(20):
        plan.slice(consumed + 1024 * step, 1, 0)
    each = (time.process_time() - batch) / 20
    print(f"{name:44}{made - started:8.2f} s{(batch - made) * 1e3:9.1f} the first,{each * 1e3:7.2f} the next")


def main() -> None:
    args = parse_args()
    if args.first_batch:
        return first_batch(args)
    names = ("numpy", "webdataset")
    rows = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    cpu = next((row.split(":")[1].strip() for row in rows if row.startswith("model name")), platform.machine())
    print(f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names) + f"; {cpu}")
    measure_first_batch(args)
    measure_rate(args)
    measure_parts(args)
    measure_shuffle()


if __name__ == "__main__":
    main()
