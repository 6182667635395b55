"""Studies: a grid becomes runs with stable names; what is done stays, what failed is tried again."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from train.study import main, parse_args, read, run_here, run_submitted
from train.study_run import STOPPED, flag
from train.study_table import rows, summary, table, unfinished

ROOT = Path(__file__).resolve().parents[1]
GRID = """
name = "small"
[base]
epochs = 1
[grid]
shards = ["sets/A", "sets/B"]
start = ["wt", "ri"]
seed = [0, 1]
[[skip]]
shards = "sets/B"
start = "wt"
"""
# Stands in for the trainer: writes results as it does, and fails the first time for seed 1.
TRAINER = """
import json, pathlib, sys
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(words.get("--resume") or pathlib.Path(words["--out"]) / words["--name"])
first = not folder.is_dir()
folder.mkdir(parents=True, exist_ok=True)
if first and folder.name.endswith("-1"):
    sys.exit("error: the disk is full")
(folder / "words.json").write_text(json.dumps(words))
score = 0.5 + len(folder.name) / 100
(folder / "results.json").write_text(json.dumps({"target_metric": "kappa", "test": {"kappa": score}}))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "trainer.py").write_text(TRAINER)
    return [sys.executable, str(tmp_path / "trainer.py")]


def grid_file(tmp_path: Path, text: str = GRID) -> Path:
    (tmp_path / "study.toml").write_text(text)
    return tmp_path / "study.toml"


@pytest.mark.parametrize("on", ["here", pytest.param("local", marks=pytest.mark.slow)])
def test_what_is_missing_runs_and_failures_are_tried_again(tmp_path: Path, command: list[str], on: str) -> None:
    study = read(grid_file(tmp_path), tmp_path / "out", command)
    assert [run.name for run in study.runs] == ["A-wt-0", "A-wt-1", "A-ri-0", "A-ri-1", "B-ri-0", "B-ri-1"]
    run = (lambda tries: run_here(study, 2, tries)) if on == "here" else (
        lambda tries: run_submitted(study, "local", {"timeout_min": 5}, tries)
    )  # fmt: skip
    failed = run(1)
    assert sorted(failed) == ["A-ri-1", "A-wt-1", "B-ri-1"] and "the disk is full" in failed["A-wt-1"]
    before = {run.name: (run.folder / "results.json").stat().st_mtime_ns for run in study.runs if run.results}
    assert run(1) == {} and all(run.results for run in study.runs)  # gone on with, not begun anew
    words = json.loads((study.folder / "A-wt-1" / "words.json").read_text())
    assert words == {"--resume": str(study.folder / "A-wt-1")}
    assert all((study.folder / n / "results.json").stat().st_mtime_ns == time for n, time in before.items())


def test_grids_are_joined_and_a_random_start_takes_no_weights(tmp_path: Path) -> None:
    text = """
    name = "joined"
    [base]
    weights = "w.safetensors"
    [[grid]]
    start = ["wt", "ri"]
    seed = [0, 1]
    [[grid]]
    start = ["st"]
    wt_until = ["3", "blocks.1"]
    seed = [0]
    """
    study = read(grid_file(tmp_path, text), tmp_path / "out", ["x"])
    names = ["wt-0", "wt-1", "ri-0", "ri-1", "st-wt_until3-0", "st-wt_untilblocks.1-0"]
    assert [run.name for run in study.runs] == names
    assert study.axes == ("start", "seed", "wt_until")
    assert [dict(run.flags).get("weights") for run in study.runs] == [
        *["w.safetensors"] * 2,
        None,
        None,
        *["w.safetensors"] * 2,
    ]
    shown = table(rows(study), study.axes)
    assert "| wt |  |" in shown and "| st | blocks.1 |" in shown


def test_the_table_has_mean_spread_and_interval(tmp_path: Path, command: list[str]) -> None:
    study = read(grid_file(tmp_path), tmp_path / "out", command)
    run_here(study, 2, 2)
    found = rows(study)
    assert [(Path(row["shards"]).name, row["start"], row["done"]) for row in found] == [
        ("A", "wt", 2), ("A", "ri", 2), ("B", "ri", 2),
    ]  # fmt: skip
    shown = table(found, study.axes)
    assert "| shards | start | metric | done |" in shown and "| A | wt | kappa | 2/2 | 0.560 |" in shown
    values = [0.5, 0.7, 0.9, 0.6]
    low, high = stats.t.interval(0.95, 3, 0.675, stats.sem(values))
    told = summary([*values, None])
    assert (told["low"], told["high"], told["done"], told["of"]) == (pytest.approx(low), pytest.approx(high), 4, 5)


def test_cells_name_their_runs_and_what_is_not_done_is_told(tmp_path: Path, command: list[str]) -> None:
    study = read(grid_file(tmp_path), tmp_path / "out", command)
    failed = run_here(study, 1, 1)
    (study.folder / "A-ri-1" / "trainer.lock").touch()
    (study.folder / "A-ri-1" / "metrics.jsonl").write_text('{"kind": "train", "step": 7, "loss": 1.0}\n')
    (study.folder / "B-ri-0" / "results.json").unlink()
    found = {run.name: (values, run.folder, run.state, run.step) for values, run in study.cells()}
    axes = {"shards": "sets/A", "start": "ri", "seed": 1}
    assert found["A-ri-1"] == (axes, tmp_path / "out" / "small" / "A-ri-1", "running", 7)
    assert [found[name][2] for name in ("A-wt-0", "A-wt-1", "B-ri-0")] == ["done", "stopped", "stopped"]
    told = unfinished(study, failed)
    assert "| A-wt-1 | failed |  | error: the disk is full |" in told and "| A-ri-1 | running | 7 |" in told
    assert "| B-ri-0 | stopped |" in told and "A-wt-0" not in told


DYING_OF_CTRL_C = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize("end", ["import sys; sys.exit(75)", "import sys; sys.exit(130)", DYING_OF_CTRL_C])
def test_a_stopped_run_stops_the_study_and_is_no_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """Whatever Ctrl-C met: a training, a second time, or launch.sh before it had begun one."""
    (tmp_path / "stopped.py").write_text(end)
    study = read(grid_file(tmp_path), tmp_path / "out", [sys.executable, str(tmp_path / "stopped.py")])
    assert run_here(study, 1, 3) == {"A-wt-0": STOPPED}
    assert [run.state for run in study.runs] == ["waiting"] * 6 and capsys.readouterr().err == ""


def test_a_warning_of_slurm_reaches_the_trainer(tmp_path: Path) -> None:
    """Submitit calls `checkpoint` in a signal handler of the job while the run is under way."""
    trainer = "import signal, sys, pathlib, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))\n"
    (tmp_path / "trainer.py").write_text(trainer + f"pathlib.Path({str(tmp_path / 'on')!r}).touch(); time.sleep(60)")
    run = read(grid_file(tmp_path), tmp_path, [sys.executable, str(tmp_path / "trainer.py")]).runs[0]
    told: list[Any] = []

    def warn() -> None:
        while not (tmp_path / "on").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, lambda *_: told.append(run.checkpoint()))
    thread = threading.Thread(target=warn)
    thread.start()
    try:
        assert run() == STOPPED
    finally:
        thread.join()
        signal.signal(signal.SIGUSR2, before)
    assert told[0].function is run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grid]\nsead = [1]", r"unknown flag 'sead': did you mean seed\?"),
        ("[grid]\nseed = 1", "holds flags with lists of values"),
        ("[grid]\nname = ['a']", "name is set by the study"),
        ("[grids]\nseed = [1]", "unknown key 'grids'; known: name, base, grid, skip"),
        (
            "[grid]\nshards = ['a/X', 'b/X']\nseed = [1]",
            "two combinations are called X-1|two combinations are called X",
        ),
        ("[grid", "no readable TOML file"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(grid_file(tmp_path, text), tmp_path, ["x"])
    assert "\n" not in str(error.value).rstrip()


def test_options_of_sbatch_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(grid_file(tmp_path)), "--out", str(tmp_path / "out"), "--on", "slurm", "--slurm", "partition=gpu"]
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"--slurm: submitit does not take this: .*no_such_option"):
        main(parse_args([*words, "timeout_min=60", "no_such_option=1"]))
    with pytest.raises(ValueError, match="write KEY=VALUE"):
        main(parse_args([*words, "timeout_min"]))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"--on slurm: .*srun.*--on here runs on this machine"):
        main(parse_args(words))


def test_values_become_words() -> None:
    assert flag("autoscale_lr", True) == ["--autoscale-lr"] and flag("verify", False) == ["--no-verify"]
    assert flag("crop_scale", [0.5, 1]) == ["--crop-scale", "0.5,1"]
    assert flag("train_operators", [{"op": "Resize"}]) == ["--train-operators", '[{"op": "Resize"}]']


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "examples" / "studies").glob("*.toml")])
def test_the_examples_are_read(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(ROOT / "examples" / "studies" / f"{name}.toml"), "--out", str(tmp_path), "--show"]
    assert main(parse_args(arguments)) == 0
    assert capsys.readouterr().out.count("\n| ") == {"figure": 60, "phantoms": 2, "idrid": 8}[name]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_study(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    text = f'[base]\nshards = "{tiny_set}"\nmodel = "test_vit"\nstart = "ri"\nimage_size = 32\n'
    text += "global_batch = 16\nepochs = 1\n"
    arguments = [
        str(grid_file(tmp_path, text + "[grid]\nlr = [1e-3, 1e-4]\nseed = [0, 1]")),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(parse_args([*arguments, "--parallel", "2"])) == 0
    told = json.loads((tmp_path / "out" / "study" / "study.json").read_text())
    assert [row["done"] for row in told["rows"]] == [2, 2] and told["failed"] == {}
    assert "| 0.0001 |" in (tmp_path / "out" / "study" / "study.md").read_text()
