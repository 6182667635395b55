"""How many images a second loaders make on the CPU, side by side, and at what cost of processor time.

    python benchmarks/loaders.py --photos FOLDER --rounds 3 --peer-python peers/bin/python

(benchmarks/peers.py says how that environment is made; without it four peers are left out, and said so.)

Writes every .jpg under FOLDER at 256 and 512 px short side (JPEG q90) as a shard set and as plain files, repeated to
`--samples`. A loader runs in a process of its own with 2 threads or workers: 224 px float32 batches of 64, `light` =
random resized crop (scale .8 to 1) and both flips, `full` = and colour jitter (p .2) and grayscale (p .2). A round
takes every loader in turn, so that other work on the machine meets all alike. Rates count after the first 8 batches;
the processor's time an image, of all threads and workers, tells the cost where the machine has other work too.
Prints a line a run, and after each round the medians as a table. The result is recorded in benchmarks/README.md.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peers
from peers import BATCH, SCALE, SIZE, WORKERS

WARM = 8
COLUMNS = [(side, variant) for side in (256, 512) for variant in ("light", "full")]


def photographs(folder: Path, side: int) -> list[bytes]:
    """Every .jpg below a folder at this short side, JPEG q90."""
    import cv2

    found = []
    for path in sorted(folder.rglob("*.jpg")):
        image = cv2.imread(str(path))
        if image is None:
            raise ValueError(f"{path} does not decode")
        scale = side / min(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        found.append(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
    if not found:
        raise ValueError(f"no .jpg lies below {folder}: give a folder of photographs of 512 px or more")
    return found


def write(folder: Path, images: list[bytes], count: int) -> None:
    """A shard set `folder/set` and plain files `folder/files/N.jpg` with the same images."""
    from shards.decoding import probe
    from shards.sets import write_set
    from shards.writer import Sample

    shapes = [probe(image)[:2] for image in images]
    (folder / "files").mkdir(parents=True)
    for n in range(count):
        (folder / "files" / f"{n}.jpg").write_bytes(images[n % len(images)])
    samples = (
        Sample("train", f"{n:08d}", images[n % len(images)], "jpeg", (n % 2,), *shapes[n % len(images)], n)
        for n in range(count)
    )
    write_set(
        folder / "set", samples, name="loaders", classes=["a", "b"], shard_size=500, mean=[0.5] * 3, std=[0.2] * 3
    )


def dali_reader(folder: Path, variant: str) -> Iterator[Any]:
    """DALI's webdataset reader with its own random operators; colours run on the drawn samples alone."""
    import torch
    from nvidia.dali import fn, pipeline_def, types

    tars = sorted((folder / "set").glob("*.tar"))
    build: Any = pipeline_def  # DALI's type stubs take a pipeline's values for its whole outputs
    reader: Any = fn.readers.webdataset

    @build(batch_size=BATCH, num_threads=WORKERS, device_id=None, enable_conditionals=True, seed=0)
    def definition() -> Any:
        image: Any
        data, label = reader(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=500,
        )
        image = fn.decoders.image_random_crop(data, random_area=SCALE, random_aspect_ratio=(3 / 4, 4 / 3))
        image = fn.resize(image, size=(SIZE, SIZE))
        image = fn.flip(image, horizontal=fn.random.coin_flip(), vertical=fn.random.coin_flip())
        if variant == "full":
            if fn.random.coin_flip(probability=0.2, dtype=types.DALIDataType.BOOL):
                image = fn.color_twist(
                    image,
                    brightness=fn.random.uniform(range=(0.8, 1.2)),
                    contrast=fn.random.uniform(range=(0.8, 1.2)),
                    saturation=fn.random.uniform(range=(0.9, 1.1)),
                    hue=fn.random.uniform(range=(-36.0, 36.0)),
                )
            if fn.random.coin_flip(probability=0.2, dtype=types.DALIDataType.BOOL):
                image = fn.saturation(image, saturation=0.0)
        image = fn.crop_mirror_normalize(
            image, dtype=types.DALIDataType.FLOAT, output_layout="CHW", mean=[127.5] * 3, std=[51.0] * 3
        )
        return image, label

    pipeline = definition()
    pipeline.build()
    while True:
        images, labels = pipeline.run()
        yield torch.from_dlpack(images.as_tensor()), labels


def ours(folder: Path, variant: str, executor: str) -> Iterator[Any]:
    """The public Loader of this project, hashes verified."""
    from shards.loader import Loader
    from shards.shardset import ShardSet
    from shards.transforms import train_transform

    split = ShardSet(folder / "set").split("train")
    transform = train_transform(SIZE, [0.5] * 3, [0.2] * 3, scale=SCALE, preset=variant)
    return iter(Loader(split, transform, global_batch=BATCH, threads=WORKERS, executor=executor))  # type: ignore[arg-type]


def decode_alone(folder: Path, variant: str) -> Iterator[Any]:
    """The limit: libjpeg-turbo on 2 threads, nothing else."""
    import simplejpeg

    images = [path.read_bytes() for path in itertools.islice(sorted((folder / "files").iterdir()), BATCH)]
    with ThreadPoolExecutor(WORKERS) as pool:
        while True:
            yield list(pool.map(simplejpeg.decode_jpeg, images)), None


LOADERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    **peers.LOADERS,
    "DALI, its own reader": dali_reader,
    "ours, dali": lambda folder, variant: ours(folder, variant, "dali"),
    "ours, host": lambda folder, variant: ours(folder, variant, "host"),
    "libjpeg-turbo decode alone": decode_alone,
}
REFERENCE = "DALI, its own reader"


def cpu_seconds() -> float:
    """Processor time of this process and its living children."""
    total, tick = time.process_time(), os.sysconf("SC_CLK_TCK")
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def one(name: str, folder: Path, variant: str, seconds: float) -> dict[str, float]:
    """One run in this process: seconds to the first batch, images/s and milliseconds of processor time an image."""
    begun = time.perf_counter()
    batches = LOADERS[name](folder, variant)
    images, _, *_ = next(batches)
    start = time.perf_counter() - begun
    if LOADERS[name] is not decode_alone:
        assert tuple(images.shape) == (BATCH, 3, SIZE, SIZE) and str(images.dtype) == "torch.float32"
    for _ in range(WARM):
        next(batches)
    count, busy, begun = 0, cpu_seconds(), time.perf_counter()
    while (passed := time.perf_counter() - begun) < seconds:
        next(batches)
        count += BATCH
    busy = cpu_seconds() - busy
    return {"start": start, "rate": count / passed, "cpu_ms": 1e3 * busy / count}


def apart(python: str, *words: str) -> str:
    """The last line that this script prints in a process of its own."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    command = [python, __file__, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def python_of(name: str, peer_python: str) -> str:
    """Who runs a loader."""
    return peer_python if name in peers.ELSEWHERE else sys.executable


def run_apart(name: str, folder: Path, variant: str, seconds: float, peer_python: str) -> dict[str, float]:
    """`one` in a process of its own."""
    return json.loads(apart(python_of(name, peer_python), "--one", name, str(folder), variant, str(seconds)))


def table(runs: list[dict[tuple[str, int, str], dict[str, float]]], columns: list[tuple[int, str]]) -> str:
    """Medians over rounds: images/s, ratio to DALI's own reader in the same round, processor milliseconds an image."""
    head = [
        "images/s (ratio to DALI's own reader; CPU ms an image)",
        *(f"{side} {v}" for side, v in columns),
        "start, s",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in dict.fromkeys(key[0] for key in runs[0]):
        cells, starts = [], []
        for side, variant in columns:
            found = [round_[(name, side, variant)] for round_ in runs if (name, side, variant) in round_]
            if not found:
                cells.append("")
                continue
            starts += [run["start"] for run in found]
            middle = {key: statistics.median(run[key] for run in found) for key in found[0]}
            ratios = [
                round_[(name, side, variant)]["rate"] / round_[(REFERENCE, side, variant)]["rate"]
                for round_ in runs
                if (REFERENCE, side, variant) in round_
            ]
            ratio = f"{statistics.median(ratios):.2f}; " if ratios else ""
            cells.append(f"{middle['rate']:.0f} ({ratio}{middle['cpu_ms']:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {statistics.median(starts):.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with .jpg photographs of 512 px or more")
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--peer-python", default="", help="the interpreter of the peers' environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run, after the warm-up")
    parser.add_argument("--only", nargs="+", choices=list(LOADERS), default=list(LOADERS), metavar="NAME")
    args = parser.parse_args()
    if not args.peer_python:
        print(f"without --peer-python these are not measured: {', '.join(peers.ELSEWHERE)}")
        args.only = [name for name in args.only if name not in peers.ELSEWHERE]
    folder, runs = Path(tempfile.mkdtemp(prefix="loaders-")), []
    try:
        for side in (256, 512):
            write(folder / str(side), photographs(args.photos, side), args.samples)
            for name in set(args.only) & set(peers.WRITERS):
                apart(args.peer_python, "--write", name, str(folder / str(side)))
        for number in range(args.rounds):
            found: dict[tuple[str, int, str], dict[str, float]] = {}
            for (side, variant), name in itertools.product(COLUMNS, args.only):
                if LOADERS[name] is decode_alone and variant == "full":
                    continue
                result = found[(name, side, variant)] = run_apart(
                    name, folder / str(side), variant, args.seconds, args.peer_python
                )
                print(
                    f"round {number}  load {os.getloadavg()[0]:5.2f}  {side} {variant:5}  {name:28} "
                    f"{result['rate']:7.0f} images/s  {result['cpu_ms']:6.3f} CPU ms  start {result['start']:4.1f} s",
                    flush=True,
                )
            runs.append(found)
            print(f"\nmedians of {len(runs)} rounds\n{table(runs, COLUMNS)}\n", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _, _, name, place, variant, seconds = sys.argv
        print(json.dumps(one(name, Path(place), variant, float(seconds))), flush=True)
        os._exit(0)  # workers and pipelines of all makes end with the process
    if sys.argv[1:2] == ["--write"]:
        peers.WRITERS[sys.argv[2]](Path(sys.argv[3]))
        print("written", flush=True)
        os._exit(0)
    main()
