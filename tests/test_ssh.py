"""HOSTFILE over ssh, for real: two nodes that are this machine twice. Run: pytest -m slow tests/test_ssh.py

The tests start an sshd of their own on loopback, with keys and settings in a temporary folder, and two names for it:
apt-get install openssh-server pdsh.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port
from test_many_machines import LAUNCH, output_of, started, wait_for_step
from trainings import FAST, losses

NODES = ("node-a", "node-b")
SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile {folder}/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin yes
MaxStartups 100
"""
SSH = """
Host node-a node-b
  HostName 127.0.0.1
  Port {port}
  IdentityFile {folder}/user
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile {folder}/known
  LogLevel ERROR
"""
TRAIN = ["--model", "test_vit", *FAST, "--no-tensorboard"]


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Settings for launch.sh: a HOSTFILE of two nodes with a rank each, and an ssh that knows them."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if missing := [n for n, there in (("sshd", sshd), ("pdsh", shutil.which("pdsh"))) if not there]:
        pytest.fail(f"{', '.join(missing)} not found: apt-get install openssh-server pdsh (CONTRIBUTING.md)")
    folder = tmp_path_factory.mktemp("ssh")
    values = {"folder": folder, "port": free_port()}
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "sshd_config").write_text(SSHD.format(**values))
    (folder / "config").write_text(SSH.format(**values))
    (folder / "hosts").write_text("".join(f"{name} slots=1\n" for name in NODES))
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    (folder / "bin" / "ssh").chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it, and the package makes it at boot alone
    with (folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen([str(sshd), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log)
    try:
        for name in NODES:
            _answers(folder, name)
        yield {"HOSTFILE": str(folder / "hosts"), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    finally:
        server.terminate()
        server.wait(20)


def _answers(folder: Path, name: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        done = subprocess.run([folder / "bin" / "ssh", name, "true"], capture_output=True, text=True)
        if done.returncode == 0:
            return
        assert time.monotonic() < deadline, done.stderr + (folder / "sshd.log").read_text()
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_over_ssh_repeat_one_node_with_two_ranks(
    tiny_set: Path, tmp_path: Path, nodes: dict[str, str]
) -> None:
    operators = '[{"op": "RandomResizedCrop", "size": 32, "scale": [0.5, 1.0]}, {"op": "HorizontalFlip", "p": 0.5}]'
    words = ["train", "--shards", str(tiny_set), "--out", str(tmp_path), *TRAIN, "--epochs", "2"]
    words += ["--train-operators", operators, "--optimizer-args", '{"eps":1e-7}']
    with started(None, LAUNCH, *words, "--name", "alone", RANKS="2") as process:
        code, text = output_of(process)
        assert code == 0, text
    with started(None, LAUNCH, *words, "--name", "pair", **nodes) as process:
        code, text = output_of(process)
        assert code == 0, text
    assert "2 ranks" in (tmp_path / "pair" / "log.txt").read_text()
    assert losses(tmp_path / "pair") == losses(tmp_path / "alone")
    assert losses(tmp_path / "pair", "val") == losses(tmp_path / "alone", "val")
    assert (tmp_path / "pair" / "results.json").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stop_and_a_mistake_come_back_over_ssh(tiny_set: Path, tmp_path: Path, nodes: dict[str, str]) -> None:
    with started(None, LAUNCH, "train", "--shards", str(tmp_path / "none"), **nodes) as process:
        code, text = output_of(process)
    assert code == 2 and "no shard set in" in text, text
    words = ["train", "--shards", str(tiny_set), "--out", str(tmp_path), *TRAIN, "--epochs", "200"]
    with started(None, LAUNCH, *words, "--name", "stopped", **nodes) as process:
        wait_for_step(tmp_path / "stopped", 5, process)
        process.send_signal(signal.SIGTERM)
        code, text = output_of(process)
    assert code == 75, text
    assert "stopped by a signal at step" in (tmp_path / "stopped" / "log.txt").read_text()
    assert list((tmp_path / "stopped" / "checkpoints").glob("step-*"))
