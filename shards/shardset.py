"""A shard set: its splits under the view, the label file and the split file in force. See `split` for what they are."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shards.manifest import BLANK_LABEL, ShardInfo, SplitInfo, Task
from shards.overrides import LabelFile, SplitFile
from shards.split import CorruptSample as CorruptSample
from shards.split import Rows as Rows
from shards.split import Split as Split
from shards.split import lookup_table
from shards.storage import SPLIT_FILE_NAME, SPLITS_FOLDER, LocalFolder, Storage, open_storage
from shards.storage import open_columns as open_columns

if TYPE_CHECKING:
    from shards.fetching import Patience


class ShardSet:
    """A shard set in a folder, or at any URL that fsspec reads (`https://…`, `s3://…`).

    Shards at a URL come through the folder `cache`, which holds at most `cache_limit` bytes and may be shared by
    processes and sets; `patience` says how often and how long a request is tried. Then `path` is the set's place in it.

    `view` chooses one of the manifest's label views. `labels_file` (csv: key and the label columns) replaces the source
    labels, `split_file` (csv: key, split) the splits; keys that a file does not name are left out.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        view: str | None = None,
        labels_file: str | Path | None = None,
        split_file: str | Path | None = None,
        cache: str | Path | None = None,
        cache_limit: int | None = None,
        patience: "Patience | None" = None,
    ):
        self.storage = open_storage(path, cache=cache, cache_limit=cache_limit, patience=patience)
        self.path, self.manifest = self.storage.path, self.storage.manifest
        self.view_name = view or self.manifest.label_view
        if self.view_name not in self.manifest.views:
            raise ValueError(
                f"view {view!r} is unknown; {self.manifest.name} has {', '.join(sorted(self.manifest.views))}"
            )
        self.view = self.manifest.views[self.view_name]
        self._label_file = LabelFile.read(labels_file, self.manifest) if labels_file is not None else None
        self._split_file = None
        if split_file is not None:
            self._split_file = SplitFile.read(find_split_file(self.storage, split_file), self.manifest)

    @property
    def classes(self) -> list[str]:
        """Class names under the view."""
        return self.view.classes

    @property
    def num_classes(self) -> int:
        """How many classes the view has."""
        return len(self.view.classes)

    @property
    def task(self) -> Task:
        """`single-label` or `multi-label`."""
        return self.manifest.task

    @property
    def split_names(self) -> list[str]:
        """The splits that exist, the split file's where one is in force."""
        return list(self.manifest.splits) if self._split_file is None else self._split_file.names

    @property
    def digest(self) -> str:
        """A hash of all that decides which samples stand where: the manifest, the view and the files in force."""
        parts = [self.manifest.digest, self.view_name]
        parts += [file.digest for file in (self._label_file, self._split_file) if file is not None]
        return (
            parts[0]
            if len(parts) == 2 and view_is_default(self)
            else hashlib.sha256("/".join(parts).encode()).hexdigest()
        )

    def split(self, name: str) -> Split:
        """One split; ValueError naming the splits that exist."""
        if name not in self.split_names:
            raise ValueError(
                f"split {name!r} does not exist in {self.manifest.name}; it has {', '.join(self.split_names)}"
            )
        infos = self.manifest.splits.values() if self._split_file is not None else [self.manifest.splits[name]]
        shards = [shard for info in infos for shard in info.shards]
        whole = self._split_file is None and self._all_mapped(self.manifest.splits[name])
        if not whole:
            self.storage.prepare(shards)
        selected = [None if whole else self._select(shard, name) for shard in shards]
        return Split(self.storage, name, self.view, shards, selected, self._label_file, self.digest)

    def check_files(self) -> None:
        """ValueError for a local tar that is missing or has another size, or a damaged index, before hours of work."""
        if not isinstance(self.storage, LocalFolder):
            return
        for info in (info for split in self.manifest.splits.values() for info in split.shards):
            self.storage.check(info)
            self.storage.columns(info)

    def _all_mapped(self, info: SplitInfo) -> bool:
        if self.task == "multi-label" and self._label_file is None:
            return True
        return self._label_file is None and view_is_default(self) and sum(info.class_counts.values()) == info.samples

    def _select(self, shard: ShardInfo, split: str) -> np.ndarray | None:
        """Rows of a shard that belong to a split and have a class, int32; None for all of them."""
        columns = self.storage.columns(shard)
        keep = np.ones(len(columns), bool)
        if self._split_file is not None:
            keep &= self._split_file.member(columns.sample_ids, split)
        labels = columns.labels if self._label_file is None else self._label_file.labels_of(columns.sample_ids)
        if self._label_file is not None:
            keep &= self._label_file.named(columns.sample_ids)
        if self.task == "single-label":
            keep &= lookup_table(self.view)[labels[:, 0].astype(np.int64) - BLANK_LABEL] >= 0
        return None if keep.all() else np.flatnonzero(keep).astype(np.int32)


def find_split_file(storage: Storage, given: str | Path) -> Path:
    """A path as it is; a bare name is that of one of the set's own split files (`python -m shards split`).

    Raises:
        ValueError: there is neither such a file nor such a name.
    """
    path, name = Path(given), str(given)
    if path.is_file():
        return path
    own = storage.split_file(name) if SPLIT_FILE_NAME.fullmatch(name) else None
    if own is None:
        has = storage.path / SPLITS_FOLDER
        names = ", ".join(sorted(each.stem for each in has.glob("*.csv"))[:20]) if has.is_dir() else ""
        raise ValueError(
            f"there is no split file {name}, nor one of that name in {storage.where}/{SPLITS_FOLDER}"
            + (f"; it has {names}" if names else "; `python -m shards split` makes some")
        )
    return own


def view_is_default(shard_set: ShardSet) -> bool:
    """Whether the set is read under the view that its manifest names as the default."""
    return shard_set.view_name == shard_set.manifest.label_view
