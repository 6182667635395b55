"""An HTTP server on loopback that serves a folder with ranges, and fails in the ways that a test asks for.

    with serve(folder) as server:
        server.faults["train-000000.tar"] = [Fault("reset", times=2), Fault("half")]
        ... server.url, server.requests

Reading clients of S3 are served too: bucket/key is a path below the folder (AWS_ENDPOINT_URL=http://127.0.0.1:PORT, any
credentials).

Also a script, for benchmarks: python tests/faulty_server.py FOLDER --latency 0.02   (prints its URL)
"""

import argparse
import socket
import ssl
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

PIECE = 1 << 16


@dataclass
class Fault:
    """What happens to the next `times` requests of a file.

    reset: the connection ends with RST. stalled: nothing comes. half: half of the promised body, then the end. short:
    half a body under a header that promises no more. wrong: other bytes of the right length. status: an HTTP status.
    slow: `value` bytes a second. whole: the range is ignored, all comes with status 200.
    """

    kind: Literal["reset", "stalled", "half", "short", "wrong", "status", "slow", "whole"]
    times: int = 1
    value: float = 503


@dataclass
class Request:
    name: str
    start: int
    query: str
    authorization: str | None


@dataclass
class FaultyServer:
    url: str
    faults: dict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    requests: list[Request] = field(default_factory=list)
    latency: float = 0.0
    released: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def asked(self, name: str) -> list[Request]:
        """The requests of one file, in the order of their coming."""
        return [request for request in self.requests if request.name == name]

    def next_fault(self, name: str) -> Fault | None:
        with self.lock:
            queue = self.faults[name] or self.faults["*"]
            if not queue:
                return None
            queue[0].times -= 1
            return queue[0] if queue[0].times else queue.pop(0)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, *args: Any, folder: Path, state: FaultyServer):
        self.folder, self.state = folder, state
        super().__init__(*args)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        name, path = Path(unquote(parts.path)).name, self.folder / unquote(parts.path).lstrip("/")
        time.sleep(self.state.latency)
        start, stop = self._range()
        self.state.requests.append(Request(name, start, parts.query, self.headers.get("Authorization")))
        fault = self.state.next_fault(name)
        if fault is not None and fault.kind in ("reset", "stalled", "status"):
            return self._refuse(fault)
        if not path.is_file():
            return self._status(404)
        size = path.stat().st_size
        if start >= size:
            return self._status(416)
        if fault is not None and fault.kind == "whole":
            start, stop = 0, None
        self._send(path, start, min(stop or size, size), size, fault)

    def do_HEAD(self) -> None:
        path = self.folder / unquote(urlsplit(self.path).path).lstrip("/")
        time.sleep(self.state.latency)
        if not path.is_file():
            return self._status(404)
        self.send_response(200)
        self.send_header("Content-Length", str(path.stat().st_size))
        self._describe(path)
        self.end_headers()

    def _describe(self, path: Path) -> None:
        """What S3's clients want to know of an object."""
        state = path.stat()
        self.send_header("ETag", f'"{state.st_mtime_ns:x}-{state.st_size:x}"')
        self.send_header("Last-Modified", formatdate(state.st_mtime, usegmt=True))

    def _range(self) -> tuple[int, int | None]:
        unit, _, text = self.headers.get("Range", "").partition("=")
        if unit != "bytes":
            return 0, None
        first, _, last = text.partition("-")
        return int(first), int(last) + 1 if last else None

    def _refuse(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.kind == "status":
            return self._status(int(fault.value))
        if fault.kind == "stalled":
            self.state.released.wait(30)
        else:
            self._reset()

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _status(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, path: Path, start: int, stop: int, size: int, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        half = start + max((stop - start) // 2, 1)
        end = half if kind in ("half", "short") else stop
        self.send_response(200 if kind == "whole" or "Range" not in self.headers else 206)
        self.send_header("Content-Length", str((half if kind == "short" else stop) - start))
        self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self._describe(path)
        self.end_headers()
        with path.open("rb") as file:
            if fault is None:
                self.wfile.flush()
                self.connection.sendfile(file, start, stop - start)
                return
            file.seek(start)
            while start < end:
                piece = file.read(min(end - start, PIECE if kind != "slow" else max(int(fault.value / 20), 1)))
                if kind == "slow":
                    time.sleep(len(piece) / fault.value)
                try:
                    self.wfile.write(bytes(byte ^ 1 for byte in piece) if kind == "wrong" else piece)
                except OSError:
                    break  # the client went away
                start += len(piece)
        if kind == "half":
            self.wfile.flush()
            self._reset()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, address: Any) -> None:
        """Clients of these tests go away in the middle; that is no news."""


@contextmanager
def serve(
    folder: Path, *, latency: float = 0.0, tls: ssl.SSLContext | None = None, host: str = "localhost"
) -> Iterator[FaultyServer]:
    """Serve `folder`, with `latency` seconds before each answer, until the end of the `with`."""
    state = FaultyServer("", latency=latency)
    server = QuietServer(
        ("127.0.0.1" if host == "localhost" else host, 0), partial(Handler, folder=folder, state=state)
    )
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    state.url = f"{'https' if tls else 'http'}://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--host", default="localhost", help="address to listen at")
    args = parser.parse_args()
    with serve(args.folder, latency=args.latency, host=args.host) as server:
        print(server.url, flush=True)
        sys.stdin.read()  # until the caller ends


if __name__ == "__main__":
    main()
