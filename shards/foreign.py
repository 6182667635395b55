"""Opening tars that others wrote to our loader: their indices, and a manifest that says how little is known of them."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from shards.aside import write_aside
from shards.decoding import decode, probe
from shards.index import ENCODINGS, Columns
from shards.indexing import build
from shards.manifest import MANIFEST_NAME, Grouping, LabelView, Manifest, ShardInfo, SplitInfo, Task, file_sha256
from shards.words import counted
from shards.writer import class_counts

STATISTICS_IMAGES = 2000
_SPLIT_ORDER = {"train": 0, "val": 1, "test": 2}


def index_foreign(
    folder: Path, *, classes: Sequence[str] | None = None, split: str = "train", say: Callable[[str], None] = print
) -> Manifest:
    """Index a folder of WebDataset tars that others wrote, and write its manifest, so that our loader reads it.

    Tars called train*, val* or test* make those splits, others `split`. Nothing is known of patients, and the manifest
    says so. ValueError names what cannot be read rightly; then nothing is written.
    """
    tars = sorted(folder.glob("*.tar"))
    if not tars:
        raise ValueError(f"no .tar file lies in {folder}")
    sums = {tar.name: file_sha256(tar) for tar in tars}
    set_id = hashlib.blake2b("".join(sums.values()).encode(), digest_size=16).hexdigest()
    built = {}
    for tar in tars:
        built[tar] = build(tar, set_id)
        say(f"{tar.name}: {counted(len(built[tar][0]), 'sample')}")
    manifest = _foreign_manifest(
        folder, {tar: columns for tar, (columns, _) in built.items()}, sums, set_id, classes, split
    )
    for tar, (columns, text) in built.items():
        write_aside(tar.with_suffix(".cols"), columns.to_bytes())
        write_aside(tar.with_suffix(".idx"), text.encode())
    manifest.write(folder / MANIFEST_NAME)
    return manifest


def _foreign_manifest(
    folder: Path,
    built: Mapping[Path, Columns],
    sums: Mapping[str, str],
    set_id: str,
    classes: Sequence[str] | None,
    split: str,
) -> Manifest:
    num_labels = {columns.labels.shape[1] for columns in built.values()}
    if len(num_labels) > 1:
        raise ValueError(f"the tars of {folder} have {sorted(num_labels)} labels a sample: index them apart")
    labels = np.concatenate([columns.labels for columns in built.values()])
    ids = np.concatenate([columns.sample_ids for columns in built.values()])
    if len(np.unique(ids)) < len(ids):
        raise ValueError(f"two tars of {folder} share a key: keys are unique over a set")
    task: Task = "multi-label" if labels.shape[1] > 1 else "single-label"
    classes = list(classes or _class_names(labels, task))
    mapping = {"0": 0, "1": 1} if task == "multi-label" else {str(index): index for index in range(len(classes))}
    view, columns_named = LabelView(classes=classes, mapping=mapping), classes if task == "multi-label" else ["label"]
    by_split = _by_split(built, split)
    channels, bits, mean, std = _measure(by_split.get("train", list(built)), built)
    encodings = {int(code) for columns in built.values() for code in np.unique(columns.encodings)}
    return Manifest(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", folder.resolve().name).lstrip("._-") or "foreign",
        set_id=set_id,
        task=task,
        label_columns=columns_named,
        classes=classes,
        views={"default": view},
        channels=3 if channels == 3 else 1,
        bits=16 if bits == 16 else 8,
        mean=mean,
        std=std,
        target_metric="roc_auc" if task == "multi-label" else "accuracy",
        encoding=next(name for name, (code, _) in ENCODINGS.items() if code == min(encodings)),
        splits={
            name: SplitInfo(
                samples=sum(len(built[tar]) for tar in members),
                groups=sum(len(built[tar]) for tar in members),
                class_counts=class_counts(
                    np.concatenate([built[tar].labels for tar in members]), view, columns_named, task
                ),
                shards=[_shard_info(tar, built[tar], sums[tar.name]) for tar in members],
            )
            for name, members in by_split.items()
        },
        grouping=Grouping(by="unknown", salt_digest="0" * 32, intersections={}, how="tars written by others"),
        warnings=["indexed from tars that others wrote: nothing is known of patients"],
    )


def _by_split(tars: Iterable[Path], other: str) -> dict[str, list[Path]]:
    """Split -> its tars by the beginning of their names, train, val and test first; those of none are of `other`."""
    found: dict[str, list[Path]] = {}
    for tar in tars:
        named = re.match(r"(train|val|test)", tar.name)
        found.setdefault(named.group(1) if named else other, []).append(tar)
    return dict(sorted(found.items(), key=lambda item: _SPLIT_ORDER.get(item[0], 9)))


def _shard_info(tar: Path, columns: Columns, sha256: str) -> ShardInfo:
    index = hashlib.sha256(columns.to_bytes()).hexdigest()
    return ShardInfo(name=tar.name, samples=len(columns), bytes=tar.stat().st_size, sha256=sha256, index_sha256=index)


def _class_names(labels: np.ndarray, task: Task) -> list[str]:
    if task == "multi-label":
        return [f"label{index}" for index in range(labels.shape[1])]
    top = int(labels.max())
    if top < 0:
        raise ValueError("no sample has a label (KEY.cls or KEY.json): nothing can be trained on these tars")
    return [str(index) for index in range(top + 1)]


def _measure(tars: Sequence[Path], built: Mapping[Path, Columns]) -> tuple[int, int, list[float], list[float]]:
    """Channels, bits, mean and std (0..1 scale) from at most STATISTICS_IMAGES images, evenly spread."""
    total = sum(len(built[tar]) for tar in tars)
    chosen = set(np.linspace(0, total - 1, min(total, STATISTICS_IMAGES)).astype(int).tolist())
    number, shapes, sums, pixels = 0, set(), np.zeros((2, 3)), 0
    for tar in tars:
        columns = built[tar]
        data = np.memmap(tar, np.uint8, mode="r")
        for row in range(len(columns)):
            number += 1
            if number - 1 not in chosen or columns.encodings[row] == ENCODINGS["raw"][0]:
                continue
            image = memoryview(data[int(columns.offsets[row]) :][: int(columns.sizes[row])].tobytes())
            _, _, channels, bits = probe(image)
            shapes.add((channels, bits))
            values = decode(image, "png", 3, int(columns.heights[row]), int(columns.widths[row]), bits)
            values = values.reshape(-1, 3) / float((1 << bits) - 1)
            sums, pixels = sums + np.stack([values.sum(0), (values**2).sum(0)]), pixels + len(values)
    if len({bits for _, bits in shapes}) != 1:
        raise ValueError("the images are not all of one depth, or all raw: convert them with prep first")
    channels = max(channels for channels, _ in shapes)
    mean = (sums[0] / pixels)[:channels]
    std = np.sqrt(np.maximum((sums[1] / pixels)[:channels] - mean**2, 1e-12))
    return channels, shapes.pop()[1], [round(float(x), 8) for x in mean], [round(float(x), 8) for x in std]
