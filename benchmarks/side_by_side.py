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
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import peers
from peers import BATCH, SIZE, WORKERS

BUCKET = "store"
AT = 0.9  # of the epoch


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
