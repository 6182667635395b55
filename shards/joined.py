"""Several splits read as one, for mixtures: positions are those of the splits put end to end."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shards.plan import Plan
from shards.split import Rows, Split
from shards.storage import Ahead


class JoinedSplit:
    """What a loader asks of a split, answered by several of them.

    Raises ValueError where task, classes, channels, bits or the way of storing differ.
    """

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = tuple(splits)
        first = self.splits[0]
        for other in self.splits[1:]:
            _check_alike(first, other)
        self.manifest, self.name, self.view = first.manifest, first.name, first.view
        self.shard_sizes = np.concatenate([split.shard_sizes for split in self.splits])
        self.digest = hashlib.sha256("/".join(split.digest for split in self.splits).encode()).hexdigest()
        self._starts = np.concatenate([[0], np.cumsum([split.num_samples for split in self.splits])])
        self._shard_starts = np.concatenate([[0], np.cumsum([len(split.shards) for split in self.splits])])

    @property
    def num_samples(self) -> int:
        """Samples of all splits."""
        return int(self._starts[-1])

    def _one(self, position: int) -> tuple[Split, int]:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        return self.splits[number], position - int(self._starts[number])

    def _gather(self, positions: np.ndarray, ask: Callable[[Split, np.ndarray], np.ndarray]) -> np.ndarray:
        source = np.searchsorted(self._starts, positions, side="right") - 1
        parts = [
            (here := np.flatnonzero(source == n), ask(self.splits[n], positions[here] - self._starts[n]))
            for n in np.unique(source)
        ]
        out = np.empty((len(positions), *parts[0][1].shape[1:]), parts[0][1].dtype)
        for here, values in parts:
            out[here] = values
        return out

    def rows(self, positions: np.ndarray) -> Rows:
        """The index of the samples at positions int64[n]; shards are numbered through all splits."""
        source = np.searchsorted(self._starts, positions, side="right") - 1
        parts = [(np.flatnonzero(source == n), int(n)) for n in np.unique(source)]
        found = [self.splits[n].rows(positions[here] - self._starts[n]) for here, n in parts]
        columns = []
        for field in Rows._fields:
            first = getattr(found[0], field)
            column = np.empty((len(positions), *first.shape[1:]), first.dtype)
            for (here, n), rows in zip(parts, found, strict=True):
                shift = int(self._shard_starts[n]) if field == "shards" else 0
                column[here] = getattr(rows, field) + shift if shift else getattr(rows, field)
            columns.append(column)
        return Rows(*columns)

    def labels(self, positions: np.ndarray) -> np.ndarray:
        """Targets under the view, as `Split.labels`."""
        return self._gather(np.asarray(positions, np.int64), lambda split, own: split.labels(own))

    def sample_ids(self, positions: np.ndarray) -> np.ndarray:
        """Sample ids uint64[n] of positions int64[n]."""
        return self._gather(np.asarray(positions, np.int64), lambda split, own: split.sample_ids(own))

    def sides(self, positions: np.ndarray) -> np.ndarray:
        """Height and width in pixels, int64[n, 2], of positions int64[n]."""
        return self._gather(np.asarray(positions, np.int64), lambda split, own: split.sides(own))

    @property
    def metadata_fields(self) -> list[str]:
        """Metadata fields that every split holds."""
        return [
            field for field in self.splits[0].metadata_fields if all(field in s.metadata_fields for s in self.splits)
        ]

    def metadata(self, field: str, positions: np.ndarray | None = None) -> np.ndarray:
        """Values of one metadata field, as `Split.metadata`.

        Raises:
            ValueError: not every set of the mixture holds that field.
        """
        if field not in self.metadata_fields:
            raise ValueError(
                f"metadata field {field!r} is not in all sets of the mixture; they share "
                f"{', '.join(self.metadata_fields) or 'none'}"
            )
        found = np.concatenate([split.metadata(field) for split in self.splits])
        return found if positions is None else found[np.asarray(positions, np.int64)]

    def key(self, position: int) -> str:
        """The key of one sample."""
        split, own = self._one(position)
        return split.key(own)

    def read(self, position: int, verify: bool = True) -> memoryview:
        """The encoded image at a position, as `Split.read`."""
        split, own = self._one(position)
        return split.read(own, verify)

    def read_all(
        self, positions: np.ndarray, rows: Rows, verify: bool = True
    ) -> tuple[list[memoryview], dict[int, str]]:
        """The encoded images at positions int64[n] whose `rows` are known, as `Split.read_all`."""
        images, failures = [memoryview(b"")] * len(positions), {}
        source = np.searchsorted(self._starts, positions, side="right") - 1
        for n in np.unique(source):
            here = np.flatnonzero(source == n)
            own = Rows._make(column[here] for column in rows)
            own = own._replace(shards=own.shards - self._shard_starts[n])
            found, refused = self.splits[n].read_all(positions[here] - self._starts[n], own, verify)
            for i, image in zip(here.tolist(), found, strict=True):
                images[i] = image
            failures.update({int(here[i]): reason for i, reason in refused.items()})
        return images, failures

    def targets(self, positions: np.ndarray, rows: Rows) -> np.ndarray:
        """`labels` of positions whose `rows` are known; each split has a view of its own.

        Shapes as of `Split.labels`.
        """
        return self.labels(positions)

    @property
    def on_this_machine(self) -> bool:
        """Whether any of the splits lies in a folder."""
        return any(split.on_this_machine for split in self.splits)

    def will_read(self, rows: Rows) -> None:
        """A hint to the kernel, as `Split.will_read`."""
        source = np.searchsorted(self._shard_starts, rows.shards, side="right") - 1
        for n in np.unique(source):
            own = Rows._make(column[source == n] for column in rows)
            self.splits[n].will_read(own._replace(shards=own.shards - self._shard_starts[n]))

    def fetch_ahead(
        self,
        plan: Plan,
        consumed: int = 0,
        *,
        world: int = 1,
        rank: int = 0,
        node_ranks: Sequence[int] | None = None,
        global_batch: int | None = None,
    ) -> Ahead:
        """Bring the shards of all splits before they are read, as `Split.fetch_ahead`."""
        who: dict[str, Any] = {"world": world, "rank": rank, "node_ranks": node_ranks, "global_batch": global_batch}
        starts = self._shard_starts.tolist()
        parts = zip(self.splits, starts[:-1], strict=True)
        return _All([split.fetch_ahead(plan, consumed, **who, first_shard=first) for split, first in parts])


class _All:
    """Several `Ahead`s as one."""

    def __init__(self, parts: Sequence[Ahead]) -> None:
        self._parts = parts

    def advance(self, consumed: int) -> None:
        for part in self._parts:
            part.advance(consumed)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _check_alike(first: Split, other: Split) -> None:
    a, b = first.manifest, other.manifest
    stored = a.encoding == b.encoding or "raw" not in (a.encoding, b.encoding)
    pairs = [
        ("task", a.task, b.task),
        ("classes", first.view.classes, other.view.classes),
        ("channels", a.channels, b.channels),
        ("bits", a.bits, b.bits),
        ("encoding", a.encoding if not stored else "", b.encoding if not stored else ""),
    ]
    for what, mine, theirs in pairs:
        if mine != theirs:
            raise ValueError(
                f"{a.name} and {b.name} cannot be mixed: {what} {mine} and {theirs} differ; take sets that agree"
            )
