"""The loader: batches of a split in the plan's order, decoded ahead; a bad sample is masked and ends no run.

Nothing here decides anything: the plan says which samples, the draws which parameters, the executor which pixels. What
this file adds is a step made of them, small steps several at a time, and the book of bad samples; the thread that runs
ahead is in running_ahead.py.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from shards.draws import DrawKeys
from shards.executors import check_images, choose_executor, make_executor
from shards.host_executor import Failure
from shards.index import ENCODING_NAMES
from shards.joined import JoinedSplit
from shards.layout import layout_of
from shards.plan import Plan, PlanConfig, Slice, check_world
from shards.running_ahead import Worker
from shards.split import Rows, Split
from shards.views import AnyDrawn, AnyTransform
from shards.words import counted

log = logging.getLogger(__name__)
TOGETHER_BYTES = 1 << 25  # of pixels made
MOST_TOGETHER = 4


class Batch(NamedTuple):
    """b samples of one rank, on the loader's device. The tensors are the caller's own."""

    images: torch.Tensor  # [b, C, H, W], float32 or float16; under MultiCrop the first view
    labels: torch.Tensor  # int64[b] class index, or float32[b, classes] with NaN for ignored
    sample_ids: torch.Tensor  # int64[b], the bits of the 64-bit ids
    valid: torch.Tensor  # bool[b]; False is padding, or a sample that could not be read
    more: tuple[torch.Tensor, ...] = ()  # the other views under MultiCrop, each [b, C, h, w] of its own size

    @property
    def views(self) -> tuple[torch.Tensor, ...]:
        """All views of the images, the first among them."""
        return (self.images, *self.more)


class BadSamples(ValueError):
    """More samples are unreadable than the run allows; the text names them."""


class Looked(NamedTuple):
    """What this rank takes of some steps, which end after `end` samples of the run."""

    steps: int
    end: int
    part: Slice
    rows: Rows


class Loader:
    """Iterate to get `Batch`es of this rank.

    Training (tail `carry` or `drop`): endless, from `samples_consumed` on. Evaluation (tail `partial`): one pass, every
    sample once, the last batch padded under the mask. `samples_consumed` moves when a global batch is handed out; it is
    all that a checkpoint needs, on any number of ranks.

    Args:
        split: which samples; several for a mixture.
        transform: what is made of them.
        global_batch: samples a step over all ranks. May be another than `plan` was laid for: the order goes on, the
            batches are cut anew.
        seed: of the order and of all draws.
        order, tail: of the plan; see `plan.PlanConfig`.
        plan: takes the place of seed, order and tail in what comes when (`choosing.plan_of`: fractions, balance,
            mixtures); the draws keep `seed`.
        node_ranks: the ranks that share this machine's cache; none: this one alone.
        rank, world: which part of each global batch.
        executor: `host`, `dali`, or `auto`: DALI on a GPU, the host elsewhere.
        device: `cpu`, `cuda` or `cuda:N`; where the tensors lie.
        threads: that decode.
        prefetch: steps prepared ahead.
        samples_consumed: where to begin, in samples of the whole run over all ranks.
        verify: check the hash of every image that is read.
        micro_batch: hand out this rank's part in pieces of so many samples (gradient accumulation).
        max_bad: unreadable samples that are masked and named before the run stops; never more than a tenth of the
            split. strict: stop at the first.
        dtype, channels_last: how the images lie in memory; the shape is [b, C, H, W] in either case.

    Raises:
        ValueError: the world does not divide the global batch, or a parameter is out of range.
        BadSamples: from iteration, when there are more bad samples than allowed.
    """

    def __init__(
        self,
        split: Split | JoinedSplit,
        transform: AnyTransform,
        *,
        global_batch: int,
        seed: int = 0,
        plan: Plan | None = None,
        node_ranks: Sequence[int] | None = None,
        order: Literal["global", "windowed", "sequential"] = "global",
        tail: Literal["carry", "drop", "partial"] = "carry",
        rank: int = 0,
        world: int = 1,
        executor: Literal["auto", "dali", "host"] = "auto",
        device: str = "cpu",
        threads: int = 2,
        prefetch: int = 2,
        samples_consumed: int = 0,
        verify: bool = True,
        micro_batch: int | None = None,
        max_bad: int = 100,
        strict: bool = False,
        dtype: Literal["float32", "float16"] = "float32",
        channels_last: bool = False,
    ):
        check_world(global_batch, world)
        share = global_batch // world
        if micro_batch is not None and (micro_batch < 1 or share % micro_batch):
            raise ValueError(f"micro_batch {micro_batch} does not divide the {share} samples a rank takes each step")
        check_images(transform, split.manifest)
        self.split, self.transform, self.seed = split, transform, seed
        self.rank, self.world, self.prefetch, self.verify = rank, world, prefetch, verify
        self.micro_batch, self.max_bad = micro_batch or share, 0 if strict else _allowed_bad(split, max_bad)
        self.device, self.layout = torch.device(device), layout_of(dtype, channels_last)
        config = PlanConfig(global_batch, seed, order=order, tail=tail)
        self.plan = plan or Plan(split.shard_sizes, config, split.digest)
        if self.plan.shard_starts[-1] != split.num_samples:
            raise ValueError(
                f"the plan is of {self.plan.shard_starts[-1]} stored samples, the split has {split.num_samples}"
            )
        if global_batch != self.plan.config.global_batch and self.plan.config.tail != "carry":
            raise ValueError(
                f"tail {self.plan.config.tail!r} was laid for a global batch of {self.plan.config.global_batch}, not "
                f"{global_batch}: only 'carry' goes on with another batch"
            )
        self.global_batch, self.node_ranks = global_batch, node_ranks
        self.plan.slice(0, world, rank)  # refuses a rank outside the world
        self.executor = choose_executor(executor, self.device)
        self.make_executor: Callable[[], Any] = lambda: make_executor(
            self.executor, split, transform, batch=share, threads=threads, device=self.device, layout=self.layout
        )
        self.samples_consumed = samples_consumed
        self.wait_seconds = 0.0
        self.bad: list[tuple[str, str]] = []
        self._bad_keys: set[str] = set()
        self._worker: Worker | None = None

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return self.plan.num_samples

    def __iter__(self) -> Iterator[Batch]:
        """Batches from `samples_consumed` on. One iteration at a time; a new one ends the one before."""
        self.close()
        worker = self._worker = Worker(self)
        try:
            while True:
                begun = time.perf_counter()
                prepared = worker.next()
                self.wait_seconds += time.perf_counter() - begun
                if prepared is None:
                    return
                *first, last = prepared.batches
                yield from first
                self.samples_consumed = prepared.consumed
                yield last
        finally:
            worker.close()

    def close(self) -> None:
        """End the thread that runs ahead; iterating again starts another where this one stopped."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def steps_together(self, consumed: int) -> int:
        """Steps after `consumed` samples that are planned, drawn and handed to the executor in one go.

        Small images that need no decoding cost less to make than a step costs to prepare; samples do not depend on it.
        """
        if self.executor != "host" or self.split.manifest.encoding != "raw":
            return 1
        pixels = self.transform.channels * sum(height * width for height, width in self.transform.sizes)
        fit = TOGETHER_BYTES // (self.global_batch // self.world * pixels * np.dtype(self.layout.numpy_type).itemsize)
        end = self.plan.samples_per_epoch if self.plan.config.tail == "partial" else None
        left = MOST_TOGETHER if end is None else -(-(end - consumed) // self.global_batch)
        return max(1, min(MOST_TOGETHER, fit, left))

    def look(self, consumed: int) -> Looked | None:
        """This rank's part of the steps after `consumed` samples, and its index; None at the end."""
        end = self.plan.samples_per_epoch if self.plan.config.tail == "partial" else None
        if end is not None and consumed >= end:
            return None
        starts = [consumed + n * self.global_batch for n in range(self.steps_together(consumed))]
        parts = [self.plan.slice(at, self.world, self.rank, global_batch=self.global_batch) for at in starts]
        part = (
            parts[0]
            if len(parts) == 1
            else Slice._make(np.concatenate(columns) for columns in zip(*parts, strict=True))
        )
        end = consumed + len(parts) * self.global_batch
        return Looked(len(parts), end, part, self.split.rows(part.positions))

    def hint(self, consumed: int) -> Looked | None:
        """`look`, and let the kernel bring these images while those before them are decoded."""
        looked = self.look(consumed)
        if looked is not None:
            self.split.will_read(looked.rows)
        return looked

    def start(self, executor: Any, looked: Looked) -> list[list[Callable[[], Batch]]]:
        """Begin these steps; of each, each call waits for `micro_batch` of it.

        While the executor's threads work on one part, the next can be planned, drawn and read.
        """
        count, micro = len(looked.part.positions), self.micro_batch
        piece = count if looked.steps > 1 else micro
        cuts: list[Callable[[], Batch]] = []
        for first in range(0, count, piece):
            part = Slice._make(column[first : first + piece] for column in looked.part)
            rows = Rows._make(column[first : first + piece] for column in looked.rows)
            batch = self._start(executor, part, rows)
            cuts += [partial(batch, i, i + micro) for i in range(0, len(part.positions), micro)]
        each = len(cuts) // looked.steps
        return [cuts[i : i + each] for i in range(0, len(cuts), each)]

    def _start(self, executor: Any, part: Slice, rows: Rows) -> Callable[[int, int], Batch]:
        """Begin; the call waits, and gives the samples of numbers start to stop."""
        sizes = np.stack([rows.heights, rows.widths], axis=1).astype(np.int64)
        keys = DrawKeys(self.seed, part.epochs, rows.sample_ids, part.occurrences)
        parameters = self.transform.draw(keys, sizes[:, 0], sizes[:, 1])
        images, failures = self.split.read_all(part.positions, rows, self.verify)
        good = np.array([i for i in range(len(images)) if i not in failures], np.int64)
        finish = cache(self._execute(executor, images, rows.encodings, sizes, parameters, good))
        labels = torch.from_numpy(self.split.targets(part.positions, rows))
        ids = torch.from_numpy(np.ascontiguousarray(rows.sample_ids).view(np.int64))

        def batch(start: int, stop: int) -> Batch:
            made, refused = finish()
            views = made if isinstance(made, tuple) else (made,)
            pixels, *more = (view[start:stop].to(self.device) for view in views)
            failures.update(refused)
            bad = [i for i in sorted(failures) if start <= i < stop]
            for i in bad:
                self._book(self.split.key(int(part.positions[i])), failures[i])
            valid = part.valid.copy()
            valid[bad] = False
            told = [tensor[start:stop].to(self.device) for tensor in (labels, ids, torch.from_numpy(valid))]
            return Batch(pixels, told[0], told[1], told[2], tuple(more))

        return batch

    def _execute(
        self,
        executor: Any,
        images: list[memoryview],
        encodings: np.ndarray,
        sizes: np.ndarray,
        parameters: AnyDrawn,
        good: np.ndarray,
    ) -> Callable[[], tuple[Any, list[Failure]]]:
        """Begin; the call waits for the pixels, zero where a sample is not good or is refused, and who was refused."""
        names = [ENCODING_NAMES[int(code)] for code in encodings]
        if len(good) == len(images):
            whole: Callable[[], Any] = executor.start(images, names, sizes, parameters)
            return whole
        finish = (
            executor.start([images[i] for i in good], [names[i] for i in good], sizes[good], parameters.rows(good))
            if len(good)
            else None
        )

        def filled() -> tuple[Any, list[Failure]]:
            channels, rows = self.transform.channels, torch.from_numpy(good).to(self.device)
            views = tuple(self.layout.zeros(len(images), channels, size, self.device) for size in self.transform.sizes)
            if finish is None:
                return views, []
            found, refused = finish()
            for view, made in zip(views, found if isinstance(found, tuple) else (found,), strict=True):
                view[rows] = made.to(self.device)
            return views, [(int(good[i]), reason) for i, reason in refused]

        return filled

    def _book(self, key: str, reason: str) -> None:
        if key in self._bad_keys:
            return
        self._bad_keys.add(key)
        self.bad.append((key, reason))
        log.warning("sample %s of %s is masked: %s", key, self.split.name, reason)
        if len(self.bad) > self.max_bad:
            named = "; ".join(f"{key}: {reason}" for key, reason in self.bad[:10])
            raise BadSamples(
                f"{counted(len(self.bad), 'sample')} of {self.split.name} cannot be read, "
                f"{self.max_bad} are allowed: {named}" + ("; …" if len(self.bad) > 10 else "")
            )


def _allowed_bad(split: Split | JoinedSplit, max_bad: int) -> int:
    """Samples that may be masked: a number fit for millions would let a small set train on nothing."""
    return min(max_bad, max(split.num_samples // 10, 1))
