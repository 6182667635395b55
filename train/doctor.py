"""What this machine has, and what to do where something is amiss: a line each.

    ./launch.sh doctor [--out runs] [--hostfile HOSTS] [--json]

Reads the machine, writes nothing. A ✓ is good, a ! works but costs something, a ✗ stops a training; exit code 1 with
any ✗.
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import importlib
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from shards.command_line import Parser, add_debug_flag
from shards.redaction import shown

GIB = 1024**3
SSH_SECONDS = 30
DECODED = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tiff", "JPEG 2000": ".jp2"}
MARKS = {"good": "✓", "warn": "!", "bad": "✗"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it stands, and, unless it is good, what to do."""

    name: str
    state: Literal["good", "warn", "bad"]
    text: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{MARKS[self.state]} {self.name:14} {self.text}" + (f": {self.advice}" if self.advice else "")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="./launch.sh doctor",
        description="What this machine has, and what to do where something is amiss.",
        epilog="example: ./launch.sh doctor --out /scratch/runs --hostfile hosts",
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="where the runs will go")
    parser.add_argument("--hostfile", type=Path, default=os.environ.get("HOSTFILE"), help="nodes, a line each")
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON document")
    add_debug_flag(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Look at everything; 1 where something stops a training."""
    findings = []
    for finding in examine(args.out, args.hostfile):
        findings.append(finding)
        if not args.json:
            print(finding, flush=True)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    return int(any(finding.state == "bad" for finding in findings))


def examine(out: Path, hostfile: Path | None) -> Iterator[Finding]:
    """All findings, the quick ones first."""
    yield python()
    yield memory()
    yield disk(out)
    yield shared_memory()
    yield open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    for check in (torch_and_gpus, dali, deepspeed, hub):
        yield from guarded(check)
    yield from nodes(Path(hostfile) if hostfile else None)


def guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; a package that does not import is a finding, too."""
    try:
        yield from check()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        yield Finding(check.__name__, "bad", f"does not load ({reason})", "./launch.sh setup, then look at .setup.log")


def python() -> Finding:
    """The interpreter."""
    return Finding("Python", "good", f"{platform.python_version()} at {sys.executable}")


def memory() -> Finding:
    """Cores and memory."""
    cores = len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    text = f"{cores} cores, {total:.0f} GiB"
    return Finding("machine", *(("good", text) if total >= 8 else ("warn", text, "8 GiB are wanted: lower --prefetch")))


def disk(out: Path) -> Finding:
    """Room where the runs go."""
    place = out.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GIB
    text = f"{free:.0f} GiB free at {place}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "bad", f"{place} is not writable", "name another place with --out")
    if free < 5:
        return Finding("disk", "bad" if free < 1 else "warn", text, "a run of DeiT-S keeps about 1 GiB: free some")
    return Finding("disk", "good", text)


def shared_memory(where: str = "/dev/shm") -> Finding:
    """Shared memory: worker processes keep their locks there, and NCCL's ranks of one node talk through it."""
    if not Path(where).is_dir():
        return Finding("shared memory", "warn", f"no {where}", "worker processes and NCCL want it: mount a tmpfs there")
    if not os.access(where, os.W_OK):
        return Finding("shared memory", "bad", f"{where} is not writable", "mount a tmpfs with mode 1777 there")
    size = shutil.disk_usage(where).total / GIB
    if size < 1:
        advice = "in a container give it more: docker run --shm-size=8g (or --ipc=host)"
        return Finding("shared memory", "warn", f"{size:.2f} GiB at {where}", advice)
    return Finding("shared memory", "good", f"{size:.0f} GiB at {where}")


def open_files(soft: int, hard: int) -> Finding:
    """The limit of open files: each mapped shard takes one."""
    if 0 <= soft < 4096:
        advice = f"sets of more shards need more: ulimit -n {hard if hard > 0 else 65536}"
        return Finding("open files", "warn", f"at most {soft}", advice)
    return Finding("open files", "good", "no limit" if soft < 0 else f"at most {soft}")


def torch_and_gpus() -> Iterator[Finding]:
    """torch, the driver and the GPUs."""
    import torch

    yield Finding("torch", "good", f"{torch.__version__}, built for CUDA {torch.version.cuda or '(none)'}")
    driver = nvidia_driver()
    if not torch.cuda.is_available():
        if driver:
            yield Finding(
                "GPU", "bad", f"driver {driver}, but torch sees none", "an older driver wants MEDSHARD_CUDA=12"
            )
        else:
            yield Finding("GPU", "warn", "none", "training runs on the CPU over gloo; decoding by the host executor")
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("GPU", "good", f"{len(names)} ({', '.join(sorted(set(names)))}), driver {driver or 'unknown'}")
    version = ".".join(str(part) for part in torch.cuda.nccl.version())
    yield Finding("NCCL", "good", version)


def nvidia_driver() -> str | None:
    """The driver's version; None without one."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return asked.stdout.split()[0] if asked.returncode == 0 and asked.stdout.split() else None


def dali() -> Iterator[Finding]:
    """DALI, and what it decodes here."""
    wheels = [name for each in metadata.distributions() if (name := each.name or "").startswith("nvidia-dali-cuda")]
    if not wheels:
        yield Finding("DALI", "warn", "not installed", "GPUs want it: pip install -e '.[cuda13]' (or cuda12)")
        return
    import torch

    on_gpu = torch.cuda.is_available()
    found = [name for name, suffix in DECODED.items() if decodes(suffix, on_gpu)]
    text = f"{metadata.version(wheels[0])} ({wheels[0]}), on the {'GPU' if on_gpu else 'CPU'}"
    text += f", decodes {', '.join(found) or 'nothing'}"
    if missing := [name for name in DECODED if name not in found]:
        advice = "take --executor host, or install the wheel that fits the driver (MEDSHARD_CUDA)"
        yield Finding("DALI", "bad" if "JPEG" in missing else "warn", f"{text}, not {', '.join(missing)}", advice)
    else:
        yield Finding("DALI", "good", text)


def decodes(suffix: str, on_gpu: bool) -> bool:
    """Whether DALI decodes a small image of this kind of file here."""
    import cv2
    import numpy as np
    from nvidia.dali import fn, pipeline_def

    image = cv2.imencode(suffix, np.full((64, 64, 3), 200, np.uint8))[1].ravel()

    @pipeline_def(batch_size=1, num_threads=1, device_id=0 if on_gpu else None)  # type: ignore[arg-type]
    def one() -> Any:
        return fn.decoders.image(fn.external_source(lambda: [image]), device="mixed" if on_gpu else "cpu")

    try:
        (out,) = one().run()
    except RuntimeError:
        return False
    return tuple(out.shape()[0]) == (64, 64, 3)


def deepspeed() -> Iterator[Finding]:
    """DeepSpeed, and whether it can compile its operators."""
    version = metadata.version("deepspeed")
    compiler = shutil.which("g++") or shutil.which("c++")
    if not compiler:
        yield Finding("DeepSpeed", "bad", f"{version}, no C++ compiler", "it compiles operators: apt-get install g++")
        return
    if not shutil.which("ninja"):
        yield Finding("DeepSpeed", "bad", f"{version}, no ninja", "start through ./launch.sh, or pip install ninja")
        return
    built = sorted({path.stem for path in compiled_operators()})
    told = f"compiled before: {', '.join(built)}" if built else "the first start compiles for about a minute"
    yield Finding("DeepSpeed", "good", f"{version}, {compiler}; {told}")


def compiled_operators() -> Iterator[Path]:
    """Operators that an earlier start left in torch's cache."""
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    return cache.glob("**/*.so")


def hub() -> Iterator[Finding]:
    """The hub that timm downloads pretrained weights from."""
    endpoint = urlsplit(shown(os.environ.get("HF_ENDPOINT") or "https://huggingface.co"))
    constants = importlib.import_module("huggingface_hub.constants")
    host, port = endpoint.hostname or "", endpoint.port or (80 if endpoint.scheme == "http" else 443)
    if constants.HF_HUB_OFFLINE:
        yield Finding("weights", "good", f"offline by HF_HUB_OFFLINE; cache: {constants.HF_HUB_CACHE}")
    elif reaches(host, port):
        yield Finding("weights", "good", f"{host} answers; cache: {constants.HF_HUB_CACHE}")
    else:
        advice = "take --weights FILE, or set HF_HUB_OFFLINE=1 and fill its cache elsewhere"
        yield Finding("weights", "warn", f"{host} is out of reach", advice)


def nodes(hostfile: Path | None) -> Iterator[Finding]:
    """This node's name, and ssh to the nodes of a hostfile.

    Raises:
        ValueError: no such hostfile.
    """
    own = socket.gethostname()
    try:
        address = socket.gethostbyname(own)
    except OSError:
        yield Finding("network", "warn", f"{own} has no address", "several nodes need one: add it to /etc/hosts")
    else:
        if address.startswith("127."):
            advice = "several nodes need another: set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface's name"
            yield Finding("network", "warn", f"{own} is {address}", advice)
        else:
            yield Finding("network", "good", f"{own} is {address}")
    if hostfile is None:
        return
    if not hostfile.is_file():
        raise ValueError(f"no hostfile {hostfile}: a line a node, as in: node1 slots=8")
    for host in hosts_of(hostfile.read_text()):
        yield node(host)


def hosts_of(text: str) -> list[str]:
    """Names in a hostfile, in order. Raises ValueError for what is no name of a machine: ssh takes -… as an option."""
    lines = (line.split("#")[0].split() for line in text.splitlines())
    names = [words[0] for words in lines if words]
    if wrong := [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@-]*", name)]:
        raise ValueError(f"hostfile: {wrong[0]!r} is no name of a machine; a line a node, as in: node1 slots=8")
    return names


def node(host: str) -> Finding:
    """Whether ssh reaches a node without a password, as DeepSpeed's runner needs it."""
    name = f"node {host}"
    if not reaches(host, 22):
        return Finding(name, "bad", "port 22 does not answer", "start sshd there, or a launcher a node with --no_ssh")
    command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5", host, "true"]
    if not shutil.which("ssh"):
        return Finding(name, "bad", "no ssh on this machine", "apt-get install openssh-client")
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=SSH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Finding(name, "bad", f"ssh does not end within {SSH_SECONDS} s", "look at its shell's start-up files")
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding(name, "bad", f"ssh without a password fails ({last})", f"ssh-copy-id {host}")
    return Finding(name, "good", "ssh without a password")


def reaches(host: str, port: int, seconds: float = 3.0) -> bool:
    """Whether a TCP connection can be made."""
    try:
        socket.create_connection((host, port), seconds).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    arguments = parse_args()
    run_cli(lambda: main(arguments), debug=arguments.debug)
