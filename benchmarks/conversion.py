"""Conversion measured: against its own codecs alone, by workers, and against the published study's way.

    python benchmarks/conversion.py                   about five minutes on two cores; --rounds, --photos, --patches

1. JPEG photographs of 1024 x 768 to shards of 256 px. The limit is decode + resize + encode alone, the same functions
   in one process a core. Times of conversions are of the whole call: tables, keys, processes, hashes, read-back,
   tars, indices, manifest.
2. Patches of 96 x 96 from HDF5 in PatchCamelyon's layout, against one loop that writes a PNG a patch with Pillow.

Everything is drawn in a temporary folder. Variants take turns in each round; medians of the ratios of one round.
"""

import argparse
import functools
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from prep.allocation import one_image_at_a_time
from prep.convert import convert
from prep.images import PixelOptions, prepare, read_file
from prep.planning import ConvertOptions
from prep.sources import DATASETS
from prep.sources.own_table import TableColumns, table_dataset

DRAWN = 40  # different photographs and patches; the rest are links to and copies of them


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=int, default=3000, help="photographs of 1024 x 768")
    parser.add_argument("--patches", type=int, default=40_000, help="patches of 96 x 96")
    parser.add_argument("--loop", type=int, default=3000, help="of them in the loop of PNGs, whose rate is steady")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args(argv)


def texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth structures and sensor noise, uint8[h, w, 3]."""
    coarse = rng.integers(0, 256, (height // 24, width // 24, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(float)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def draw_photos(folder: Path, count: int) -> None:
    rng, rows = np.random.default_rng(0), ["path,label"]
    folder.mkdir()
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        if number < DRAWN:
            Image.fromarray(texture(rng, 768, 1024)).save(path, quality=92)
        else:
            os.link(folder / f"{number % DRAWN:06d}.jpg", path)
        rows.append(f"{path.name},{number % 5}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def draw_patches(folder: Path, count: int) -> None:
    import h5py

    rng = np.random.default_rng(0)
    folder.mkdir()
    some = np.stack([texture(rng, 96, 96) for _ in range(DRAWN)])
    for part, size in (("train", count * 8 // 10), ("valid", count // 10), ("test", count // 10)):
        name = f"camelyonpatch_level_2_split_{part}"
        with h5py.File(folder / f"{name}_x.h5", "w") as file:
            patches = some[np.arange(size) % DRAWN]
            patches[:, 0, 0] = rng.integers(0, 256, (size, 3))  # none is another's copy
            file["x"] = patches
        with h5py.File(folder / f"{name}_y.h5", "w") as file:
            file["y"] = (np.arange(size) % 2).astype(np.uint8)[:, None, None, None]


def codecs(paths: list[Path], options: PixelOptions, ready: Any, go: Any) -> None:
    """One process of the limit: decode, resize, encode, nothing else."""
    one_image_at_a_time()
    ready.release()
    go.wait()
    for path in paths:
        prepare(read_file(path), options)


def limit(photos: list[Path], options: PixelOptions, workers: int) -> tuple[float, float]:
    """Seconds of the codecs alone, once all processes have loaded them; and their processor seconds, loading less."""
    context = get_context("spawn")
    ready, go = context.Semaphore(0), context.Event()
    parts = [photos[i::workers] for i in range(workers)]
    processes = [context.Process(target=codecs, args=(part, options, ready, go)) for part in parts]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    loaded = sum(_cpu_of(process.pid or 0) for process in processes)
    started, used = time.perf_counter(), cpu_seconds()
    go.set()
    for process in processes:
        process.join()
    return time.perf_counter() - started, cpu_seconds() - used - loaded


def _cpu_of(pid: int) -> float:
    """Processor seconds of a running process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def study_loop(folder: Path, out: Path, count: int) -> None:
    """Row by row out of HDF5, a PNG each."""
    import h5py

    out.mkdir()
    with h5py.File(folder / "camelyonpatch_level_2_split_train_x.h5") as file:
        for row in range(min(count, len(file["x"]))):
            Image.fromarray(file["x"][row]).save(out / f"{row}.png")


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def timed(act: Callable[[], Any]) -> tuple[float, float]:
    """Seconds on the wall and of the processors."""
    started, used = time.perf_counter(), cpu_seconds()
    act()
    return time.perf_counter() - started, cpu_seconds() - used


def middle(values: Iterable[float]) -> float:
    return statistics.median(values)


def measure_photos(folder: Path, args: argparse.Namespace) -> None:
    draw_photos(folder / "photos", args.photos)
    dataset = table_dataset("photos", TableColumns(folder / "photos" / "labels.csv", "path", ("label",), None, None))
    paths, pixels = sorted((folder / "photos").glob("*.jpg")), PixelOptions()

    def ours(workers: int, number: int) -> tuple[float, float]:
        options = ConvertOptions(pixels=pixels, workers=workers, quiet=True)
        return timed(lambda: convert(dataset, folder / "photos", folder / f"set-{workers}-{number}", options))

    rows = []
    for number in range(args.rounds):
        rows.append(
            (limit(paths, pixels, args.workers), ours(args.workers, number), ours(1, number), limit(paths, pixels, 1))
        )
        print(
            f"  round {number}: " + ", ".join(f"{wall:.1f} s ({cpu:.1f} of CPU)" for wall, cpu in rows[-1]), flush=True
        )
    names = (f"decode + resize + encode alone, {args.workers} processes", f"conversion, {args.workers} workers",
             "conversion, 1 worker", "decode + resize + encode alone, 1 process")  # fmt: skip
    print(f"{args.photos} photographs of 1024 x 768 to 256 px, medians of {args.rounds} rounds")
    for column, name in enumerate(names):
        wall, cpu = (middle(row[column][which] for row in rows) for which in (0, 1))
        print(f"  {name:45}{args.photos / wall:8.1f} images/s {cpu / args.photos * 1e3:7.2f} ms of CPU an image")
    share, cpu = (middle(row[0][which] / row[1][which] for row in rows) for which in (0, 1))
    gain, possible = middle(row[2][0] / row[1][0] for row in rows), middle(row[3][0] / row[0][0] for row in rows)
    print(f"  {share:.3f} of the limit's rate (wanted: .85), {cpu:.3f} by CPU")
    print(f"  {args.workers} workers {gain:.2f} x one (wanted of two: 1.8); the codecs alone {possible:.2f} x")


def measure_patches(folder: Path, args: argparse.Namespace) -> None:
    draw_patches(folder / "patches", args.patches)
    rows = []
    for number in range(args.rounds):
        loop = timed(lambda number=number: study_loop(folder / "patches", folder / f"png-{number}", args.loop))  # type: ignore[misc]
        rows.append([tuple(each / args.loop for each in loop)])
        for form in ("jpeg", "raw"):
            pixels = PixelOptions(3, None, form)  # type: ignore[arg-type]
            options, out = ConvertOptions(pixels=pixels, workers=args.workers, quiet=True), folder / f"{form}-{number}"
            act = functools.partial(convert, DATASETS["Camelyon"], folder / "patches", out, options)
            rows[-1].append(tuple(each / args.patches for each in timed(act)))
        print(f"  round {number}: " + ", ".join(f"{1 / wall:.0f} a second" for wall, _ in rows[-1]), flush=True)
    print(f"{args.patches} patches of 96 x 96 from HDF5, medians of {args.rounds} rounds")
    kinds = [f"conversion, {args.workers} workers, {form}" for form in ("jpeg", "raw")]
    for column, name in enumerate([f"one loop writing PNGs ({args.loop} of them)", *kinds]):
        wall, cpu = (middle(row[column][which] for row in rows) for which in (0, 1))
        times = middle(row[0][0] / row[column][0] for row in rows)
        told = f"{times:5.1f} x the loop (wanted: 5); {cpu * 1e3:.2f} ms of CPU each"
        print(f"  {name:36}{1 / wall:8.0f} a second, {told}")


def main(args: argparse.Namespace) -> int:
    names = ("numpy", "opencv-python-headless", "pillow", "h5py")
    print(f"python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in names))
    with tempfile.TemporaryDirectory(prefix="medshard-prep-") as name:
        measure_photos(Path(name), args)
        measure_patches(Path(name), args)
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_args()))
