"""Two machines, as two network namespaces with two ranks each. Run as root: pytest -m slow tests/test_many_machines.py

A veth pair is all that joins them; the shards lie on an HTTP store on the first. `ip netns` needs root (or
`unshare -Urnm pytest …`) and Debian's iproute2.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from trainings import FAST, losses

from train.engine import interface_to

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = str(ROOT / "launch.sh")
DEADLINE_SECONDS = 300
NODES = ("10.213.77.1", "10.213.77.2")
TRAIN = ["--model", "test_vit", *FAST, "--epochs", "12", "--checkpoint-every", "4", "--no-tensorboard"]


def test_the_interface_is_the_one_that_leads_there() -> None:
    assert interface_to("127.0.0.1") == next(
        name for name, each in psutil.net_if_addrs().items() if any(entry.address == "127.0.0.1" for entry in each)
    )
    others = [each for name, found in psutil.net_if_addrs().items() if name != "lo" for each in found]
    for address in [each.address for each in others if each.family == socket.AF_INET]:
        assert address in {each.address for each in psutil.net_if_addrs()[interface_to(address) or ""]}
    assert interface_to("no.such.host.invalid") is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HOSTFILE": "none"}, "HOSTFILE=none: no such file; a line a node, as in: node1 slots=8"),
        ({"NODE_RANK": "0"}, "NODE_RANK=0: give HOSTFILE=FILE, too"),
        ({"HOSTFILE": "hosts", "NODE_RANK": "2"}, "NODE_RANK=2: hosts has 2 nodes; give 0 to 1"),
        ({"HOSTFILE": "hosts", "NODE_RANK": "first"}, "NODE_RANK=first: hosts has 2 nodes"),
        ({"HOSTFILE": "empty"}, "HOSTFILE=empty names no node"),
        ({"HOSTFILE": "hosts", "PATH": "bin"}, "needs pdsh: install it"),
    ],
)
def test_mistakes_of_the_nodes_are_one_line(tmp_path: Path, environment: dict[str, str], message: str) -> None:
    (tmp_path / "hosts").write_text("node1 slots=2  # the first\n\nnode2 slots=2\n")
    (tmp_path / "empty").write_text("# nothing\n")
    if "PATH" in environment:  # this machine's tools but for pdsh
        (tmp_path / "bin").mkdir()
        for name in (path.name for path in Path("/usr/bin").iterdir() if path.name != "pdsh"):
            (tmp_path / "bin" / name).symlink_to(f"/usr/bin/{name}")
    done = subprocess.run(
        [LAUNCH, "train"], cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


# ---- two network namespaces


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(f"ip {' '.join(words)}: {done.stderr.strip()} (network namespaces need root, or `unshare -Urnm`)")


@pytest.fixture
def spaces() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces, NODES their addresses on a veth pair; all processes in them end with it."""
    names = tuple(f"medshard{os.getpid()}{letter}" for letter in "ab")
    ends = [f"ms{os.getpid() % 100_000}{letter}" for letter in "ab"]
    for name in names:
        ip("netns", "add", name)
    try:
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, NODES, strict=True):
            ip("link", "set", end, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", end)
            for link in (end, "lo"):
                ip("-n", name, "link", "set", link, "up")
        yield names[0], names[1]
    finally:
        for name in names:
            kill_node(name)
            subprocess.run(["ip", "netns", "del", name], check=True)


def kill_node(space: str) -> None:
    """SIGKILL to all that runs in a namespace."""
    found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=True).stdout.split()
    for pid in map(int, found):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@contextmanager
def started(space: str | None, *words: str, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    """A command in a namespace, its output in one pipe; it has ended afterwards."""
    inside = ["ip", "netns", "exec", space] if space else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environ}
    with subprocess.Popen(
        [*inside, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def output_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    text, _ = process.communicate(timeout=DEADLINE_SECONDS)
    return process.returncode, text


def wait_for_step(run: Path, step: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (run / "metrics.jsonl").is_file() or not losses(run) or losses(run)[-1][0] < step:
        assert process.poll() is None, output_of(process)
        assert time.monotonic() < deadline, f"no step {step} in {DEADLINE_SECONDS} s"
        time.sleep(0.05)


@contextmanager
def store(space: str, folder: Path) -> Iterator[str]:
    """The URL of an HTTP store in a namespace."""
    command = [sys.executable, str(ROOT / "tests" / "faulty_server.py"), str(folder), "--host", NODES[0]]
    with subprocess.Popen(
        ["ip", "netns", "exec", space, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_nodes_train_one_dies_and_the_other_goes_on(
    tiny_set: Path, tmp_path: Path, spaces: tuple[str, str]
) -> None:
    (tmp_path / "hosts").write_text("".join(f"{address} slots=2\n" for address in NODES))
    alone = ["train", "--shards", str(tiny_set), "--out", str(tmp_path), "--name", "alone", *TRAIN]
    with started(None, LAUNCH, *alone, RANKS="4") as process:
        code, text = output_of(process)
        assert code == 0, text
    with store(spaces[0], tiny_set) as url:
        words = ["--shards", url, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path), "--name", "pair", *TRAIN]
        common = {"HOSTFILE": str(tmp_path / "hosts"), "MASTER_ADDR": NODES[0], "MASTER_PORT": "29611"}
        with (
            started(spaces[0], LAUNCH, "train", *words, NODE_RANK="0", **common) as first,
            started(spaces[1], LAUNCH, "train", *words, NODE_RANK="1", **common),
        ):
            wait_for_step(tmp_path / "pair", 9, first)
            kill_node(spaces[1])
            code, text = output_of(first)
            assert code not in (0, 75), text
            assert "--resume" in text and "rank" in text, text
        reached = losses(tmp_path / "pair")
        assert 9 <= len(reached) < 45 and reached == losses(tmp_path / "alone")[: len(reached)]  # to the last digit
        with started(spaces[0], LAUNCH, "train", "--resume", str(tmp_path / "pair"), RANKS="2") as process:
            code, text = output_of(process)
            assert code == 0, text
    assert "resumed at step " in (tmp_path / "pair" / "log.txt").read_text()
    for (step, a), (same, b) in zip(losses(tmp_path / "alone"), losses(tmp_path / "pair"), strict=True):
        assert step == same and a == pytest.approx(b, abs=1e-4)
