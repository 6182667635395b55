"""What a finished conversion says of itself: the manifest and the summary."""

import math
import platform
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np

from prep.images import PixelOptions
from prep.near_duplicates import MAX_LISTED, THRESHOLD, similar_pairs, unpacked
from prep.planning import ConvertOptions, Planned
from prep.records import RawDataset
from prep.splits import SPLITS
from prep.tasks import Item, Outcome, Task
from shards.manifest import LeftOut, Manifest, ShardInfo, Source, SplitInfo, metadata_fields
from shards.words import counted
from shards.writer import class_counts


def make_manifest(
    plan: Planned,
    tasks: list[Task],
    results: dict[str, Outcome],
    options: ConvertOptions,
    more_warnings: Sequence[str] = (),
) -> Manifest:
    """The manifest, from the plan and what every shard turned out to hold.

    Raises:
        ValueError: a split has no image that decodes.
    """
    dataset = plan.dataset
    view = dataset.views[dataset.default_view]
    own = {name: [(task, results[task.stem]) for task in tasks if task.split == name] for name in plan.parts}
    splits = {name: _split_info(dataset, name, pairs) for name, pairs in own.items()}
    mean, std = _statistics([results[task.stem] for task in tasks if task.split == "train"], options.pixels)
    left_out = [
        LeftOut(key=key, reason=reason, split=task.split)
        for task in tasks
        for key, reason in results[task.stem].left_out
    ]
    return Manifest(
        name=dataset.name,
        set_id=plan.set_id,
        phantom=plan.phantom,
        task=dataset.task,
        label_columns=list(dataset.label_columns),
        classes=view.classes,
        label_view=dataset.default_view,
        views=dataset.views,
        channels=options.pixels.channels,
        bits=options.pixels.bits,
        metadata=metadata_fields(plan.fields),
        mean=mean,
        std=std,
        target_metric=dataset.target_metric,
        knn_k=dataset.knn_k,
        encoding=options.pixels.format,
        splits=splits,
        grouping=plan.grouping,
        left_out=left_out,
        source=Source(dataset=dataset.name, citation=dataset.citation, licence=dataset.licence, where=dataset.where),
        conversion=options.recorded(),
        versions=versions(),
        warnings=[*plan.warnings, *_frames(results), *_duplicates(tasks, results), *more_warnings],
    )


def _split_info(dataset: RawDataset, name: str, own: Sequence[tuple[Task, Outcome]]) -> SplitInfo:
    items = [item for task, outcome in own for item in _kept(task, outcome)]
    if not items:
        raise ValueError(f"no image of split {name} decodes: see left_out.csv in the private folder")
    labels, view = np.array([item.labels for item in items], np.int16), dataset.views[dataset.default_view]
    return SplitInfo(
        samples=len(items),
        groups=len({item.group for item in items}),
        class_counts=class_counts(labels, view, dataset.label_columns, dataset.task),
        shards=[ShardInfo.model_validate(outcome.info) for _, outcome in own if outcome.info],
    )


def _statistics(outcomes: Sequence[Outcome], pixels: PixelOptions) -> tuple[list[float], list[float]]:
    """Mean and deviation a channel over all stored training pixels, from exact integer sums, on the 0..1 scale."""
    count = sum(outcome.num_pixels for outcome in outcomes)
    if not count:
        raise ValueError("the training split is empty: there is nothing to measure mean and std on")
    top = (1 << pixels.bits) - 1
    mean, std = [], []
    for channel in range(pixels.channels):
        total = sum(outcome.sums[channel] for outcome in outcomes if outcome.sums)
        squares = sum(outcome.squares[channel] for outcome in outcomes if outcome.squares)
        mean.append(round(total / (count * top), 8))
        std.append(max(round(math.sqrt(squares * count - total * total) / (count * top), 8), 1e-8))
    return mean, std


def _duplicates(tasks: list[Task], results: dict[str, Outcome]) -> list[str]:
    """One warning with the number of images whose stored pixels stand in more than one split, and a few keys."""
    where: dict[int, list[tuple[str, str]]] = {}
    for task in tasks:
        outcome = results[task.stem]
        for item, digest in zip(_kept(task, outcome), outcome.hashes, strict=True):
            where.setdefault(digest, []).append((task.split, item.key))
    shared = [places for places in where.values() if len({split for split, _ in places}) > 1]
    if not shared:
        return []
    pairs = Counter("-".join(sorted({split for split, _ in places}, key=SPLITS.index)) for places in shared)
    counts = ", ".join(f"{pair} {count}" for pair, count in sorted(pairs.items()))
    keys = "; ".join(" = ".join(dict(places).values()) for places in shared[:5])
    return [
        f"{counted(len(shared), 'image', 'stand')} pixel by pixel in more than one split ({counts}); the first: {keys}"
    ]


def _frames(results: dict[str, Outcome]) -> list[str]:
    """A warning of files with several frames."""
    count = sum(outcome.several_frames for outcome in results.values())
    told = (
        f"{count} DICOM files have several frames, of which the first alone is stored: write the wanted ones as files"
    )
    return [told] if count else []


def _kept(task: Task, outcome: Outcome) -> list[Item]:
    dropped = {key for key, _ in outcome.left_out}
    return [item for item in task.items if item.key not in dropped]


def near_duplicates(
    tasks: list[Task], results: dict[str, Outcome], sources: dict[str, str]
) -> tuple[list[tuple[str, str, str, str, str]], list[str]]:
    """Rows (source, split, source, split, similarity), private, of images alike in two splits; a warning with counts.

    `sources`: {key: source}. All pairs are counted, at most MAX_LISTED are rows.
    """
    keys: dict[str, list[str]] = {}
    texts: dict[str, list[str]] = {}
    for task in tasks:
        keys.setdefault(task.split, []).extend(item.key for item in _kept(task, results[task.stem]))
        texts.setdefault(task.split, []).extend(results[task.stem].descriptors)
    rows: list[tuple[str, str, str, str, str]] = []
    pairs: Counter[str] = Counter()
    for first, row, second, column, similarity in similar_pairs({name: unpacked(t) for name, t in texts.items()}):
        pairs[f"{first}-{second}"] += 1
        if len(rows) < MAX_LISTED:
            left, right = sources[keys[first][row]], sources[keys[second][column]]
            rows.append((left, first, right, second, f"{similarity:.4f}"))
    if not pairs:
        return rows, []
    counts = ", ".join(f"{pair} {count}" for pair, count in pairs.items())
    told = f"{pairs.total()} pairs of images in two splits look alike ({counts}; similarity {THRESHOLD} or more)"
    return rows, [f"{told}; look at near_duplicates.csv in the private folder"]


def versions(*, compress: bool = False) -> dict[str, str]:
    """Of everything that decodes, reduces, encodes or shuffles; and, where asked for, packs."""
    names = ["medshard", "numpy", "opencv-python-headless", "pillow", *(["zstandard"] if compress else [])]
    names += ["imagecodecs"] if find_spec("imagecodecs") else []
    return {"python": platform.python_version()} | {name: version(name) for name in names}


def describe(manifest: Manifest, seconds: float | None = None) -> str:
    """A few lines for the terminal."""
    lines = []
    for name, split in manifest.splits.items():
        counts = ", ".join(f"{label} {count}" for label, count in split.class_counts.items())
        shards = counted(len(split.shards), "shard")
        lines.append(f"  {name:5} {split.samples:7} images {split.groups:7} groups in {shards}: {counts}")
    total = sum(split.samples for split in manifest.splits.values())
    size = sum(info.bytes for split in manifest.splits.values() for info in split.shards)
    pace = f", {total / seconds:.0f} images/s" if seconds else ""
    reasons = Counter(entry.reason for entry in manifest.left_out)
    why = f" ({', '.join(f'{reason} {count}' for reason, count in sorted(reasons.items()))})" if reasons else ""
    lines.append(f"  {counted(total, 'image')}, {size / 1e6:.1f} MB{pace}; {len(manifest.left_out)} left out{why}")
    lines.append(
        f"  mean {manifest.mean} std {manifest.std}; groups shared by splits: {manifest.grouping.intersections}"
    )
    return "\n".join([*lines, *(f"  note: {warning}" for warning in manifest.warnings)])
