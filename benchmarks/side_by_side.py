"""Streaming side by side: webdataset, mosaicml-streaming, litData and ours, from a folder and from a loopback store.

    python benchmarks/side_by_side.py --peer-python peers/bin/python

(benchmarks/peers.py says how that environment is made. The name is no `streaming`: mosaicml's module is called so.)

Writes the same JPEGs as a shard set (ours and webdataset's), as MDS shards and as litData's chunks, all in pieces of
about 8 MB, and reads them from the folder and from a store: tests/faulty_server.py in a process of its own, 20 ms
before each answer, over HTTP (webdataset, ours) and as S3 (mosaicml-streaming, litData), an empty cache each time. All
do the same: shuffled batches of 64, libjpeg-turbo, OpenCV's area resize to 224 px, on 2 workers (peers: processes,
ours: threads). `ours, Loader` is the whole public Loader (float32, normalised, hashes checked). Each run is a process
of its own and walks 90 % of an epoch; another one resumes there. Columns: images/s and the processor's milliseconds
an image (all processes, the store's left out) after the first eighth of the epoch; seconds from making the loader to
its first batch, imports done; the same to resume at 90 % of the epoch, and whether the batch is the one that would
have come; peak memory of the process tree (shared pages counted once). Loaders take turns in each round; medians, and
the ratio to ours of the same round. Recorded in benchmarks/README.md.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import peers
from peers import BATCH
from streams import STREAMS, Run, numbered

BUCKET = "store"
AT = 0.9  # of the epoch


PLACES = ("local", "store")
OVER_S3 = ("mosaicml-streaming", "litData")


def cpu_seconds() -> float:
    """Processor time of this process and of all its children, ended ones too."""
    import psutil

    me, total = psutil.Process(), 0.0
    for process in [me, *me.children(recursive=True)]:
        try:
            total += sum(process.cpu_times()[:4])  # user, system, and those of children that ended
        except psutil.NoSuchProcess:
            continue
    return total


def one(name: str, run: Run, steps: int) -> dict[str, Any]:
    """Walk `steps` batches, or resume: only the first batch then."""
    make, imports = STREAMS[name]
    for module in imports:
        __import__(module)
    begun = time.perf_counter()
    stream = make(run)
    batches = stream.batches
    images, numbers = next(batches)
    start = time.perf_counter() - begun
    assert len(images) == len(numbers) and (len(numbers) == BATCH or name == "webdataset")
    if run.resume is not None:
        return {"start": start, "numbers": numbers}
    seen, before = list(numbers), 0
    for step in range(1, steps):
        if step == steps // 8:
            busy, middle, before = cpu_seconds(), time.perf_counter(), len(seen)
        seen += next(batches)[1]  # webdataset's may be short: each worker ends with what is left of its shards
    seconds, busy = time.perf_counter() - middle, cpu_seconds() - busy
    if len(set(seen)) != len(seen):
        raise ValueError(f"{name}: {len(seen)} samples came, {len(set(seen))} different ones")
    state, count = stream.state(), len(seen) - before
    following = next(batches)[1]
    return {"start": start, "rate": count / seconds, "cpu_ms": 1e3 * busy / count, "state": state, "next": following}


def write(folder: Path, samples: int, side: int, peer_python: str) -> None:
    """The same JPEGs in every format under `folder`."""
    from walk import textures

    from shards.sets import write_set
    from shards.writer import Sample

    images = list(textures(64, side))
    made = [numbered(images[n % 64], n) for n in range(samples)]
    (folder / "files").mkdir(parents=True)
    for n, image in enumerate(made):
        (folder / "files" / f"{n:08d}.jpg").write_bytes(image)
    size = int(8e6 / (len(made[0]) + 2048))
    listed = (Sample("train", f"{n:08d}", image, "jpeg", (n % 2,), side, side, n) for n, image in enumerate(made))
    options: dict[str, Any] = {"name": "streams", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
    write_set(folder / "set", listed, shard_size=size, **options)
    for name in OVER_S3 if peer_python else ():
        apart(peer_python, {}, "--write", name, str(folder))


def apart(python: str, environment: dict[str, str], *words: str) -> tuple[dict[str, Any], float]:
    """The last line that this script prints in a process of its own, as JSON, and the tree's peak memory in MB."""
    quiet = {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        command = [python, __file__, *words]
        with subprocess.Popen(command, stdout=out, stderr=errors, env=os.environ | quiet | environment) as process:
            peak = Peak(process.pid)
            try:
                code = process.wait(timeout=300)
            except BaseException:
                process.kill()
                raise
            finally:
                peak.close()
        out.seek(0)
        errors.seek(0)
        if code:
            raise RuntimeError(f"{' '.join(words)[:200]}: {errors.read()[-2000:]}")
        return json.loads(out.read().splitlines()[-1]), peak.bytes / 1e6


class Peak:
    """The most memory that a process and its children hold, looked at every third of a second from outside."""

    def __init__(self, pid: int):
        self.bytes, self._pid, self._end = 0, pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.33):
            self.bytes = max(self.bytes, self._now())

    def _now(self) -> int:
        import psutil

        total = 0
        try:
            root = psutil.Process(self._pid)
            for process in [root, *root.children(recursive=True)]:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                total += next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) << 10
        except (psutil.NoSuchProcess, OSError, StopIteration):
            return 0  # one has ended meanwhile
        return total

    def close(self) -> None:
        """Look no more."""
        self._end.set()
        self._thread.join()


def measure(name: str, place: str, folder: Path, url: str, peer_python: str, steps: int) -> dict[str, Any]:
    """A run and its resumption, each a process with an empty cache."""
    source = str(folder) if place == "local" else f"s3://{BUCKET}" if name in OVER_S3 else f"{url}/{BUCKET}"
    python = peer_python if name in OVER_S3 else sys.executable
    environment = {
        "AWS_ENDPOINT_URL": url,
        "S3_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
        "BENCHMARK_FOLDER": str(folder),
    }
    found: list[dict[str, Any]] = []
    for state in (None, "the first run's"):
        cache = folder.parent / "cache"  # always the same, since litData's state holds on to its path
        cache.mkdir()
        asked = {"source": source, "cache": str(cache), "resume": state and found[0]["state"], "steps": steps}
        result, memory = apart(python, environment, "--one", name, json.dumps(asked))
        shutil.rmtree(cache)
        found.append(result | {"memory": memory})
    first, second = found
    kept = {key: first[key] for key in ("start", "rate", "cpu_ms", "memory")}
    return kept | {"resume": second["start"], "exact": float(second["numbers"] == first["next"])}


def table(runs: list[dict[tuple[str, str], dict[str, Any]]]) -> str:
    """Medians over rounds, a row a loader, both places side by side."""
    places = [place for place in PLACES if any(key[1] == place for key in runs[0])]
    head = ["", *(f"{what}, {place}" for place in places for what in HEADS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(key[0] for key in runs[0]):
        cells: list[str] = []
        for place in places:
            found = [round_[(name, place)] for round_ in runs]
            middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
            ratios = [round_[(name, place)]["rate"] / round_[("ours", place)]["rate"] for round_ in runs]
            exact = "exact" if all(run["exact"] for run in found) else "another batch"
            cells += [f"{middle['rate']:.0f} ({statistics.median(ratios):.2f})", f"{middle['cpu_ms']:.2f}"]
            cells += [f"{middle['start']:.2f}", f"{middle['resume']:.2f}, {exact}", f"{middle['memory']:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


HEADS = ("images/s (ratio to ours)", "CPU ms an image", "start, s", "resume at 90 %, s", "peak MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default="", help="the interpreter of the peers' environment")
    parser.add_argument("--samples", type=int, default=3200)
    parser.add_argument("--side", type=int, default=256, help="pixels of the stored images")
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before each answer of the store")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(STREAMS), default=list(STREAMS), metavar="NAME")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=list(PLACES))
    args = parser.parse_args()
    if not args.peer_python:
        print(f"without --peer-python these are not measured: {', '.join(OVER_S3)}")
        args.only = [name for name in args.only if name not in OVER_S3]
    from walk import served

    root, runs = Path(tempfile.mkdtemp(prefix="side-by-side-")), []
    steps = int(args.samples / BATCH * AT)
    try:
        write(root / BUCKET, args.samples, args.side, args.peer_python)
        with served(root, args.latency, "127.0.0.1") as url:
            for number in range(args.rounds):
                found: dict[tuple[str, str], dict[str, Any]] = {}
                for place in args.places:
                    for name in args.only if number % 2 else args.only[::-1]:
                        result = measure(name, place, root / BUCKET, url, args.peer_python, steps)
                        found[(name, place)] = result
                        told = "  ".join(f"{key} {value:.2f}" for key, value in result.items())
                        print(f"round {number}  load {os.getloadavg()[0]:.2f}  {place}  {name:20} {told}", flush=True)
                runs.append({key: found[key] for key in sorted(found, key=lambda key: args.only.index(key[0]))})
                print(f"\nmedians of {len(runs)} rounds\n{table(runs)}\n", flush=True)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        asked = json.loads(sys.argv[3])
        there = Run(asked["source"], Path(asked["cache"]), asked["resume"])
        print(json.dumps(one(sys.argv[2], there, asked["steps"])), flush=True)
        os._exit(0)  # workers of all makes end with the process
    if sys.argv[1:2] == ["--write"]:
        peers.WRITERS[sys.argv[2]](Path(sys.argv[3]))
        print("{}", flush=True)
        os._exit(0)
    main()
