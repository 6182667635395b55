"""Requests, retries and hashes against a server with faults. pytest tests/test_fetching.py"""

import hashlib
import importlib
import io
import time
from pathlib import Path

import pytest
import zstandard
from faulty_server import Fault, FaultyServer, serve

from shards.fetching import FetchError, NotThere, Patience, Place, fetch_index, fetch_tar
from shards.manifest import ShardInfo
from shards.redaction import scrub, shown

QUICK = Patience(attempts=3, timeout_seconds=0.4, wait_seconds=0.02)
BYTES = b"".join(hashlib.sha256(str(number).encode()).digest() for number in range(9000))  # 288 kB that do not pack
INDEX = BYTES[:1000]
INFO = ShardInfo(
    name="train-000000.tar",
    samples=1,
    bytes=len(BYTES),
    sha256=hashlib.sha256(BYTES).hexdigest(),
    index_sha256=hashlib.sha256(INDEX).hexdigest(),
)


@pytest.fixture
def server(tmp_path: Path):
    (tmp_path / INFO.name).write_bytes(BYTES)
    (tmp_path / "train-000000.cols").write_bytes(INDEX)
    with serve(tmp_path) as server:
        yield server


def fetched(server: FaultyServer, *, begun: bytes = b"", info: ShardInfo = INFO, patience: Patience = QUICK) -> bytes:
    file = io.BytesIO(begun)
    fetch_tar(Place(server.url, patience), info, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "fault",
    [
        Fault("reset", 2),
        Fault("stalled", 1),
        Fault("half", 2),
        Fault("short", 2),
        Fault("wrong", 1),
        Fault("status", 2, 503),
        Fault("status", 2, 429),
        Fault("slow", 3, 400_000),
        Fault("whole", 1),
    ],
    ids=lambda fault: fault.kind,
)
def test_faults_that_pass_end_well(server: FaultyServer, fault: Fault) -> None:
    server.faults[INFO.name] = [fault]
    assert fetched(server) == BYTES


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (Fault("reset", 99), "the connection broke; gave up after 3 tries"),
        (Fault("stalled", 99), "no answer within 0.4 s; gave up after 3 tries"),
        (Fault("half", 99), "the connection broke; gave up after 3 tries"),
        (Fault("status", 99, 503), "HTTP 503; gave up after 3 tries"),
        (Fault("status", 99, 400), "HTTP 400"),
        (Fault("status", 99, 403), "access is refused: check the credentials"),
        (Fault("slow", 99, 2_000), "no answer within 0.4 s; gave up after 3 tries"),
    ],
    ids=lambda value: f"{value.kind}{value.value:g}" if isinstance(value, Fault) else "",
)
def test_faults_that_last_end_in_one_line_in_bounded_time(server: FaultyServer, fault: Fault, text: str) -> None:
    server.faults["*"] = [fault]
    start = time.monotonic()
    with pytest.raises(FetchError) as caught:
        fetched(server)
    assert time.monotonic() - start < QUICK.longest_silence_seconds + 5
    assert text in str(caught.value) and f"{server.url}/{INFO.name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_connection() -> None:
    with serve(Path()) as server:
        url = server.url
    with pytest.raises(FetchError, match="connection is refused; gave up after 3 tries"):
        Place(url, QUICK).read("manifest.json", 100)


def test_missing_file_is_named_at_once(server: FaultyServer) -> None:
    with pytest.raises(NotThere, match=r"train-000007\.tar: there is no such file"):
        fetched(server, info=INFO.model_copy(update={"name": "train-000007.tar"}))
    assert [request.name for request in server.requests] == ["train-000007.tar", "train-000007.tar.zst"]


def test_wrong_bytes_are_fetched_again_then_named_with_both_hashes(server: FaultyServer) -> None:
    server.faults[INFO.name] = [Fault("wrong", 99)]
    found = hashlib.sha256(bytes(byte ^ 1 for byte in BYTES)).hexdigest()
    with pytest.raises(
        FetchError, match=f"{INFO.name}: sha256 {found} came 2 times, the manifest expects {INFO.sha256}"
    ):
        fetched(server)


def test_goes_on_from_what_an_earlier_try_left(server: FaultyServer) -> None:
    assert fetched(server, begun=BYTES[:100_000]) == BYTES
    assert [request.start for request in server.requests] == [100_000]


def test_a_wrong_beginning_is_thrown_away(server: FaultyServer) -> None:
    assert fetched(server, begun=bytes(100_000)) == BYTES
    assert [request.start for request in server.requests] == [100_000, 0]


def test_a_beginning_longer_than_the_file(server: FaultyServer) -> None:
    assert fetched(server, begun=BYTES + b"more") == BYTES


@pytest.mark.parametrize("frames", [1, 3])
def test_packed_tars_are_unpacked_on_arrival(tmp_path: Path, frames: int) -> None:
    size = -(-len(BYTES) // frames)
    packer = zstandard.ZstdCompressor(level=1)
    parts = [packer.compress(BYTES[start : start + size]) for start in range(0, len(BYTES), size)]
    (tmp_path / f"{INFO.name}.zst").write_bytes(b"".join(parts))
    with serve(tmp_path) as server:
        place = Place(server.url, QUICK)
        server.faults[f"{INFO.name}.zst"] = [Fault("reset"), Fault("half"), Fault("status"), Fault("wrong")]
        for _ in range(2):
            file = io.BytesIO(b"left by an earlier try")
            fetch_tar(place, INFO, file)
            assert file.getvalue() == BYTES
    assert len(server.asked(INFO.name)) == 1  # no more once it is known how tars lie there


def test_a_packed_bomb_stops_at_the_promised_size(tmp_path: Path) -> None:
    (tmp_path / f"{INFO.name}.zst").write_bytes(zstandard.compress(bytes(1 << 26)))
    file = io.BytesIO()
    with serve(tmp_path) as server, pytest.raises(FetchError, match="sha256"):
        fetch_tar(Place(server.url, QUICK), INFO, file)
    assert len(file.getvalue()) <= INFO.bytes


def test_garbage_instead_of_a_packed_tar(tmp_path: Path) -> None:
    (tmp_path / f"{INFO.name}.zst").write_bytes(BYTES)
    with serve(tmp_path) as server, pytest.raises(FetchError, match="not zstd"):
        fetched(server)


def test_index_is_hashed_and_bounded(server: FaultyServer) -> None:
    place = Place(server.url, QUICK)
    assert fetch_index(place, INFO, 5000) == INDEX
    server.faults["train-000000.cols"] = [Fault("short")]
    assert fetch_index(place, INFO, 5000) == INDEX
    with pytest.raises(FetchError, match=r"train-000000\.cols: sha256"):
        fetch_index(place, INFO, 999)  # as if the file had grown beyond what its samples can take


def test_closing_ends_a_fetch(server: FaultyServer) -> None:
    place = Place(server.url, QUICK)
    place.closed.set()
    with pytest.raises(FetchError, match="was ended"):
        fetch_tar(place, INFO, io.BytesIO())
    assert not server.requests


def test_query_and_user_reach_the_server_but_no_message(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_SECRET_KEY", "hunter2hunter2")
    url = server.url.replace("://", "://alice:wonderland@") + "/?sig=topsecret&x=1"
    file = io.BytesIO()
    fetch_tar(Place(url, QUICK), INFO, file)
    assert file.getvalue() == BYTES
    assert server.requests[0].query == "sig=topsecret&x=1"
    assert (server.requests[0].authorization or "").startswith("Basic ")
    for status in (400, 403, 404, 503):
        server.faults["*"] = [Fault("status", 99, status)]
        with pytest.raises(FetchError) as caught:
            fetch_tar(Place(url, QUICK), INFO, io.BytesIO())
        message = f"{caught.value!r} {caught.value.__cause__!r}"
        assert not any(secret in message for secret in ("alice", "wonderland", "topsecret", "sig="))
    assert shown(url) == server.url
    told = scrub("GET https://alice:wonderland@h/x?sig=topsecret\nwith hunter2hunter2 failed")
    assert told == "GET https://h/x with … failed"


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("https://alice:p/w@h/x?sig=secret", "https://h/x"),
        ("https://alice:p@w@h:80/x#part", "https://h:80/x"),
        ("https://alice@h/x/", "https://h/x"),
        ("https://alice:p?w@h/x", "https://…/"),
        ("https://h:8080/x?user=a@b", "https://h:8080/x"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ],
)
def test_urls_in_messages_bear_no_password_however_it_is_written(url: str, wanted: str) -> None:
    assert shown(url) == wanted
    if "?" not in url and "#" not in url:
        assert scrub(f"GET {url} failed") == f"GET {wanted}{'/' * url.endswith('/')} failed"


def test_certificate_of_an_unknown_authority(tmp_path: Path) -> None:
    import ssl

    trustme = importlib.import_module("trustme")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with serve(tmp_path, tls=context) as server, pytest.raises(FetchError, match="its certificate is refused"):
        Place(server.url, QUICK).read("manifest.json", 100)


def test_unknown_protocol_is_one_line() -> None:
    with pytest.raises(FetchError, match="nosuch://bucket/set: fsspec cannot open it"):
        Place("nosuch://bucket/set", QUICK)


def test_waits_double_up_to_a_bound() -> None:
    patience = Patience(attempts=5, timeout_seconds=1, wait_seconds=1, longest_wait_seconds=3)
    assert patience.longest_silence_seconds == 5 * 1 + 1 + 2 + 3 + 3
    for failures, longest in ((1, 1), (2, 2), (3, 3), (9, 3)):
        assert longest / 2 <= patience.wait(failures) <= longest


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"threads": 0}, {"timeout_seconds": 0}, {"wait_seconds": -1}])
def test_patience_refuses(wrong: dict) -> None:
    with pytest.raises(ValueError, match="patience of"):
        Patience(**wrong)
