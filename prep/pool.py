"""Running the tasks of a conversion: in this process, or on a pool of spawned ones, with a progress bar."""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TypeVar

from prep.tasks import Outcome, Stopped, Work, run_in_worker, start_worker
from shards.progress import progress as make_bar

T = TypeVar("T", bound=Work)
Done = Callable[[T, Outcome], None]


class Progress:
    """A bar of images a second with megabytes a second and failures."""

    def __init__(self, total: int, already: int, quiet: bool = False, what: str = "shards"):
        self.bar = make_bar(total, what, "image", already=already, quiet=quiet)
        self.already, self.bytes, self.failures = already, 0, 0

    def show(self, images: int, raw_bytes: int, failures: int) -> None:
        """Show totals of this run."""
        self.bytes, self.failures = raw_bytes, failures
        self.bar.update(self.already + images - self.bar.n)
        seconds = self.bar.format_dict["elapsed"] or 1
        self.bar.set_postfix_str(f"{raw_bytes / seconds / 1e6:.1f} MB/s, {failures} failed", refresh=False)


def run_tasks(tasks: list[T], workers: int, progress: Progress, done: Done[T]) -> None:
    """Run all tasks; `done` is called in this process as each ends, and may raise to stop the rest.

    Raises:
        ValueError: a worker died, an image does not decode under --strict, or what `done` raises.
    """
    if not tasks:
        return
    if workers == 1:
        _run_here(tasks, progress, done)
    else:
        _run_pool(tasks, min(workers, len(tasks)), progress, done)


def _run_here(tasks: list[T], progress: Progress, done: Done[T]) -> None:
    totals = [0, 0, 0]

    def tick(size: int, decoded: bool) -> None:
        for position, value in enumerate((1, size, int(not decoded))):
            totals[position] += value
        progress.show(*totals)

    for task in tasks:
        done(task, task.run(tick))


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Processes started within never see Ctrl-C, not even while they import; this one sees it at the end.

    Blocked alone it would still come here while a process is being started: any thread that does not block it, a
    progress bar's say, hears it for the main thread.
    """
    heard: list[int] = []
    main = threading.current_thread() is threading.main_thread()  # no other is ever interrupted
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what a new process inherits
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number)) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if heard:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _pool(workers: int) -> Iterator[tuple[ProcessPoolExecutor, object]]:
    # spawn: a forked child would inherit the locks of OpenCV's and Python's threads.
    context = get_context("spawn")
    stop, counters = context.Event(), context.Array("Q", 3)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(stop, counters))
    try:
        yield pool, counters
    except BaseException:
        stop.set()  # workers drop their shard at the next image
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_pool(tasks: list[T], workers: int, progress: Progress, done: Done[T]) -> None:
    queue = iter(tasks)
    running: dict[Future[Outcome], T] = {}
    try:
        with _pool(workers) as (pool, counters):
            while True:
                with deaf_to_ctrl_c():
                    while len(running) < 2 * workers and (task := next(queue, None)) is not None:
                        running[pool.submit(run_in_worker, task)] = task
                if not running:
                    return
                ended, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                progress.show(*counters)  # type: ignore[misc]
                for future in ended:
                    done(running.pop(future), future.result())
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died (killed, or out of memory): run the same command to go on, perhaps with fewer "
            "--workers"
        ) from None
    except Stopped:
        raise AssertionError("a worker stopped although the run goes on") from None
