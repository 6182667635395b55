"""Jobs that are requeued and go on: the script, and a real Slurm of one or two nodes. Run: pytest tests/test_slurm.py

The slow tests start munged, slurmctld and slurmd on loopback, as root: apt-get install slurm-wlm munge.
"""

from shards.script import run_cli

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port
from trainings import FAST, losses

from train import study
from train.sbatch import main, parse_args, script_of

pytestmark = pytest.mark.usefixtures("one_rank")

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = str(ROOT / "launch.sh")
DEADLINE_SECONDS = 400
CONFIG = """
ClusterName=medshard
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def train_words(shards: Path, name: str) -> list[str]:
    return ["--shards", str(shards), "--model", "test_vit", *FAST, "--name", name, "--no-tensorboard"]


# ---- the script


def test_the_script_says_it_all(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--nodes", "2", "--gpus-per-node", "4", "--time", "1-00:00:00", "--option=--exclusive", "--dry-run"]
    assert main(parse_args([*words, "--", *train_words(tiny_set, "job")])) == 0
    text = capsys.readouterr().out
    for directive in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--time=1-00:00:00", "--requeue",
                      "--signal=B:USR1@180", "--exclusive", "--open-mode=append"):  # fmt: skip
        assert f"\n#SBATCH {directive}\n" in text
    assert f"--output={Path.cwd()}/runs/job.slurm.log" in text and "RANKS" not in text
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True).returncode == 0
    assert not Path("runs").exists()


def test_words_with_blanks_come_through(tmp_path: Path) -> None:
    args = parse_args(["--", "--train-operators", '[{"op": "Resize"}]'])
    text = script_of(args, tmp_path / "a run" / "x", args.flags)
    (line,) = [line for line in text.splitlines() if line.startswith("flags=(")]
    told = subprocess.run(["bash", "-c", line + '; printf "%s\n" "${flags[@]}"'], capture_output=True, text=True)
    assert told.stdout.splitlines() == ["--train-operators", '[{"op": "Resize"}]']


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shards", "x"], "--shards is the trainer's: put it behind --"),
        (["--nodse", "2"], "unknown flag --nodse: did you mean --nodes?"),
        (["--", "--epochs", "x"], "--epochs: got 'x'"),
        (["--nodes", "3", "--", "--shards", "SET", "--model", "test_vit"], "world size 3 does not divide"),
        (["--option=exclusive", "--", "--shards", "SET"], "--option exclusive: write it as sbatch has it"),
        (["--", "--test", "runs/x"], "sbatch is for trainings"),
        (["--", "--shards", "SET", "--name", "kept"], "kept exists: -- --resume runs/kept goes on with it"),
        (["--", "--resume", "runs/none"], "no run directory"),
    ],
)
def test_mistakes_are_told_before_the_queue(
    tiny_set: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/kept").mkdir(parents=True)
    words = [str(tiny_set) if word == "SET" else word for word in words]
    with pytest.raises(SystemExit) as ended:
        run_cli(lambda: main(parse_args(words)))
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message in told and told.count("\n") == 1, told


def test_without_slurm_the_script_is_left(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"no sbatch here: runs/job.sbatch is written; on a login node: sbatch runs"):
        main(parse_args(["--", *train_words(tiny_set, "job")]))
    assert (tmp_path / "runs" / "job.sbatch").read_text().startswith("#!/usr/bin/env bash")


# ---- a real one


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Slurm of this machine alone, with a partition `low` that `high` preempts. The folder of its logs."""
    host = socket.gethostname().split(".")[0]
    with cluster(tmp_path_factory.mktemp("slurm"), monkeypatch, host) as folder:
        yield folder


@pytest.fixture
def slurm_of_two(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same with two nodes, a slurmd each on this machine (Debian builds them with --enable-multiple-slurmd)."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the names of the nodes are Slurm's alone
    with cluster(tmp_path_factory.mktemp("slurm"), monkeypatch, "first", "second") as folder:
        yield folder


@contextmanager
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch, *nodes: str) -> Iterator[Path]:
    if missing := [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]:
        pytest.fail(f"{', '.join(missing)} not found: apt-get install slurm-wlm munge (CONTRIBUTING.md)")
    if os.geteuid():
        pytest.fail("munged, slurmctld and slurmd of these tests run as root: run them as root")
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    host, cores = socket.gethostname().split(".")[0], max((os.cpu_count() or 1) // len(nodes), 1)
    lines = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={cores}" for node in nodes
    ]
    values = {"folder": folder, "host": host, "controller": free_port(), "nodes": "\n".join(lines)}
    (folder / "slurm.conf").write_text(CONFIG.format(**values))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"]
    commands = [munge, ["slurmctld", "-D"], *(["slurmd", "-D", "-N", node] for node in nodes)]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}-{command[-1]}.out".replace("/", "_")).open("wb") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while command_line("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split() != ["idle"] * len(nodes):
            told = "\n".join(path.read_text()[-1500:] for path in folder.glob("*.out"))
            assert time.monotonic() < deadline, told
            time.sleep(0.5)
        yield folder
    finally:
        subprocess.run(["scancel", "--user=root", "--full", "--signal=KILL"], check=False)
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def command_line(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def state(job: str) -> str:
    found = [word for word in command_line("scontrol", "show", "job", job).split() if word.startswith("JobState=")]
    return found[0].partition("=")[2] if found else "gone"


def wait_for(what: str, met: object, job: str, log: Path) -> None:
    """Until `met()` is true; a job that fails meanwhile ends the test."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not met():  # type: ignore[operator]
        told = log.read_text()[-3000:] if log.is_file() else "no log"
        assert state(job) != "FAILED", told
        assert time.monotonic() < deadline, f"{what}: not in {DEADLINE_SECONDS} s\n{told}\n{command_line('squeue')}"
        time.sleep(0.2)


def steps(run: Path) -> int:
    return len(losses(run)) if (run / "metrics.jsonl").is_file() else 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_preempted_job_is_requeued_and_loses_nothing(
    slurm: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    length = ["--epochs", "40"]
    whole = [sys.executable, str(ROOT / "train" / "run.py"), *train_words(tiny_set, "whole"), *length]
    subprocess.run(whole, check=True, capture_output=True)
    assert main(parse_args(["--partition", "low", "--", *train_words(tiny_set, "job"), *length])) == 0
    job, run, log = capsys.readouterr().out.split()[1].strip(":"), Path("runs/job"), Path("runs/job.slurm.log")
    wait_for("ten steps", lambda: steps(run) >= 10, job, log)
    urgent = command_line("sbatch", "--parsable", "--partition=high", "--output=urgent.log", "--wrap", "sleep 5")
    wait_for("the preemption", lambda: state(job) == "PENDING", job, log)
    reached = steps(run)
    assert 10 <= reached < 150 and "stopped by a signal at step" in log.read_text()
    assert not (run / "results.json").exists()
    wait_for("the urgent job's end", lambda: state(urgent) == "COMPLETED", job, log)
    command_line(
        "scontrol", "update", f"JobId={job}", "StartTime=now"
    )  # Slurm lets a requeued job wait for two minutes
    wait_for("the job's end", lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), job, log)
    assert state(job) == "COMPLETED", log.read_text()
    assert f"resumed at step {reached} of 150" in log.read_text()
    assert losses(run) == losses(Path("runs/whole")) and losses(run, "val") == losses(Path("runs/whole"), "val")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_through_submitit(slurm: Path, tiny_set: Path, tmp_path: Path) -> None:
    base = f'[base]\nshards = "{tiny_set}"\nmodel = "test_vit"\nstart = "ri"\nimage_size = 32\nglobal_batch = 16\n'
    (tmp_path / "pair.toml").write_text(base + "epochs = 1\n[grid]\nseed = [0, 1]\n")
    words = [str(tmp_path / "pair.toml"), "--out", str(tmp_path / "out"), "--on", "slurm"]
    words += ["--slurm", "partition=low", "timeout_min=30", "cpus_per_task=1"]
    assert study.main(study.parse_args(words)) == 0
    told = json.loads((tmp_path / "out" / "pair" / "study.json").read_text())
    assert [run["state"] for run in told["runs"]] == ["done", "done"] and told["rows"][0]["done"] == 2
    assert study.main(study.parse_args(words)) == 0  # nothing is left to do


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cancelled_job_leaves_a_checkpoint_and_does_not_come_back(
    slurm: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(parse_args(["--ranks-per-node", "2", "--", *train_words(tiny_set, "job"), "--epochs", "200"])) == 0
    job, run, log = capsys.readouterr().out.split()[1].strip(":"), Path("runs/job"), Path("runs/job.slurm.log")
    wait_for("five steps", lambda: steps(run) >= 5, job, log)
    command_line("scancel", "--full", "--signal=TERM", job)
    command_line("scancel", job)
    wait_for("its end", lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), job, log)
    time.sleep(3)
    assert state(job) == "CANCELLED", log.read_text()
    assert "stopped by a signal at step" in log.read_text() and "2 ranks" in log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_of_two_nodes_is_requeued_and_repeats_one_node_of_two_ranks(
    slurm_of_two: Path, tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    length = ["--epochs", "20"]
    alone = [LAUNCH, "train", *train_words(tiny_set, "whole"), *length]
    subprocess.run(alone, check=True, capture_output=True, env=os.environ | {"RANKS": "2"})
    assert main(parse_args(["--nodes", "2", "--", *train_words(tiny_set, "job"), *length])) == 0
    job, run, log = capsys.readouterr().out.split()[1].strip(":"), Path("runs/job"), Path("runs/job.slurm.log")
    wait_for("five steps", lambda: steps(run) >= 5, job, log)
    command_line("scancel", "--signal=USR1", "--batch", job)
    wait_for("the requeue", lambda: state(job) == "PENDING", job, log)
    reached = steps(run)
    assert 5 <= reached < 75 and "stopped by a signal at step" in log.read_text()
    time.sleep(5)  # what slurmd has killed it does not start again within seconds
    command_line("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for("the job's end", lambda: state(job) not in ("PENDING", "RUNNING", "COMPLETING"), job, log)
    assert state(job) == "COMPLETED", log.read_text()
    assert f"resumed at step {reached} of 75, 2 ranks" in log.read_text()
    assert losses(run) == losses(Path("runs/whole")) and losses(run, "val") == losses(Path("runs/whole"), "val")
