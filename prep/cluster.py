"""The tasks of a conversion on a Dask cluster: `--cluster tcp://HOST:8786`.

Workers write their shards to a folder that all of them see, or to the URL of --out; outcomes, salt and sources stay
with the process that was started. Dask gives the task of a dead worker to another one; who was only thought dead may
end it, too: both write the same bytes under names of their own, and rename.
"""

import socket
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

from prep.finishing import versions
from prep.pool import Done, Progress, T
from prep.tasks import Outcome, Work

CONNECT_SECONDS = 20
NO_WORKER_SECONDS = 300.0
TASKS_A_THREAD = 2


def run_on_cluster(tasks: list[T], address: str, root: Path, progress: Progress, done: Done[T]) -> None:
    """Run all tasks; `done` is called here as each ends, and may raise to stop the rest.

    Raises:
        ValueError: no scheduler, no worker for minutes, workers that see other folders or run other releases, a shard
            that ended worker after worker, or what `done` raises.
    """
    if not tasks:
        return
    client = _connect(address)
    try:
        with client.get_executor(pure=False) as executor:
            _run(tasks, client, executor, root, progress, done)
    finally:
        client.close(timeout=5)


def check_scheduler(address: str) -> None:
    """ValueError, in one line, unless a scheduler answers: asked before anything is written."""
    _connect(address).close(timeout=5)


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError("--cluster needs Dask: pip install -e '.[cluster]'") from None
    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"no Dask scheduler answers at {address} ({reason}): start one with `dask scheduler`"
        ) from None


def _run(tasks: list[T], client: Any, executor: Any, root: Path, progress: Progress, done: Done[T]) -> None:
    queue, wanted = deque(tasks), versions(compress=tasks[0].compress)
    running: dict[Future[Outcome], T] = {}
    totals, lonely = [0, 0, 0], _Lonely(client)
    try:
        while queue or running:
            while queue and len(running) < lonely.threads() * TASKS_A_THREAD:
                task = queue.popleft()
                running[executor.submit(run_elsewhere, task, wanted, root)] = task
            ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED) if running else (set(), None)
            for future in ended:
                task = running.pop(future)
                outcome = _result(future, task)
                for position, value in enumerate((len(task.items), outcome.raw_bytes, len(outcome.left_out))):
                    totals[position] += value
                progress.show(*totals)
                done(task, outcome)
            if not running:
                time.sleep(0.05)
    except BaseException:
        for future in running:
            future.cancel()
        raise


def _result(future: "Future[Outcome]", task: Work) -> Outcome:
    try:
        return future.result()
    except (ValueError, OSError):
        raise
    except ImportError as error:
        raise ValueError(f"a worker cannot load this project ({error}): install it there, the same release") from None
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            raise ValueError(
                f"{task.stem} ended worker after worker (out of memory?): give them more memory, then run the same "
                "command to go on"
            ) from None
        raise


class _Lonely:
    """Threads of the workers there are; ValueError once there has been none for minutes."""

    def __init__(self, client: Any):
        self._client, self._since = client, time.monotonic()

    def threads(self) -> int:
        """0 where there is no worker now."""
        count = sum(self._client.nthreads().values()) if self._client.status == "running" else 0
        if count:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > NO_WORKER_SECONDS:
            raise ValueError(
                f"the cluster has had no worker for {NO_WORKER_SECONDS:g} s: start some with `dask worker ADDRESS`, "
                "then run the same command to go on"
            )
        return count


def run_elsewhere(task: Work, wanted: dict[str, str], root: Path) -> Outcome:
    """A task on a worker, once it is sure that it would write the same bytes to the same place.

    Raises:
        ValueError: the worker has other releases than those `wanted`, or does not see the folders.
    """
    where, own = socket.gethostname(), versions(compress=task.compress)
    if other := sorted(name for name in wanted if own.get(name) != wanted[name]):
        name = other[0]
        raise ValueError(
            f"the worker on {where} has {name} {own.get(name)}, {wanted[name]} started this run: bytes could differ; "
            "install the same releases everywhere"
        )
    if task.url is None and not task.folder.is_dir():
        raise ValueError(
            f"the worker on {where} does not see the output folder: put --out on a file system that all share, or "
            "give a URL"
        )
    if isinstance(root, Path) and not root.is_dir():
        raise ValueError(f"the worker on {where} does not see the raw folder: share it, or give --raw a URL")
    return task.run(_no_tick)


def _no_tick(size: int, decoded: bool) -> None:
    """Progress is told shard by shard."""
