"""Writing a whole set from samples in memory: what tests and small conversions want; prep writes shards in parallel."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.dealing import intersections
from shards.decoding import decode
from shards.identity import sample_id
from shards.manifest import Grouping, LabelView, Manifest, ShardInfo, SplitInfo, Task, metadata_fields
from shards.shardset import ShardSet
from shards.writer import Sample, ShardWriter, class_counts


def write_set(
    folder: str | Path,
    samples: Iterable[Sample],
    *,
    name: str,
    classes: Sequence[str],
    channels: int = 3,
    bits: int = 8,
    task: Task = "single-label",
    shard_size: int | Mapping[str, Sequence[int]] = 1000,
    set_id: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    details: Mapping[str, Any] | None = None,
    fields: Sequence[str] = (),
) -> ShardSet:
    """Write a whole set, in the order of `samples`; the manifest comes last, so an interrupted set is no set.

    `shard_size` counts samples: one number, or for a split the sizes of its shards (the last size repeats). `mean` and
    `std` are measured on the training split where they are not given. `details` sets further manifest fields.
    `fields` are the metadata fields (shards.metadata) that samples may tell.

    Raises:
        ValueError: `details` hold what is an argument, or a sample does not fit FORMAT.md.
    """
    if clash := sorted(
        {"name", "set_id", "task", "channels", "bits", "mean", "std", "splits", "metadata"} & set(details or {})
    ):
        raise ValueError(
            f"details may not hold {clash[0]!r}: it is an argument of write_set, or follows from the samples"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    set_id = set_id or hashlib.blake2b(name.encode(), digest_size=16, person=b"medshard-set").hexdigest()
    statistics = _Statistics() if mean is None or std is None else None
    known = metadata_fields(fields)
    tally = _Tally(folder, set_id, task, shard_size, [field.name for field in known])
    try:
        for sample in samples:
            tally.add(sample)
            if statistics is not None and sample.split == "train":
                statistics.add(sample, channels, bits)
        splits = tally.close()
        if statistics is not None:
            mean, std = statistics.result(channels)
        content: dict[str, Any] = _of_task(task, list(classes)) | {
            "name": name, "set_id": set_id, "channels": channels, "bits": bits, "mean": list(mean or []),
            "std": list(std or []), "metadata": known, "encoding": tally.encoding, "grouping": tally.grouping(),
        } | dict(details or {})  # fmt: skip
        view = LabelView.model_validate(content["views"][content.get("label_view", "default")])
        content["classes"] = view.classes
        content["splits"] = {
            key: tally.info(key, view, content["label_columns"], shards) for key, shards in splits.items()
        }
        Manifest.model_validate(content).write(folder)
    except BaseException:
        tally.abort()
        raise
    return ShardSet(folder)


def _of_task(task: Task, classes: list[str]) -> dict[str, Any]:
    """Fields of a manifest that follow from task and classes."""
    if task == "multi-label":
        columns, mapping, metric = classes, {"0": 0, "1": 1}, "roc_auc"
    else:
        columns, mapping, metric = ["label"], {str(i): i for i in range(len(classes))}, "accuracy"
    views = {"default": LabelView(classes=classes, mapping=mapping)}
    return {"task": task, "label_columns": columns, "classes": classes, "views": views, "target_metric": metric}


class _Tally:
    """The open shard of each split, and what the manifest will say of them."""

    def __init__(
        self,
        folder: Path,
        set_id: str,
        task: Task,
        shard_size: int | Mapping[str, Sequence[int]],
        fields: Sequence[str] = (),
    ):
        self.fields = fields
        self.folder, self.set_id, self.task, self.shard_size = folder, set_id, task, shard_size
        self.encoding = ""
        self._open: dict[str, ShardWriter] = {}
        self._done: dict[str, list[ShardInfo]] = {}
        self._labels: dict[str, list[tuple[int, ...]]] = {}
        self._groups: dict[str, set[int]] = {}
        self._ids: dict[int, str] = {}

    def _capacity(self, split: str, shard: int) -> int:
        if isinstance(self.shard_size, int):
            return self.shard_size
        sizes = self.shard_size[split]
        return sizes[min(shard, len(sizes) - 1)]

    def add(self, sample: Sample) -> None:
        split = sample.split
        done = self._done.setdefault(split, [])
        identity = sample_id(self.set_id, sample.key)
        if identity in self._ids:
            raise ValueError(
                f"samples {self._ids[identity]} and {sample.key} have one id: keys are unique over the set"
            )
        if split not in self._open:
            self._open[split] = ShardWriter(
                self.folder, split, len(done), self.set_id, task=self.task, fields=self.fields
            )
        self._open[split].add(
            sample.key,
            sample.image,
            sample.encoding,
            sample.labels,
            sample.height,
            sample.width,
            sample.group,
            metadata=sample.metadata,
        )
        self._ids[identity] = sample.key
        self._labels.setdefault(split, []).append(tuple(sample.labels))
        self._groups.setdefault(split, set()).add(sample.group)
        self.encoding = self.encoding or sample.encoding
        if len(self._open[split]) >= self._capacity(split, len(done)):
            done.append(self._open.pop(split).close())

    def close(self) -> dict[str, list[ShardInfo]]:
        for split in list(self._open):
            self._done[split].append(self._open.pop(split).close())
        if not self._done:
            raise ValueError(f"no sample was given for {self.folder}: a set needs at least one")
        order = [split for split in ("train", "val", "test") if split in self._done]
        return {split: self._done[split] for split in order + sorted(set(self._done) - set(order))}

    def abort(self) -> None:
        for writer in self._open.values():
            writer.abort()
        for info in (info for infos in self._done.values() for info in infos):
            for suffix in (".tar", ".idx", ".cols"):
                (self.folder / f"{info.stem}{suffix}").unlink(missing_ok=True)

    def grouping(self) -> Grouping:
        return Grouping(
            by="image",
            salt_digest="0" * 32,
            intersections=intersections({name: np.array(list(own), np.uint64) for name, own in self._groups.items()}),
            how="as given by the caller",
        )

    def info(self, split: str, view: LabelView, columns: Sequence[str], shards: list[ShardInfo]) -> SplitInfo:
        labels = np.array(self._labels[split], np.int16)
        return SplitInfo(
            samples=len(labels),
            groups=len(self._groups[split]),
            class_counts=class_counts(labels, view, columns, self.task),
            shards=shards,
        )


class _Statistics:
    """Mean and standard deviation per channel over all pixels, on the 0..1 scale."""

    def __init__(self) -> None:
        self.pixels = 0
        self.sums: np.ndarray = np.zeros(2)

    def add(self, sample: Sample, channels: int, bits: int) -> None:
        pixels = decode(sample.image, sample.encoding, channels, sample.height, sample.width, bits)
        values = pixels.reshape(-1, channels) / float((1 << bits) - 1)
        self.pixels += len(values)
        self.sums = self.sums.reshape(2, -1) + np.stack([values.sum(0), (values**2).sum(0)])

    def result(self, channels: int) -> tuple[list[float], list[float]]:
        if not self.pixels:
            raise ValueError("mean and std are measured on the training split, which is empty: give them")
        mean, square = self.sums / self.pixels
        std = np.sqrt(np.maximum(square - mean**2, 1e-12))
        return [round(float(x), 8) for x in mean], [round(float(x), 8) for x in std]
