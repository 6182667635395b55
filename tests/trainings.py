"""Trainings of tiny nets: in this process, which is one rank, or as several processes that end in time."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from train.reporting import read_metrics
from train.run import main

ROOT = Path(__file__).resolve().parents[1]
RUN = str(ROOT / "train" / "run.py")
FAST = ["--start", "ri", "--image-size", "32", "--global-batch", "16", "--log-every", "1", "--threads", "1"]
# Adam and clipping hide a wrong scale of the gradient; plain descent shows it.
PLAIN = ["--optimizer", "sgd", "--gradient-clipping", "0", "--schedule", "constant", "--warmup-steps", "0"]
PLAIN += ["--lr", "0.05", "--weight-decay", "0"]
DEADLINE_SECONDS = 240


def train(shards: Path, name: str, *more: str, model: str = "test_vit") -> Path:
    """Train in this process; the run directory."""
    assert main(["--shards", str(shards), "--model", model, "--name", name, *FAST, *more]) == 0
    return Path("runs") / name


def losses(run: Path, kind: str = "train") -> list[tuple[int, float]]:
    """(step, loss) of each record, at full precision."""
    return [(each["step"], each["loss"]) for each in read_metrics(run / "metrics.jsonl") if each["kind"] == kind]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": path}


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output; the whole process group is gone afterwards."""
    try:
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
        return process.returncode, output
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def start(command: list[str], **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**environment(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(*arguments: str, ranks: int = 2) -> tuple[int, str]:
    """`deepspeed train/run.py …`; its exit code and output."""
    port = str(20_000 + os.getpid() % 20_000)
    return finish(start(["deepspeed", "--master_port", port, "--num_accelerators", str(ranks), RUN, *arguments]))


def ranks(*arguments: str, world: int = 2) -> None:
    """`train/run.py …` on several ranks without a launcher, which takes half the time; all must succeed."""
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    processes = [
        start([sys.executable, RUN, *arguments], RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(world)
    ]
    for code, output in [finish(process) for process in processes]:
        assert code == 0, output
