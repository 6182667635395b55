"""One split of a set: its columns, and encoded images straight from memory-mapped tars.

A *position* numbers the samples of a split in stored order, 0..n-1, under the view in force: views, label files and
split files select and relabel at load time, without rewriting a tar.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import xxhash

from shards.index import Columns
from shards.manifest import BLANK_LABEL, LabelView, ShardInfo, Task
from shards.metadata import decoded
from shards.overrides import LabelFile
from shards.plan import Plan, Reads
from shards.storage import Ahead, LocalFolder, Mapped, Storage, Stream
from shards.words import counted


class CorruptSample(ValueError):
    """The stored bytes of one sample are not those that were written; the text names key, shard, expected and found."""

    def __init__(self, key: str, shard: str, expected: int, found: int):
        super().__init__(
            f"sample {key} in {shard} is damaged: hash {found:016x}, {expected:016x} expected; "
            "restore the shard from a copy, or make the set again"
        )
        self.key, self.shard, self.expected, self.found = key, shard, expected, found


class Rows(NamedTuple):
    """The index of n samples: where their images lie and what they are."""

    offsets: np.ndarray  # uint64[n], bytes from the start of the tar
    sizes: np.ndarray  # uint32[n], bytes
    heights: np.ndarray  # uint32[n], pixels
    widths: np.ndarray  # uint32[n], pixels
    labels: np.ndarray  # int16[n, label columns], source labels, -32768 is blank
    groups: np.ndarray  # uint64[n]
    hashes: np.ndarray  # uint64[n], xxh3_64 of the image
    sample_ids: np.ndarray  # uint64[n]
    encodings: np.ndarray  # uint8[n], codes of index.ENCODINGS
    shards: np.ndarray  # int64[n], number of the shard in the split


COLUMN_TYPES = {
    "offsets": np.uint64, "sizes": np.uint32, "heights": np.uint32, "widths": np.uint32, "labels": np.int16,
    "groups": np.uint64, "hashes": np.uint64, "sample_ids": np.uint64, "encodings": np.uint8,
}  # fmt: skip


class Part(NamedTuple):
    """Those of n asked-for samples that lie in one shard."""

    places: np.ndarray  # int64[m], among the n
    columns: Columns
    rows: np.ndarray  # int64[m], in that shard's index


class Split:
    """One split of a set. Opens shards as they are asked for; safe to read from many threads."""

    def __init__(
        self,
        storage: Storage,
        name: str,
        view: LabelView,
        shards: Sequence[ShardInfo],
        selected: Sequence[np.ndarray | None],
        label_file: LabelFile | None,
        digest: str,
    ):
        self.digest = digest  # of the set under the view and files in force; it keys the plan's order
        self.storage, self.name, self.manifest, self.view = storage, name, storage.manifest, view
        self.shards = tuple(shards)
        self._selected = tuple(selected)
        self._label_file = label_file
        sizes = [info.samples if rows is None else len(rows) for info, rows in zip(shards, selected, strict=True)]
        self.shard_sizes = np.array(sizes, np.int64)
        self._ends = np.cumsum(self.shard_sizes)
        self._end_list: list[int] = self._ends.tolist()
        self._columns: Mapped[int, Columns] = Mapped(self._open_columns)
        self._classify = classifier(view, self.manifest.label_columns, self.manifest.task)

    @property
    def num_samples(self) -> int:
        """Samples of the split under the view in force."""
        return int(self._ends[-1]) if len(self._ends) else 0

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        held = f"{counted(self.num_samples, 'sample')} in {counted(len(self.shards), 'shard')}"
        return f"Split({self.name!r}, {held} of {self.storage.where})"

    def _open_columns(self, shard: int) -> Columns:
        return self.storage.columns(self.shards[shard])

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shard number and row in that shard's index for positions int64[n]; ValueError outside 0..num_samples-1."""
        positions = np.asarray(positions, np.int64).reshape(-1)
        if len(positions) and not (positions.min() >= 0 and positions.max() < self.num_samples):
            raise ValueError(f"a position is outside 0..{self.num_samples - 1} of split {self.name!r}")
        shards = np.searchsorted(self._ends, positions, side="right")
        rows = positions - (self._ends[shards] - self.shard_sizes[shards]) if len(positions) else positions.copy()
        for shard in np.unique(shards):
            if (selected := self._selected[shard]) is not None:
                here = shards == shard
                rows[here] = selected[rows[here]]
        return shards.astype(np.int64), rows

    def _locate_one(self, position: int) -> tuple[int, int]:
        """`locate` for one position: read is called for every image, and numpy's way in costs more than the read."""
        if not 0 <= position < self.num_samples:
            raise ValueError(f"position {position} is outside 0..{self.num_samples - 1} of split {self.name!r}")
        shard = bisect_right(self._end_list, position)
        row = position - (self._end_list[shard - 1] if shard else 0)
        selected = self._selected[shard]
        return shard, row if selected is None else int(selected[row])

    def _parts(self, positions: np.ndarray | None) -> tuple[np.ndarray, list[Part]]:
        """Shard numbers int64[n] of positions int64[n] (None: of all), and the parts that lie in one shard each."""
        if positions is None:
            self.storage.prepare(self.shards)
            positions = np.arange(self.num_samples)
        shards, rows = self.locate(positions)
        places = [(int(shard), np.flatnonzero(shards == shard)) for shard in np.unique(shards)]
        return shards, [Part(here, self._columns[shard], rows[here]) for shard, here in places]

    def _column(self, name: str, parts: Sequence[Part], count: int) -> np.ndarray:
        if name == "labels" and self._label_file is not None:
            return self._label_file.labels_of(self._column("sample_ids", parts, count))
        shape = (count, len(self.manifest.label_columns)) if name == "labels" else (count,)
        out = np.empty(shape, COLUMN_TYPES[name])
        for part in parts:
            out[part.places] = getattr(part.columns, name)[part.rows]
        return out

    def _gather(self, name: str, positions: np.ndarray | None) -> np.ndarray:
        shards, parts = self._parts(positions)
        return self._column(name, parts, len(shards))

    def rows(self, positions: np.ndarray) -> Rows:
        """The index of the samples at positions int64[n], in that order, as arrays of our own."""
        shards, parts = self._parts(positions)
        columns = [self._column(name, parts, len(shards)) for name in Rows._fields[:-1]]
        return Rows._make([*columns, shards])

    def sides(self, positions: np.ndarray | None = None) -> np.ndarray:
        """Height and width in pixels, int64[n, 2], of all samples or of positions int64[n]."""
        shards, parts = self._parts(positions)
        columns = [self._column(name, parts, len(shards)) for name in ("heights", "widths")]
        return np.stack(columns, axis=1).astype(np.int64)

    def labels(self, positions: np.ndarray | None = None) -> np.ndarray:
        """Targets under the view, of all samples or of positions int64[n].

        Single-label: class index int64[n]. Multi-label: float32[n, classes] of 0, 1 and NaN (ignored).
        """
        return self._classify(self._gather("labels", positions))

    def sample_ids(self, positions: np.ndarray | None = None) -> np.ndarray:
        """Sample ids uint64[n], of all samples or of positions int64[n]."""
        return self._gather("sample_ids", positions)

    def groups(self, positions: np.ndarray | None = None) -> np.ndarray:
        """Group hashes uint64[n], of all samples or of positions int64[n]."""
        return self._gather("groups", positions)

    @property
    def metadata_fields(self) -> list[str]:
        """Names of the metadata fields that this set holds: what subgroups can be reported by."""
        return [field.name for field in self.manifest.metadata]

    def metadata(self, field: str, positions: np.ndarray | None = None) -> np.ndarray:
        """Values of one metadata field, of all samples or of positions int64[n].

        A category ("sex", "age", "view" …) gives str[n], "" where unknown; a number ("pixel_spacing_mm") float32[n],
        NaN where unknown. FORMAT.md lists the fields and their values.

        Raises:
            ValueError: the set does not hold that field; the text names those that it holds.
        """
        if field not in self.metadata_fields:
            held = ", ".join(self.metadata_fields) or "no metadata"
            raise ValueError(f"metadata field {field!r} is not in {self.manifest.name}; it has {held}")
        number = self.metadata_fields.index(field)
        shards, parts = self._parts(positions)
        codes = np.empty(len(shards), np.float32)
        for part in parts:
            codes[part.places] = part.columns.metadata[part.rows, number]
        return decoded(codes, self.manifest.metadata[number].values)

    def class_counts(self) -> dict[str, int]:
        """Samples of each class under the view (multi-label: positives)."""
        labels = self.labels()
        if self.manifest.task == "multi-label":
            counts = (labels == 1).sum(0)
        else:
            counts = np.bincount(labels, minlength=len(self.view.classes))
        return {name: int(count) for name, count in zip(self.view.classes, counts, strict=True)}

    def key(self, position: int) -> str:
        """The key of one sample."""
        shard, row = self._locate_one(position)
        return self._columns[shard].key(row)

    def read(self, position: int, verify: bool = True) -> memoryview:
        """The encoded image at a position, without a copy. The view stays valid as long as it is held.

        Raises:
            CorruptSample: `verify` and the bytes do not match the hash in the index.
            ValueError: the shard is missing, truncated, or its index is damaged.
        """
        shard, row = self._locate_one(position)
        columns, info = self._columns[shard], self.shards[shard]
        image = self._bytes(info, columns, row)
        if not verify or xxhash.xxh3_64_intdigest(image) == int(columns.hashes[row]):
            return image
        if self.storage.renew(info):  # what was fetched has rotted on this machine's disk
            image = self._bytes(info, columns, row)
        if (found := xxhash.xxh3_64_intdigest(image)) != int(columns.hashes[row]):
            raise CorruptSample(columns.key(row), info.name, int(columns.hashes[row]), found)
        return image

    def read_all(
        self, positions: np.ndarray, rows: Rows, verify: bool = True
    ) -> tuple[list[memoryview], dict[int, str]]:
        """The encoded images at positions int64[n], whose `rows` are known: those of `read`, in one walk.

        A damaged one is empty; it is told by its number of the n, with the reason.
        """
        numbers = rows.shards.tolist()
        tars = {shard: self.storage.tar(self.shards[shard]) for shard in set(numbers)}
        ends = (rows.offsets + rows.sizes).tolist()
        images = [tars[n][start:end] for n, start, end in zip(numbers, rows.offsets.tolist(), ends, strict=True)]
        failures: dict[int, str] = {}
        if not verify:
            return images, failures
        digest, hashes = xxhash.xxh3_64_intdigest, rows.hashes.tolist()
        for i in [i for i, image in enumerate(images) if digest(image) != hashes[i]]:
            try:
                images[i] = self.read(int(positions[i]))
            except CorruptSample as error:
                images[i], failures[i] = memoryview(b""), str(error)
        return images, failures

    def targets(self, positions: np.ndarray, rows: Rows) -> np.ndarray:
        """`labels` of positions whose `rows` are known.

        Shapes as of `labels`.
        """
        return self._classify(rows.labels)

    def _bytes(self, info: ShardInfo, columns: Columns, row: int) -> memoryview:
        offset = int(columns.offsets[row])
        return self.storage.tar(info)[offset : offset + int(columns.sizes[row])]

    @property
    def on_this_machine(self) -> bool:
        """Whether the tars lie in a folder; others are fetched, and come whole."""
        return isinstance(self.storage, LocalFolder)

    def will_read(self, rows: Rows) -> None:
        """Tell the kernel what is read soon, so that a disk brings it meanwhile, all of it side by side.

        Does nothing where the tars are fetched.
        """
        if not isinstance(self.storage, LocalFolder):
            return
        for shard, offset, size in zip(rows.shards.tolist(), rows.offsets.tolist(), rows.sizes.tolist(), strict=True):
            self.storage.will_read(self.shards[shard], offset, size)

    def fetch_ahead(
        self,
        plan: Plan,
        consumed: int = 0,
        *,
        world: int = 1,
        rank: int = 0,
        node_ranks: Sequence[int] | None = None,
        global_batch: int | None = None,
        first_shard: int = 0,
    ) -> Ahead:
        """Bring shards before they are read: call `advance(consumed)` as the plan is walked, `close()` at the end.

        `node_ranks`: the ranks that share this machine's cache. `global_batch`: where it is another than the plan was
        laid for. `first_shard`: the plan's number of this split's first shard, where the plan is of several splits. A
        local set has nothing to bring.

        Raises:
            ValueError: the cache's limit is smaller than what these ranks read at a time.
        """

        def reads_of(ranks: Sequence[int], start: int, ahead: int) -> Reads:
            found = plan.reads(start, ahead, world, ranks, global_batch=global_batch)
            return found.within(first_shard, first_shard + len(self.shards))

        stream = Stream(
            reads=partial(reads_of, (rank,)),
            node_reads=partial(reads_of, (rank,) if node_ranks is None else tuple(node_ranks)),
            consumed=consumed,
            batch=global_batch or plan.config.global_batch,
            epoch=plan.samples_per_epoch,
        )
        return self.storage.fetch_ahead(self.shards, stream)


def lookup_table(view: LabelView) -> np.ndarray:
    """Class index of each source value v at v + 32768, -1 where it is not mapped: int64[65536]."""
    table = np.full(1 << 16, -1, np.int64)
    for value, index in view.mapping.items():
        table[(int(value) if value else BLANK_LABEL) - BLANK_LABEL] = index
    return table


def classifier(view: LabelView, columns: Sequence[str], task: Task) -> Callable[[np.ndarray], np.ndarray]:
    """The function from source labels int16[n, L] to targets: int64[n], or float32[n, classes] with NaN for ignored.

    The function raises ValueError for a source value that the view does not map.
    """
    table = lookup_table(view)

    def single(labels: np.ndarray) -> np.ndarray:
        targets = table[labels[:, 0].astype(np.int64) - BLANK_LABEL]
        if len(targets) and targets.min() < 0:
            value = int(labels[int(targets.argmin()), 0])
            raise ValueError(f"source label {value} has no class in the view: was the manifest altered?")
        return targets

    def multi(labels: np.ndarray) -> np.ndarray:
        chosen = labels[:, [list(columns).index(name) for name in view.classes]]
        targets = table[chosen.astype(np.int64) - BLANK_LABEL].astype(np.float32)
        return np.where(targets < 0, np.float32(np.nan), targets)

    return multi if task == "multi-label" else single
