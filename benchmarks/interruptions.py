"""Does a conversion end with the same bytes, however often and whenever it is killed?

    python benchmarks/interruptions.py --kills 200 --seed 0      about ten minutes; several conversions at a time
    python benchmarks/interruptions.py --kills 40 --dataset Camelyon --images 300      HDF5 through buckets

Conversions of phantoms, each killed (SIGKILL to the run or to one of its workers, SIGINT or SIGTERM to the run, a full
disk) at random moments and started again until it is through, then compared with an undisturbed one, byte by byte: the
set and sources.csv. Moments are drawn over the time that a whole run takes, its start included. Every fourth
conversion is packed (--compress zstd). Of Camelyon, buckets are made small enough that there are some ten. Prints what
happened how often; exit code 1 with any difference.
"""

import argparse
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prep.phantoms import SALT_NAME, draw_phantoms

ROOT = Path(__file__).parents[1]
KINDS = ("kill the run", "kill a worker", "Ctrl-C", "SIGTERM", "no room on the disk")
KILLS_A_RUN = 10
SMALL_BUCKETS = """
import prep.gathering, prep.make_shards as script
from shards.script import run_cli
prep.gathering.BUCKET_BYTES = 300_000
arguments = script.parse_args()
run_cli(lambda: script.main(arguments))
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--dataset", choices=("DDSM", "Camelyon"), default="DDSM", help="files, or HDF5")
    parser.add_argument("--at-once", type=int, default=2, help="conversions at a time")
    return parser.parse_args(argv)


def command(raw: Path, out: Path, packed: bool) -> list[str]:
    script = ["-c", SMALL_BUCKETS] if list(raw.glob("*.h5")) else ["prep/make_shards.py"]
    dataset = "Camelyon" if list(raw.glob("*.h5")) else "DDSM"
    words = [sys.executable, *script, "--dataset", dataset, "--raw", str(raw), "--out", str(out)]
    words += ["--short-side", "64", "--shard-samples", "8", "--workers", "2", "--salt", str(raw / SALT_NAME)]
    return [*words, "--compress", "zstd"] if packed else words


def digests(out: Path) -> dict[str, str]:
    files = [*out.rglob("*"), out.with_name(f"{out.name}.private") / "sources.csv"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files) if path.is_file()}


def small_disk() -> None:
    """No file may grow beyond 20 kB, as if the disk were full; writing fails, it sends no signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def start(words: list[str], full: bool = False) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        words, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=small_disk if full else None
    )


def workers_of(pid: int) -> list[int]:
    """Spawned processes of a run (its resource tracker among them)."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def disturb(process: "subprocess.Popen[bytes]", kind: str, chance: random.Random) -> bool:
    """Whether the run was still there to be disturbed."""
    if process.poll() is not None:
        return False
    victims = workers_of(process.pid)
    if kind == "kill a worker" and victims:
        try:
            os.kill(chance.choice(victims), signal.SIGKILL)
        except ProcessLookupError:
            return False
    else:
        process.send_signal({"Ctrl-C": signal.SIGINT, "SIGTERM": signal.SIGTERM}.get(kind, signal.SIGKILL))
    return True


def beat(raw: Path, out: Path, seed: int, whole_seconds: float, packed: bool) -> tuple[Counter[str], dict[str, str]]:
    """One conversion with KILLS_A_RUN disturbances; what they were, and what came of it."""
    chance, happened = random.Random(seed), Counter[str]()
    for number in range(KILLS_A_RUN):
        kind = KINDS[(seed + number) % len(KINDS)]
        process = start(command(raw, out, packed), full=kind == "no room on the disk")
        if kind == "no room on the disk":
            happened[kind] += int(process.wait() != 0)
            continue
        time.sleep(chance.uniform(0, whole_seconds))
        happened[kind] += disturb(process, kind, chance)
        process.wait()
    last = start(command(raw, out, packed))
    assert last.wait() == 0, f"seed {seed}: the last run failed"
    return happened, digests(out)


def main(args: argparse.Namespace) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medshard-interruptions-") as name:
        folder = Path(name)
        draw_phantoms(args.dataset, folder / "raw", args.images, size=96, quiet=True)
        wanted = {}
        for packed in (False, True):
            started = time.monotonic()
            assert start(command(folder / "raw", folder / f"calm-{packed}", packed)).wait() == 0
            seconds, wanted[packed] = time.monotonic() - started, digests(folder / f"calm-{packed}")
        happened, runs, different = Counter[str](), 0, []
        with ThreadPoolExecutor(args.at_once) as pool:
            while happened.total() < args.kills:
                seeds = [args.seed + runs + i for i in range(args.at_once)]
                jobs = [
                    pool.submit(beat, folder / "raw", folder / f"set-{seed}", seed, seconds, seed % 4 == 3)
                    for seed in seeds
                ]
                for seed, job in zip(seeds, jobs, strict=True):
                    counted, found = job.result()
                    happened, runs = happened + counted, runs + 1
                    if found != wanted[seed % 4 == 3]:
                        different.append(seed)
                print(f"{happened.total()} interruptions in {runs} conversions, different: {different}", flush=True)
    shards = sum(name.endswith(".tar") for name in wanted[False])
    print(f"seeds {args.seed} to {args.seed + runs - 1}, {args.images} images in {shards} shards")
    print(", ".join(f"{kind} {count}" for kind, count in sorted(happened.items())), end="; ")
    print(f"{time.monotonic() - begun:.0f} s")
    print(f"all {runs} sets equal to the undisturbed one, byte by byte: {not different}")
    return int(bool(different))


if __name__ == "__main__":
    sys.exit(main(parse_args()))
