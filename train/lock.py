"""One trainer a run directory: a second is refused in one line, a dead one's place is taken over.

On one machine the kernel's file lock decides, which ends with its process. Where the holder was another machine the
file lock may not reach that far; then the holder's counter in the file decides, which a living trainer moves on.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOCK_FILE = "trainer.lock"
BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0  # a counter of another machine that stands still so long is a dead trainer's
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RunLock:
    """The right to write into a run directory, held by this process until `release` or its death."""

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor, self._beats = path, descriptor, 0
        self._record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        self._released = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._keep, name="run-lock", daemon=True)
        self._thread.start()

    def _keep(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            try:
                self._beat()
            except OSError:
                pass  # a sign of life that cannot be written now is written next time

    def _beat(self) -> None:
        self._beats += 1
        content = json.dumps({**self._record, "beats": self._beats}).encode()
        os.pwrite(self._descriptor, content + b"\n", 0)
        os.ftruncate(self._descriptor, len(content) + 1)

    def release(self) -> None:
        """Let the next trainer in."""
        self._released.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)  # while it is held: nobody can have taken it meanwhile
        os.close(self._descriptor)


def take(
    folder: Path, *, patience: float = PATIENCE_SECONDS, say: Callable[[str], None] = lambda line: None
) -> RunLock:
    """Take a run directory. Raises ValueError where another trainer lives in it.

    `patience`: seconds to watch the counter of a trainer on another machine; `say` hears that we wait.
    """
    path = folder / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(descriptor, folder, path)
            if not _same_file(descriptor, path):  # released between our opening and our locking
                os.close(descriptor)
                continue
            _outlast(folder, path, patience, say)
            return RunLock(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise


def _lock(descriptor: int, folder: Path, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(folder, _holder(path)) from None
    except OSError:
        pass  # a file system without locks: the counter alone decides


def _outlast(folder: Path, path: Path, patience: float, say: Callable[[str], None]) -> None:
    """Return where no holder of another machine moves its counter."""
    holder = _holder(path)
    if holder is None or holder["machine"] == _machine():
        return
    say(f"{folder} was left by a trainer on {holder['host']}: watching {patience:.0f} s whether it lives")
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(1.0, patience / 10))
        if (now := _holder(path)) != holder and now is not None:
            raise _refusal(folder, now)


def _refusal(folder: Path, holder: dict[str, Any] | None) -> ValueError:
    who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "another trainer"
    return ValueError(f"{folder} is being trained by {who}: wait for it or stop it, or start another with --name NAME")


def _holder(path: Path) -> dict[str, Any] | None:
    """What the file says; None where it is new or half-written."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record if {"host", "pid", "machine", "since", "beats"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _machine() -> str:
    """This boot of this machine; names of hosts may repeat."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return socket.gethostname()
