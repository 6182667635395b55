"""A heartbeat: a rank that hangs, fails or dies is named, and ends the run instead of holding it for ever.

The training calls `beat` wherever it gets on. A thread of each rank carries the count to a small store on the first
rank. The first rank watches all, the others the first. When one stands still for too long every rank writes the stacks
of its threads into RUN/stacks/ and leaves; a rank whose interpreter is blocked does so by a timer of its own in C.
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from shards.errors import first_line
from train.engine import Ranks

DEAD_SECONDS = 60.0  # without a sign of life of its thread a rank is dead
GRACE_SECONDS = 15.0  # ranks that end by themselves are given so long
EXIT_HUNG = 1
TRACE = 20_000  # characters of a traceback, the last
_STDERR = 2  # the real one
_stores: list[Any] = []  # the first rank's stay until the process ends: peers may still be on their way out


class Pulse:
    """This rank's sign of life. Build it on all ranks together; `stop` it on each."""

    def __init__(
        self, ranks: Ranks, folder: Path, *, minutes: float = 0.0,
        every: float = 5.0, dead: float = DEAD_SECONDS, grace: float = GRACE_SECONDS,
    ):  # fmt: skip
        """`minutes` without a beat are a hang (0: never); `every` so many seconds the ranks look at each other."""
        self.ranks, self.folder, self.limit = ranks, folder, 60 * minutes
        self._every, self._dead, self._grace = min(every, self.limit / 4 or every), dead, grace
        self._beats, self._doing, self._ticks = 0, "the start", 0
        self._seen: dict[int, tuple[int, float]] = {}  # of each watched rank: ticks, and when they last moved
        self._beaten = self._turned = time.monotonic()
        self._stop = threading.Event()
        self._store = _open_store(ranks, timedelta(seconds=dead)) if ranks.world > 1 else None
        self._wind_up()
        self._publish()
        if self._store is not None:
            dist.barrier()  # every rank's first sign lies in the store
        self._thread = threading.Thread(target=self._watch, name="pulse", daemon=True)
        self._thread.start()
        if self._store is not None and not ranks.first:
            threading.Thread(target=self._guard, name="pulse-guard", daemon=True).start()

    def beat(self, doing: str) -> None:
        """The training gets on; `doing` says with what."""
        self._beats, self._doing, self._beaten = self._beats + 1, doing, time.monotonic()

    def __enter__(self) -> "Pulse":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.stop(error)

    def stop(self, error: BaseException | None = None) -> None:
        """The rank ends, with an error that its peers may hear of."""
        self._stop.set()
        self._thread.join(self._grace)
        if error is not None:
            self._keep_trace(error)
            self._tell(f"{self.ranks.rank} {type(error).__name__}: {first_line(error, 300)}")
        faulthandler.cancel_dump_traceback_later()

    def failed_first(self) -> str | None:
        """The peer that failed before this rank did, and how; None where it was none."""
        try:
            end = self._end()
        except RuntimeError:
            return None
        if end is None or end[0] == self.ranks.rank:
            return None
        self._show_trace(end[0])
        return f"rank {end[0]} failed first: {end[1]}"

    def _keep_trace(self, error: BaseException) -> None:
        if self._store is not None:
            try:
                self._store.set(f"trace/{self.ranks.rank}", "".join(traceback.format_exception(error))[-TRACE:])
            except RuntimeError:
                pass  # the first rank, which holds the store, has gone

    def _show_trace(self, rank: int) -> None:
        """On the first rank: the traceback of one on another machine, whose own words may end up elsewhere."""
        if self._store is not None and self.ranks.first and rank not in self.ranks.of_node:
            trace = self._store.get(f"trace/{rank}").decode()
            print(f"rank {rank} failed first, with\n{trace}", file=sys.__stderr__, flush=True)

    # ---- the thread

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            if time.monotonic() - self._turned > 3 * self._every + 10:  # we were stopped ourselves (Ctrl-Z)
                self._seen, self._beaten = {}, time.monotonic()
            self._turned = time.monotonic()
            self._wind_up()
            try:
                self._publish()
                reason = self._judge()
            except RuntimeError:
                reason = None if self._stop.wait(self._grace) else self._first_gone()
            if reason is not None and not self._stop.is_set():
                self._leave(reason)

    def _guard(self) -> None:
        """Leave where the other thread waits for a store that does not answer: a get of its has no deadline."""
        while not self._stop.wait(self._every):
            if time.monotonic() - self._turned > self._dead + self._grace:
                self._turned += self._every  # after a stop of our own (Ctrl-Z) the other thread is given a turn
                if not self._stop.wait(self._every) and time.monotonic() - self._turned > self._dead + self._grace:
                    self._leave(self._first_gone())

    def _first_gone(self) -> str:
        return f"the first rank ({os.environ.get('MASTER_ADDR')}) is gone"

    def _wind_up(self) -> None:
        """A last resort against a blocked interpreter: a timer in C, which each turn puts off."""
        if self.limit:
            faulthandler.dump_traceback_later(self.limit + 2 * self._dead, exit=True, file=_STDERR)

    def _publish(self) -> None:
        self._ticks += 1
        if self._store is not None:
            mine = [self._ticks, self._beats, self._doing, time.monotonic() - self._beaten, socket.gethostname()]
            self._store.set(f"pulse/{self.ranks.rank}", json.dumps(mine))

    def _judge(self) -> str | None:
        """Why the run has to end, in words; None while all is well."""
        if self._store is None:
            return self._hang({0: [0, self._beats, self._doing, time.monotonic() - self._beaten, ""]})
        if (end := self._end()) is not None:
            if end[0] < 0:
                return end[1]
            # A rank that fails ends alone, and its launcher the others; without one they are left to us.
            if self._stop.wait(self._grace):
                return None
            self._show_trace(end[0])
            return f"rank {end[0]} failed first: {end[1]}"
        watched = range(self.ranks.world) if self.ranks.first else [0]
        pulses = {rank: json.loads(self._store.get(f"pulse/{rank}")) for rank in watched}
        for rank, pulse in pulses.items():
            if self._silent(rank, pulse[0]) > self._dead:
                return f"rank {rank} on {pulse[4]} gives no sign of life for {self._dead:.0f} s, last in {pulse[2]}"
        return self._hang(pulses) if self.ranks.first else None

    def _end(self) -> tuple[int, str] | None:
        if self._store is None or not (text := self._store.get("end").decode()):
            return None
        rank, _, line = text.partition(" ")
        return int(rank), line

    def _silent(self, rank: int, ticks: int) -> float:
        """Seconds since a rank's ticks moved, by our own clock."""
        now = time.monotonic()
        if rank not in self._seen or self._seen[rank][0] != ticks:
            self._seen[rank] = (ticks, now)
        return now - self._seen[rank][1]

    def _hang(self, pulses: dict[int, list[Any]]) -> str | None:
        """The ranks that are furthest behind, where one has not got on for the limit: the others wait for them."""
        if not self.limit or all(pulse[3] < self.limit for pulse in pulses.values()):
            return None
        least = min(pulse[1] for pulse in pulses.values())
        behind = {rank: pulse for rank, pulse in pulses.items() if pulse[1] == least}
        names = ", ".join(f"{rank} on {pulse[4]}" if pulse[4] else str(rank) for rank, pulse in behind.items())
        doing, seconds = next((pulse[2], pulse[3]) for pulse in behind.values())
        return f"{'rank' if len(behind) == 1 else 'ranks'} {names} stood still for {seconds:.0f} s in {doing}"

    def _leave(self, reason: str) -> None:
        """Write the stacks, tell the peers, and end the process from this thread: the main one does not listen."""
        self._dump()
        if "first rank" not in reason:
            self._tell(f"-1 {reason}")
        if self.ranks.first or "first rank" in reason or reason.startswith("rank 0 "):
            text = f"error: {reason}; stacks in {self.folder / 'stacks'}; --resume {self.folder} goes on"
            print(f"{text} (--hang-minutes N waits longer)", file=sys.__stderr__, flush=True)
        # The others look every few seconds: they must have written theirs before the launcher ends them all.
        if self.ranks.first and self.ranks.world > 1:
            time.sleep(self._grace + 2 * self._every)
        os._exit(EXIT_HUNG)

    def _tell(self, end: str) -> None:
        """Leave word of the end where none lies yet."""
        if self._store is not None:
            try:
                self._store.compare_set("end", "", end)
            except RuntimeError:
                pass  # the first rank, which holds the store, was faster

    def _dump(self) -> None:
        try:
            (self.folder / "stacks").mkdir(exist_ok=True)
            with (self.folder / "stacks" / f"rank-{self.ranks.rank:04d}.txt").open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError:
            faulthandler.dump_traceback(_STDERR, all_threads=True)


def _open_store(ranks: Ranks, timeout: timedelta) -> Any:
    """A store of our own on the first rank, at a free port; the process group's is not for threads."""
    host = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port: list[Any] = [None]
    if ranks.first:
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        store.set("end", "")
        _stores.append(store)
        port = [store.port]
    dist.broadcast_object_list(port, src=0)
    if not ranks.first:
        store = dist.TCPStore(host, port[0], is_master=False, wait_for_workers=False, timeout=timeout)
    return store
