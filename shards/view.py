"""Augmented samples as the trainer gets them: a row a sample, the stored image, then one version an epoch.

python -m shards view data/shards/DDSM --preset study --executor both --out DDSM-study.png
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import torch

from shards.aside import aside
from shards.command_line import Parser, add_output_flags, local_folder, tell
from shards.decoding import decode
from shards.draws import DrawKeys
from shards.executors import check_images, choose_executor, make_executor
from shards.index import ENCODING_NAMES
from shards.shardset import ShardSet, Split
from shards.sheet import choose_examples
from shards.transforms import PRESETS, AnyDrawn, AnyTransform, Drawn, train_transform, transform_of
from shards.view_page import Row, picture
from shards.views import DrawnViews, Views
from shards.windows import Window, window_of

EXECUTORS: dict[str, tuple[Literal["dali", "host"], ...]] = {
    "host": ("host",),
    "dali": ("dali",),
    "both": ("host", "dali"),
}
MOST = 64


def choose(split: Split, count: int, seed: int) -> list[int]:
    """Positions of up to `count` samples: classes in turn, then, where labels run short, any."""
    by_class = choose_examples(split, seed, count)
    turns = [int(members[i]) for i in range(count) for members in by_class if i < len(members)]
    rest = np.random.default_rng(seed).permutation(split.num_samples)[: 2 * count].tolist()
    return list(dict.fromkeys(turns + rest))[:count]


def draw_versions(
    split: Split, transform: AnyTransform, position: int, versions: int, seed: int
) -> tuple[AnyDrawn, int]:
    """What the loader draws for a sample in epochs 0..versions-1, and the code of its encoding."""
    rows = split.rows(np.full(versions, position))
    keys = DrawKeys(seed, np.arange(versions), rows.sample_ids, np.zeros(versions, np.int64))
    return transform.draw(keys, rows.heights, rows.widths), int(rows.encodings[0])


def make_rows(
    shard_set: ShardSet,
    split: Split,
    transform: AnyTransform,
    positions: Sequence[int],
    versions: int,
    seed: int,
    how: str,
) -> list[Row]:
    """The rows of a sheet; `how` names an executor or `both`. ValueError where a stored image does not decode, or
    the transform is not of such images.
    """
    check_images(transform, shard_set.manifest)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    executors = {
        name: make_executor(choose_executor(name, device), split, transform, batch=versions, device=device)
        for name in EXECUTORS[how]
    }
    try:
        return [make_row(shard_set, split, transform, p, versions, seed, executors) for p in positions]
    finally:
        for executor in executors.values():
            executor.close()


def make_row(
    shard_set: ShardSet,
    split: Split,
    transform: AnyTransform,
    position: int,
    versions: int,
    seed: int,
    executors: Mapping[Literal["dali", "host"], Any],
) -> Row:
    """One sample through each executor: in several epochs, or, of several views, in each of them in epoch 0.

    Raises:
        ValueError: the sample is damaged or does not decode.
    """
    versions = 1 if isinstance(transform, Views) else versions
    drawn, code = draw_versions(split, transform, position, versions, seed)
    rows, image, key = split.rows(np.array([position])), split.read(position), split.key(position)
    size, encoding = (int(rows.heights[0]), int(rows.widths[0])), ENCODING_NAMES[code]
    made: dict[str, Sequence[np.ndarray]] = {}
    for name, executor in executors.items():
        pixels, failures = executor.run([image] * versions, [encoding] * versions, np.tile(size, (versions, 1)), drawn)
        if failures:
            raise ValueError(f"sample {key}: {failures[0][1]}; run python -m shards check {shard_set.path}")
        views = pixels if isinstance(pixels, tuple) else (pixels,)
        made[name] = [image for view in views for image in levels(view, transform)]
    stored = decode(image, encoding, transform.stored_channels, *size, split.manifest.bits)
    label = label_of(shard_set, split.labels(np.array([position]))[0])
    if isinstance(drawn, DrawnViews):
        each, rows_of = [Drawn((*drawn.before.steps, *view.steps)) for view in drawn.views], [0] * len(drawn.views)
        heads = tuple(f"view {v}, {high} x {wide}" for v, (high, wide) in enumerate(transform.sizes))
    else:
        each, rows_of = [drawn] * versions, list(range(versions))
        heads = tuple(f"epoch {epoch}" for epoch in range(versions))
    captions = [one.describe(row) for one, row in zip(each, rows_of, strict=True)]
    windows = [stored_window(one, row, size) for one, row in zip(each, rows_of, strict=True)]
    windowed = isinstance(transform.operators[0], Window)
    return Row(key, label, stored, made, captions, windows, heads, windowed)


def levels(pixels: torch.Tensor, transform: AnyTransform) -> np.ndarray:
    """float32[v, C, H, W] as a model gets it -> [v, H, W, C] within 0..1, the normalisation undone."""
    mean, std = np.array(transform.normalize.mean), np.array(transform.normalize.std)
    return np.clip(pixels.cpu().numpy().transpose(0, 2, 3, 1) * std + mean, 0, 1)


def stored_window(drawn: Drawn, row: int, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """The first window that is cut, in pixels of the stored image [height, width], whatever resize came before it."""
    scale = np.ones(2)
    for _, _, params in drawn.steps:
        if "window" in params:
            top, left, height, width = params["window"][row].tolist()
            return top * scale[0], left * scale[1], height * scale[0], width * scale[1]
        if "size" in params:
            scale = np.array(size) / params["size"][row]
    return None


def label_of(shard_set: ShardSet, target: np.ndarray) -> str:
    """The class of a sample, or the classes that it bears.

    `target` as of `Split.labels`: int64, or float32[classes].
    """
    if shard_set.task == "single-label":
        return shard_set.classes[int(target)]
    return ", ".join(name for name, value in zip(shard_set.classes, target, strict=True) if value == 1) or "none"


def write_view(
    shard_set: ShardSet,
    out: Path,
    *,
    preset: str,
    split: str = "train",
    samples: int = 6,
    versions: int = 5,
    seed: int = 0,
    size: int = 224,
    executor: str = "host",
    operators: str | None = None,
    window: Window | None = None,
) -> Path:
    """Write the sheet as a .png; the same set, seed and preset give the same picture.

    operators: JSON as the trainer's --train-operators, in place of the preset.

    Raises:
        ValueError: another suffix, numbers out of range, or a stored image that does not decode.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"{out.name}: a view is written as .png")
    for name, value in (("samples", samples), ("versions", versions)):
        if not 1 <= value <= MOST:
            raise ValueError(f"--{name} is {value}; give 1 to {MOST}")
    manifest, part = shard_set.manifest, shard_set.split(split)
    mean, std = manifest.mean, manifest.std
    if window is not None and window.count > 1:
        mean, std = [0.5] * window.count, [0.25] * window.count
    transform: AnyTransform = train_transform(size, mean, std, preset=preset, window=window)
    if operators is not None:
        transform, preset = transform_of(steps_of(operators), mean, std, window), "its own operators"
    positions = choose(part, samples, seed)
    rows = make_rows(shard_set, part, transform, positions, versions, seed, executor)
    phantom = " · PHANTOM images, no medical meaning" if manifest.phantom else ""
    device = " on the GPU" if torch.cuda.is_available() else " on the CPU"
    made_by = " | ".join(name + device if name == "dali" else name for name in rows[0].versions)
    steps, told = " → ".join(transform.names), preset if operators is not None else f"preset {preset}"
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = picture(rows, f"{manifest.name} · {split} · {told}{phantom}", f"{made_by} · seed {seed} · {steps}")
        with aside(out, synced=False) as unfinished:
            figure.savefig(unfinished, format="png")
    return out


def steps_of(text: str) -> list[dict[str, Any]]:
    """The operators of a JSON list. ValueError for anything else."""
    try:
        steps = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'--operators is not JSON ({error}); write [{{"op": "HorizontalFlip"}}, ...]') from None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ValueError(f'--operators is {text[:60]}; write a list of tables, [{{"op": "HorizontalFlip"}}, ...]')
    return steps


def numbers(flag: str, text: str) -> list[float]:
    """Numbers between commas. ValueError for anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{flag} is {text!r}; write numbers between commas, such as 1064,400") from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards view`."""
    parser = Parser(
        prog="python -m shards view",
        description="Draw stored images beside what the trainer's augmentation makes of them, an epoch a column, with "
        "the drawn parameters; coloured frames on the stored image are the windows that were cut.",
        epilog="example: python -m shards view data/shards/DDSM --preset study --executor both",
    )
    parser.add_argument("folder", type=local_folder, help="shard set, a folder of this machine")
    parser.add_argument("--preset", choices=list(PRESETS), default="light", help="augmentation")
    parser.add_argument("--operators", help="JSON as the trainer's --train-operators, in place of the preset")
    parser.add_argument("--split", default="train", help="split to look at")
    parser.add_argument("--samples", type=int, default=6, help="rows: samples, classes in turn")
    parser.add_argument("--versions", type=int, default=5, help="columns: epochs 0, 1, …")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run, and of the choice of samples")
    parser.add_argument("--image-size", dest="size", type=int, default=224, help="side of the square input, pixels")
    parser.add_argument(
        "--executor", choices=list(EXECUTORS), default="host", help="who makes the pixels; both: side by side"
    )
    parser.add_argument("--display-window", help="16 bits, as the trainer's: center,width, or three such pairs")
    parser.add_argument("--view", help="label view of the manifest (default: its own choice)")
    parser.add_argument("--out", type=Path, help="where the picture goes (default NAME-PRESET.png in this folder)")
    add_output_flags(parser)
    o = parser.parse_args(argv)
    shard_set = ShardSet(o.folder, view=o.view)
    window = window_of(numbers("--display-window", o.display_window)) if o.display_window is not None else None
    out = write_view(
        shard_set,
        o.out or Path(f"{shard_set.manifest.name}-{o.preset}.png"),
        **{
            name: getattr(o, name)
            for name in ("preset", "split", "samples", "versions", "seed", "size", "executor", "operators")
        },
        window=window,
    )
    tell(o, {"out": str(out)}, f"wrote {out}")
    return 0
