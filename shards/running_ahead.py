"""Running ahead of the consumer: one thread that prepares a loader's batches into a short queue."""

import queue
import resource
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from shards.loader import Batch, Loader, Looked

KEEP_HINTING = 64  # looks ahead after a page last came from a disk
LOOK_AGAIN = 0.002  # seconds until a thread that waits for room in a full queue looks again


class Prepared(NamedTuple):
    """A step's batches, and the samples that the run has consumed with them."""

    batches: "list[Batch]"
    consumed: int


class DiskWaits:
    """Whether this process waited for a disk lately: where all lies in memory, a hint to the kernel is a lost call."""

    def __init__(self) -> None:
        self._faults, self._left = -1, 0

    def lately(self) -> bool:
        """Whether a page had to come from a disk within the last calls; also in the first ones."""
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        self._left = KEEP_HINTING if faults != self._faults else self._left - 1
        self._faults = faults
        return self._left > 0


class Worker:
    """One thread that prepares batches ahead of the consumer; an error there is raised at the consumer.

    A consumer that takes a batch wakes nobody: on busy cores it would lose its own to whom it wakes, for some
    milliseconds. So the thread looks for room by itself (docs/decisions/0010).
    """

    def __init__(self, loader: "Loader"):
        self._loader = loader
        self._queue: queue.SimpleQueue[Prepared | BaseException | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for prepared in self._prepare():
                if not self._put(prepared):
                    return
            self._put(None)
        except BaseException as error:  # handed over, not swallowed: `next` raises it
            self._put(error)

    def _prepare(self) -> Iterator[Prepared]:
        loader, disk, consumed = self._loader, DiskWaits(), self._loader.samples_consumed
        executor = loader.make_executor()
        ahead = loader.split.fetch_ahead(
            loader.plan,
            consumed,
            world=loader.world,
            rank=loader.rank,
            node_ranks=loader.node_ranks,
            global_batch=loader.global_batch,
        )
        begun: list[list[Callable[[], Batch]]] = []  # the steps before, in the hands of the executor's threads
        following: Looked | None = None
        try:
            while (looked := following or loader.look(consumed)) is not None:
                ahead.advance(consumed)
                following = loader.hint(looked.end) if loader.split.on_this_machine and disk.lately() else None
                started = loader.start(executor, looked)
                yield from self._finished(begun, consumed)
                begun, consumed = started, looked.end
            yield from self._finished(begun, consumed)
        finally:
            ahead.close()
            executor.close()

    def _finished(self, steps: "list[list[Callable[[], Batch]]]", end: int) -> Iterator[Prepared]:
        """Steps that end after `end` samples, once they are made."""
        for n, step in enumerate(steps, 1):
            yield Prepared([batch() for batch in step], end - (len(steps) - n) * self._loader.global_batch)

    def _put(self, item: Prepared | BaseException | None) -> bool:
        while self.is_full:
            if self._stop.wait(LOOK_AGAIN):
                return False
        self._queue.put(item)
        return not self._stop.is_set()

    @property
    def is_full(self) -> bool:
        """Whether as many batches as wanted lie ready."""
        return self._queue.qsize() >= max(self._loader.prefetch, 1)

    def next(self) -> Prepared | None:
        """The next step's batches; None at the end."""
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop, and wait for the thread."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
