"""What a conversion would do, without writing anything."""

import time
from collections import Counter
from pathlib import Path

from prep.fold_files import describe_folds
from prep.hdf5 import read_row
from prep.images import UndecodableImage, prepare, prepare_pixels, read_file
from prep.planning import ConvertOptions, make_plan, shard_samples
from prep.records import RawDataset, Record
from prep.whole_slides import read_tile
from shards.identity import SALT_BYTES
from shards.words import counted

TRIALS = 8  # images converted to estimate size and time


def dry_run(dataset: RawDataset, root: Path, out: Path | str, options: ConvertOptions) -> str:
    """A few lines: counts, classes, splits, expected size and time. Nothing is written."""
    plan = make_plan(dataset, root, options, bytes(SALT_BYTES))
    view = dataset.views[dataset.default_view]
    lines = [f"{dataset.name}{' (phantoms)' if plan.phantom else ''}: {root} -> {out}, {dataset.task}, nothing written"]
    for split, part in plan.parts.items():
        records = [record for _, record in part]
        counts = ", ".join(f"{name} {count}" for name, count in _class_counts(dataset, records).items())
        groups = len({record.group for record in records})
        shards = -(-len(part) // shard_samples(len(part), options.shard_samples))
        lines.append(f"  {split:5} {len(part):7} images {groups:7} groups in {counted(shards, 'shard')}: {counts}")
    lines.append(f"  {dataset.default_view}: {', '.join(view.classes)}; groups shared: {plan.grouping.intersections}")
    lines += describe_folds(plan, options.folds) if options.folds is not None else []
    everything = [record for part in plan.parts.values() for _, record in part]
    lines.append(_estimate(everything, options))
    return "\n".join([*lines, *(f"  note: {warning}" for warning in plan.warnings)])


def _class_counts(dataset: RawDataset, records: list[Record]) -> dict[str, int]:
    view = dataset.views[dataset.default_view]
    counts: Counter[str] = Counter()
    for record in records:
        for column, label in zip(dataset.label_columns, record.labels, strict=True):
            index = view.mapping.get("" if label is None else str(label))
            if dataset.task == "single-label" and index is not None:
                counts[view.classes[index]] += 1
            elif dataset.task == "multi-label" and index == 1:
                counts[column] += 1
    return {name: counts[name] for name in view.classes}


def _estimate(records: list[Record], options: ConvertOptions) -> str:
    """Convert a few images spread over the set, and multiply."""
    trial = records[:: max(len(records) // TRIALS, 1)][:TRIALS]
    start, size, failed = time.perf_counter(), 0, 0
    for record in trial:
        try:
            size += len(_converted(record, options))
        except UndecodableImage:
            failed += 1
    seconds = (time.perf_counter() - start) / len(trial) * len(records) / options.workers
    total = size / max(len(trial) - failed, 1) * len(records)
    bad = f"; {failed} of {len(trial)} tried do not decode" if failed else ""
    workers, tried = counted(options.workers, "worker"), counted(len(trial), "image")
    return f"  about {total / 1e6:.0f} MB and {seconds:.0f} s on {workers}, from {tried}{bad}"


def _converted(record: Record, options: ConvertOptions) -> bytes:
    if record.region is not None:
        return prepare_pixels(read_tile(record.path, record.region), options.pixels).encoded
    if record.row is None:
        return prepare(read_file(record.path), options.pixels).encoded
    return prepare_pixels(read_row(record.path, record.row), options.pixels).encoded
