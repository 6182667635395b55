"""launch.sh's own part of a run: what it sends to other nodes, and how it stops. Run: pytest tests/test_launch.py

Its functions run under bash with commands of the test's in the place of deepspeed, pdsh and ssh; tests/test_ssh.py has
the real ones.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train.run import leave, words

ROOT = Path(__file__).resolve().parents[1]


def bash(code: str, *arguments: str, **environ: str) -> "subprocess.Popen[str]":
    """Bash code behind the functions of launch.sh, in a group of its own."""
    functions = (ROOT / "launch.sh").read_text().split("\ncommand=${1:-help}\n")[0]
    functions = functions.replace("${BASH_SOURCE[0]}", str(ROOT / "launch.sh"))
    return subprocess.Popen(
        ["bash", "-c", f'eval "$FUNCTIONS"; {code}', "launch.sh", *arguments],
        env={**os.environ, **environ, "FUNCTIONS": functions},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def output_of(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        text, _ = process.communicate(timeout=60)
        return process.returncode, text
    finally:
        process.kill()


@pytest.mark.parametrize(
    "sent", [[], [""], ["--train-operators", '[{"op": "Resize", "size": 8}]', "--name", "50%ü\n", ""]]
)
def test_flags_reach_other_nodes_whole(sent: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = output_of(bash('remote_settings "$@"; grep ^MEDSHARD_WORDS= "$DS_ENV_FILE"; rm "$DS_ENV_FILE"', *sent))
    assert code == 0, text
    monkeypatch.setenv("MEDSHARD_WORDS", text.strip().removeprefix("MEDSHARD_WORDS="))
    assert words(["--local_rank=1"]) == ["--local_rank=1", *sent]
    assert words(["--seed", "1"]) == ["--seed", "1"]  # for this process alone


# A rank that is importing for a while, then writes down what it hears, and ends.
LATE = """
import pathlib, signal, sys, time
time.sleep(float(sys.argv[2]))
signal.signal(signal.SIGUSR1, lambda *_: (pathlib.Path(sys.argv[1]).write_text("heard"), sys.exit(7)))
pathlib.Path(sys.argv[1]).write_text("listens")
time.sleep(20)
"""


def wait_for(path: Path, content: str) -> None:
    until = time.monotonic() + 20
    while not path.is_file() or path.read_text() != content:
        assert time.monotonic() < until, f"{path.name} does not say {content}"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_that_comes_before_a_rank_listens_is_heard(tmp_path: Path, number: signal.Signals) -> None:
    code = 'over_ssh=0 told=0; touch begun; in_own_session "$@" || status=$?; echo "told=$told status=${status:-0}"'
    (tmp_path / "late.py").write_text(LATE)
    rank = [sys.executable, "-S", str(tmp_path / "late.py"), str(tmp_path / "rank"), "1.5"]
    process = bash(f"cd {tmp_path}; {code}", *rank)
    wait_for(tmp_path / "begun", "")
    time.sleep(0.3)
    os.kill(process.pid, number)
    assert output_of(process)[1].splitlines()[-1] == "told=1 status=7"
    assert (tmp_path / "rank").read_text() == "heard"


def test_on_other_nodes_the_ranks_of_this_run_that_listen_are_told(tmp_path: Path) -> None:
    """Whatever the path of the checkout; a rank that is still importing lives on, and that of another run."""
    script = tmp_path / "c++ (1)" / "train" / "run.py"
    script.parent.mkdir(parents=True)
    script.write_text(LATE)
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "ssh").write_text('#!/bin/sh\nshift 2\n[ "$1" = node2 ] || exit 0\nexec sh -c "$2"\n')
    (commands / "ssh").chmod(0o755)
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    begun = {"mine": ("/tmp/mine", "0"), "importing": ("/tmp/mine", "15"), "other": ("/tmp/other", "0")}
    ranks = {
        name: subprocess.Popen(
            [sys.executable, "-u", str(script), str(tmp_path / name), seconds],
            env={**os.environ, "MEDSHARD_EXIT_FILE": mark},
        )
        for name, (mark, seconds) in begun.items()
    }
    try:
        for name in ("mine", "other"):
            wait_for(tmp_path / name, "listens")
        told = 'setsid sleep 0 & group=$! over_ssh=1; wait; root=$1; stop_run "$2"; wait'
        here = {"HOSTFILE": str(tmp_path / "hosts"), "MEDSHARD_EXIT_FILE": "/tmp/mine"}
        here["PATH"] = f"{commands}:{os.environ['PATH']}"
        assert output_of(bash(told, str(script.parents[1]), "USR1", **here)) == (0, "")
        assert ranks["mine"].wait(20) == 7
        assert [ranks[name].poll() for name in ("importing", "other")] == [None, None]
        assert output_of(bash(told, str(script.parents[1]), "KILL", **here)) == (0, "")
        assert ranks["importing"].wait(20) == -signal.SIGKILL and ranks["other"].poll() is None
    finally:
        for each in ranks.values():
            each.kill()
            each.wait()


def test_no_file_stays_on_any_node(tmp_path: Path) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "ssh").write_text(f'#!/bin/sh\nshift $(($# - 2))\necho "$*" >>{tmp_path}/asked\n')
    (commands / "pdsh").write_text("#!/bin/sh\n")
    (commands / "deepspeed").write_text(
        f"#!/bin/sh\necho $MEDSHARD_EXIT_FILE >{tmp_path}/file\necho 0 >$MEDSHARD_EXIT_FILE\n"
    )
    for path in commands.iterdir():
        path.chmod(0o755)
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    environ = {"HOSTFILE": str(tmp_path / "hosts"), "PATH": f"{commands}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    assert output_of(bash("venv=/none; train --epochs 2", **environ)) == (0, "")
    file = (tmp_path / "file").read_text().strip()
    assert sorted((tmp_path / "asked").read_text().splitlines()) == [f"node{n} rm -f {file}" for n in (1, 2)]
    assert {path.name for path in tmp_path.iterdir()} == {"asked", "bin", "file", "hosts"}


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"HOSTFILE": "-oProxyCommand=touch${IFS}ran slots=1\nb slots=1\n"}, "is no name of a machine; a line a node"),
        ({"HOSTFILE": "a;touch${IFS}ran slots=1\nb slots=1\n"}, "is no name of a machine; a line a node"),
        ({"RANKS": "x[$(touch ran)]"}, "give the ranks on this machine, 1 or more"),
    ],
)
def test_names_of_nodes_and_numbers_of_ranks_run_nothing(tmp_path: Path, environ: dict[str, str], told: str) -> None:
    """Among other lines of a shell, ssh's ProxyCommand and bash's arithmetic would."""
    if "HOSTFILE" in environ:
        (tmp_path / "hosts").write_text(environ["HOSTFILE"])
        environ = {"HOSTFILE": str(tmp_path / "hosts")}
    status, output = output_of(
        bash(f"cd {tmp_path}; venv=/none; train --epochs 2; over_ssh=1; on_nodes true; wait", **environ)
    )
    assert status == 2 and told in output and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ignored", ["trap '' USR1; ", ""])
def test_a_scoring_ends_where_it_is_told_to(tmp_path: Path, ignored: str) -> None:
    """`--test` keeps nothing, so it does not go on to its end."""
    code = "import sys, time; sys.modules['train.testing'] = m = type(sys)('testing')\n"
    code += f"m.test_run = lambda *_: (open(r'{tmp_path}/begun', 'w').close(), time.sleep(20))[1]\n"
    code += "from train.run import main; main(['--test', 'runs/x'])"
    process = bash(f'{ignored}exec "$@"', sys.executable, "-c", code)
    wait_for(tmp_path / "begun", "")
    os.kill(process.pid, signal.SIGUSR1)
    assert output_of(process) == (75, "")


@pytest.mark.parametrize(("world", "code", "ended", "told"), [
    ("1", 2, 0, "2"), ("1", 75, 0, "75"), ("2", 75, 0, ""), ("2", 2, 2, ""), ("2", 0, 0, ""),
])  # fmt: skip
def test_after_a_stop_the_launcher_has_no_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: str, code: int, ended: int, told: str
) -> None:
    """Of several ranks the first has told the code; an error of one must still end the others."""
    (tmp_path / "code").write_text("")
    monkeypatch.setenv("MEDSHARD_EXIT_FILE", str(tmp_path / "code"))
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(SystemExit) as end:
        leave(code)
    assert end.value.code == ended and (tmp_path / "code").read_text().strip() == told
    monkeypatch.delenv("MEDSHARD_EXIT_FILE")
    with pytest.raises(SystemExit) as end:
        leave(code)
    assert end.value.code == code


# Stands for the interpreters of setup and demo; with $WAITS among its words it waits, and answers Ctrl-C with $CODE.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"$WAITS"*)
        trap 'exit $CODE' INT
        echo $$ >>"$HERE/begun"
        sleep 30 &
        wait
        kill $!
        ;;
    *import\\ socket*) echo 29500 ;;
esac
"""


def with_python(place: Path, waits: str, code: str) -> dict[str, str]:
    """Variables of `bash` for a checkout at `place` with that interpreter."""
    for name in ("pyproject.toml", "constraints.txt"):
        (place / name).write_text("")
    (place / "venv" / "bin").mkdir(parents=True)
    for path in (place / "python", place / "venv" / "bin" / "python"):
        path.write_text(PYTHON)
        path.chmod(0o755)
    return {"HERE": str(place), "WAITS": waits, "CODE": code, "PYTHON": str(place / "python")}


def interrupted(process: "subprocess.Popen[str]", begun: Path, count: int) -> tuple[int, list[str]]:
    """Ctrl-C when `count` interpreters wait: exit code and what was said; none of them is left."""
    until = time.monotonic() + 20
    while not begun.is_file() or len(begun.read_text().splitlines()) < count:
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    code, text = output_of(process)
    assert not [pid for pid in begun.read_text().split() if Path("/proc", pid).exists()]
    return code, text.splitlines()


@pytest.mark.parametrize(("waits", "code"), [("-m pip", "1"), ("-m compileall", "1"), ("-m compileall", "0")])
def test_ctrl_c_in_the_set_up_is_a_stop(tmp_path: Path, waits: str, code: str) -> None:
    """Not a failed installation, nor one that is through: pip and compileall answer in their own ways."""
    environ = with_python(tmp_path, waits, code)
    (tmp_path / "venv" / "stamp").write_text("of other files\n")
    process = bash("root=$HERE venv=$HERE/venv; setup && echo on", **environ)
    ended, said = interrupted(process, tmp_path / "begun", 1)
    assert ended == 130 and said[-1] == "stopped; run the same command to go on" and len(said) == 2
    assert (tmp_path / "venv" / "stamp").read_text() == "of other files\n"


def made(place: Path, *products: str) -> None:
    for product in products:
        (place / product).parent.mkdir(parents=True, exist_ok=True)
        (place / product).touch()


BEFORE_TRAINING = ("data/raw/phantom-DDSM/phantom.salt", "data/shards/phantom-DDSM/manifest.json")
BEFORE_TRAINING += ("data/weights/lite0.safetensors",)


def test_ctrl_c_in_the_analyses_of_the_demo_ends_them(tmp_path: Path) -> None:
    environ = with_python(tmp_path, "analysis/cka.py", "0")
    made(tmp_path, *BEFORE_TRAINING, "runs/demo-wt/results.json", "runs/demo-ri/results.json")
    ended, said = interrupted(bash("root=$HERE venv=$HERE/venv; demo", **environ), tmp_path / "begun", 2)
    assert ended == 130 and said[-1] == "stopped; run the same command to go on"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["demo-ri", "demo-wt"]


def test_a_training_of_the_demo_that_is_stopped_says_how_the_demo_goes_on(tmp_path: Path) -> None:
    environ = with_python(tmp_path, "never", "0")
    made(tmp_path, *BEFORE_TRAINING)
    deepspeed = tmp_path / "venv" / "bin" / "deepspeed"
    deepspeed.write_text("#!/bin/sh\necho 75 >$MEDSHARD_EXIT_FILE\n")
    deepspeed.chmod(0o755)
    code, text = output_of(bash("root=$HERE venv=$HERE/venv; demo", **environ))
    assert code == 75 and text.splitlines()[-1] == "./launch.sh demo goes on there"
