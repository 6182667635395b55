"""Draw synthetic raw data in the exact layout of a real dataset, for demos and tests. No real patient is in them.

    python prep/phantoms.py --dataset DDSM --out data/raw/DDSM [--num-images 300] [--seed 0] [--size 1000]

Reads nothing. Writes the dataset's raw layout under --out, with a marker file PHANTOM.txt (which makes the manifest say
`phantom: true`) and a fixed salt file `phantom.salt` for `make_shards.py --salt`, so that the shards are reproducible
too. What decides the class is the number and kind of the lesions alone; sizes, names, brightness and order know
nothing of it.
"""

import argparse
import csv
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from prep.drawing import breast, fundus
from prep.records import PHANTOM_MARKER
from shards.errors import run_cli

SALT_NAME = "phantom.salt"
Drawing = tuple[Path, str, dict[str, Any]]  # file, drawer, its arguments


@dataclass(frozen=True)
class Layout:
    """How the phantoms of one dataset are laid out: `plan(root, rng, count, size)` writes the tables, yields
    drawings.
    """

    plan: Callable[[Path, np.random.Generator, int, int], Iterator[Drawing]]
    size: int


def _sides(rng: np.random.Generator, size: int, ratio: float, spread: float) -> tuple[int, int]:
    """Height and width of one image: the short side within `spread` of `size`, the long one `ratio` times that."""
    short = size * rng.uniform(1 - spread, 1 + spread)
    tall, wide = (short * ratio, short) if ratio >= 1 else (short, short / ratio)
    return round(tall * rng.uniform(0.97, 1.03)), round(wide)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def _write_table(path: Path, rows: list[list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def plan_ddsm(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """ddsm_raw/ and its three lists; cases of one to four views, a case in one list, classes in equal shares."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    views = ["LEFT_CC", "LEFT_MLO", "RIGHT_CC", "RIGHT_MLO"]
    names = ("normal", "benign", "cancer")
    drawn, dealt = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    case_numbers = iter(rng.permutation(9000)[:count] + 1000)
    while (total := sum(drawn.values())) < count:
        # Normal takes half, as the default view has two classes; the split goes by whole cases, the fullest need first.
        name = min(names, key=lambda n: drawn[n] / {"normal": 2, "benign": 1, "cancer": 1}[n])
        case, scanner = int(next(case_numbers)), "ABCD"[int(rng.integers(4))]
        cut = dealt[name] % 10
        split = "val" if cut in (3, 7) else "test" if cut in (1, 5, 9) else "train"
        dealt[name] += 1
        for view in rng.permutation(views)[: min(int(rng.integers(1, 4)), count - total)]:
            file = f"{name}_{int(rng.integers(1, 16)):02d}-{scanner}_{case}_1.{view}.png"
            lists[split].append(file)
            drawn[name] += 1
            height, width = _sides(rng, size, 1.5, 0.06)
            yield (
                root / "ddsm_raw" / file,
                "breast",
                {
                    "height": height,
                    "width": width,
                    "count": 0 if name == "normal" else int(rng.integers(4, 8)),
                    "shape": "spiculated" if name == "cancer" else "round",
                    "right": view.startswith("RIGHT"),
                    "brightness": rng.uniform(0.14, 0.22),
                },
            )
    for split, lines in lists.items():
        _write_lines(root / "ddsm_raw_image_lists" / f"{split}.txt", [lines[i] for i in rng.permutation(len(lines))])


def _fundus(rng: np.random.Generator, grade: int, size: int) -> dict[str, Any]:
    """Arguments of a fundus of a grade: more dark dots with each grade, bright exudates from grade 2 on."""
    dots = (0, 5, 7, 14, 20)[grade] + int(rng.integers(0, 3)) * (grade > 0)
    exudates = (0, 0, 5, 8, 16)[grade] + int(rng.integers(0, 3)) * (grade > 1)
    height, width = _sides(rng, size, 0.67, 0.3)
    return {"height": height, "width": width, "counts": (dots, exudates), "brightness": rng.uniform(0.16, 0.24)}


def plan_aptos(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """train.csv (id_code,diagnosis) and train_images/*.png."""
    grades = rng.permutation(np.resize([0, 2, 0, 1, 3, 4], count))
    names = [rng.bytes(6).hex() for _ in range(count)]
    _write_table(
        root / "train.csv", [["id_code", "diagnosis"], *([n, int(g)] for n, g in zip(names, grades, strict=True))]
    )
    for name, grade in zip(names, grades, strict=True):
        yield root / "train_images" / f"{name}.png", "fundus", _fundus(rng, int(grade), size)


def plan_idrid(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """The official folders and csv files, with their traps: names that repeat across splits, empty columns, a blank."""
    base = root / "B. Disease Grading"
    test = count // 5
    parts = [
        ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv", count - test, [""] * 9),
        ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv", test, []),
    ]
    for folder, table, images, blanks in parts:
        grades = [int(g) for g in rng.permutation(np.resize([2, 0, 3, 2, 0, 4, 1], images))]
        rows: list[list[Any]] = [["Image name", "Retinopathy grade", "Risk of macular edema ", *blanks]]
        rows += [[f"IDRiD_{i + 1:03d}", grade, min(grade, 2), *blanks] for i, grade in enumerate(grades)]
        _write_table(base / "2. Groundtruths" / table, rows)
        for i, grade in enumerate(grades):
            yield base / "1. Original Images" / folder / f"IDRiD_{i + 1:03d}.jpg", "fundus", _fundus(rng, grade, size)


LAYOUTS: dict[str, Layout] = {
    "APTOS2019": Layout(plan_aptos, 512),
    "DDSM": Layout(plan_ddsm, 1000),
    "IDRiD": Layout(plan_idrid, 512),
}
DRAWERS: dict[str, Callable[..., np.ndarray]] = {"breast": breast, "fundus": fundus}


def draw(task: tuple[Path, str, dict[str, Any], tuple[int, int]]) -> None:
    """Draw one image and write it; the generator is keyed by (seed, number), so the order of the work does not
    matter.
    """
    path, drawer, arguments, key = task
    cv2.setNumThreads(1)
    rng = np.random.default_rng(key)
    image = DRAWERS[drawer](rng, **arguments)
    # How well a file packs is drawn too, or its bytes would tell how much there is to see in it.
    quality, level = int(rng.integers(75, 98)), int(rng.choice([0, 1, 1, 9]))
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, level]
    done, data = cv2.imencode(path.suffix, image if image.ndim == 2 else image[..., ::-1], options)
    assert done, path
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(data.tobytes())
    aside.replace(path)


def draw_phantoms(
    dataset: str,
    out: Path,
    num_images: int = 300,
    seed: int = 0,
    size: int | None = None,
    workers: int = 1,
    quiet: bool = False,
) -> None:
    """Draw `num_images` phantoms in the layout of `dataset` under `out`; ValueError for an unknown name or a used
    folder.
    """
    if dataset not in LAYOUTS:
        raise ValueError(f"no phantoms for dataset {dataset!r}; known: {', '.join(LAYOUTS)}")
    if num_images < 10 or (size is not None and not 64 <= size <= 8192):
        raise ValueError(f"{num_images} images of short side {size}: at least 10 images, 64 to 8192 pixels")
    if out.is_dir() and any(out.iterdir()) and not (out / PHANTOM_MARKER).is_file():
        raise ValueError(
            f"{out} holds other files: choose an empty folder for phantoms, so they never mix with real data"
        )
    out.mkdir(parents=True, exist_ok=True)
    # The marker comes first: even half-drawn data say what they are.
    (out / PHANTOM_MARKER).write_text(
        f"phantom: synthetic images in the layout of {dataset}, drawn by prep/phantoms.py "
        f"(seed {seed}, {num_images} images, short side {size or LAYOUTS[dataset].size}). No real patient, no medical "
        "meaning.\n"
    )
    (out / SALT_NAME).write_bytes(
        hashlib.blake2b(f"medshard phantom {dataset} {seed}".encode(), digest_size=32).digest()
    )
    layout = LAYOUTS[dataset]
    plan = layout.plan(out, np.random.default_rng(seed), num_images, size or layout.size)
    tasks = [(*drawing, (seed, number)) for number, drawing in enumerate(plan)]
    for folder in {path.parent: None for path, *_ in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(tasks), desc=f"{dataset} phantoms", unit="image", file=sys.stderr, disable=quiet) as bar:
        for _ in _mapped(tasks, workers):
            bar.update()


def _mapped(tasks: list[Any], workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(draw, tasks)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, tasks, chunksize=4)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw synthetic raw data (phantoms) in the layout of a real dataset.")
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(LAYOUTS)}")
    parser.add_argument("--out", type=Path, required=True, help="raw folder to fill, such as data/raw/DDSM")
    parser.add_argument("--num-images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, help="short side in pixels (default: 1000 for DDSM, 512 for fundus images)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--debug", action="store_true", help="traceback on errors")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Draw and say what comes next."""
    draw_phantoms(args.dataset, args.out, args.num_images, args.seed, args.size, args.workers)
    print(f"{args.num_images} phantoms in the layout of {args.dataset}: {args.out}")
    print(f"next: python prep/make_shards.py --dataset {args.dataset} --raw {args.out} --salt {args.out / SALT_NAME}")


if __name__ == "__main__":
    arguments = parse_args()
    run_cli(lambda: main(arguments), debug=arguments.debug)
