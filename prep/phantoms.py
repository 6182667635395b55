"""Draw synthetic raw data in the exact layout of a real dataset, for demos and tests. No real patient is in them.

    python prep/phantoms.py --dataset DDSM --out data/raw/DDSM [--num-images 300] [--seed 0] [--size 1000]

Reads nothing. Writes the dataset's raw layout under --out, with a marker file PHANTOM.txt (which makes the manifest say
`phantom: true`) and a fixed salt file `phantom.salt` for `make_shards.py --salt`, so that the shards are reproducible
too. What decides the class is the number and kind of the lesions alone; sizes, names, brightness and order know
nothing of it.
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from prep.drawing import breast, fundus, slide, tissue
from prep.layouts import LAYOUTS as FIRST_LAYOUTS
from prep.layouts import Layout
from prep.mammogram_layouts import LAYOUTS as MAMMOGRAM_LAYOUTS
from prep.pool import deaf_to_ctrl_c
from prep.records import PHANTOM_MARKER
from prep.slide_layouts import LAYOUTS as SLIDE_LAYOUTS
from shards.aside import aside, write_aside
from shards.command_line import Parser, add_debug_flag, positive
from shards.progress import progress

SALT_NAME = "phantom.salt"
LAYOUTS: dict[str, Layout] = dict(sorted((FIRST_LAYOUTS | MAMMOGRAM_LAYOUTS | SLIDE_LAYOUTS).items()))
DRAWERS: dict[str, Callable[..., np.ndarray]] = {"breast": breast, "fundus": fundus, "slide": slide, "tissue": tissue}


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
    with aside(path, synced=False) as part:
        part.write_bytes(data.tobytes())


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
        of_size = "" if size is None else f" of short side {size}"
        raise ValueError(f"{num_images} images{of_size}: at least 10 images, 64 to 8192 pixels")
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
    (out / SALT_NAME).unlink(missing_ok=True)
    layout = LAYOUTS[dataset]
    plan = layout.plan(out, np.random.default_rng(seed), num_images, size or layout.size)
    tasks = [(*drawing, (seed, number)) for number, drawing in enumerate(plan)]
    for folder in {path.parent: None for path, *_ in tasks}:
        folder.mkdir(parents=True, exist_ok=True)
    with progress(len(tasks), f"{dataset} phantoms", "image", quiet=quiet) as bar:
        for _ in _mapped(tasks, workers):
            bar.update()
    if layout.pack is not None:
        layout.pack(out)
    # The salt comes last: where it stands, all is drawn.
    salt = hashlib.blake2b(f"medshard phantom {dataset} {seed}".encode(), digest_size=32).digest()
    write_aside(out / SALT_NAME, salt)


def _mapped(tasks: list[Any], workers: int) -> Iterator[None]:
    if workers == 1:
        yield from map(draw, tasks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        with deaf_to_ctrl_c():
            drawn = pool.map(draw, tasks)  # one at a time: Ctrl-C waits for those that are begun
        yield from drawn
    finally:
        pool.shutdown(cancel_futures=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        description="Draw synthetic raw data (phantoms) in the layout of a real dataset.",
        epilog="example: python prep/phantoms.py --dataset DDSM --out data/raw/DDSM",
    )
    names = parser.add_argument("--dataset", required=True, help=f"one of {', '.join(LAYOUTS)}")
    names.completer = lambda **_: LAYOUTS  # type: ignore[attr-defined]  # Tab's
    parser.add_argument("--out", type=Path, required=True, help="where the raw folder goes, such as data/raw/DDSM")
    parser.add_argument("--num-images", type=positive, default=300, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    parser.add_argument("--size", type=int, help="short side in pixels (default: the dataset's, such as 1000 for DDSM)")
    parser.add_argument("--workers", type=positive, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--quiet", action="store_true", help="no progress, and no word where all is well")
    add_debug_flag(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Draw and say what comes next."""
    draw_phantoms(args.dataset, args.out, args.num_images, args.seed, args.size, args.workers, args.quiet)
    if args.quiet:
        return
    print(f"{args.num_images} phantoms in the layout of {args.dataset}: {args.out}")
    own = ["--name", "phantom-csv", "--group-column", "patient"] if args.dataset == "csv" else []
    flags = ["--dataset", args.dataset, *own, "--raw", str(args.out), "--out", f"data/shards/phantom-{args.dataset}"]
    flags += ["--salt", str(args.out / SALT_NAME)]
    print(f"next: {shlex.join(['python', 'prep/make_shards.py', *flags])}")


if __name__ == "__main__":
    arguments = parse_args()
    run_cli(lambda: main(arguments), debug=arguments.debug)
