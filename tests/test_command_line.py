"""The face of every script: help that fits, one line for a mistake with the nearest word, Tab."""

import json
import os
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from shards.__main__ import main as shards_main
from shards.command_line import Parser, local_folder
from shards.manifest import Manifest

ROOT = Path(__file__).resolve().parents[1]


def run(command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, env=os.environ | {"COLUMNS": "100"} | environ,
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def parser() -> Parser:
    made = Parser(prog="tool", description="What it does.\n\n    tool x --size 3", epilog="example: tool x")
    made.add_argument("place", type=Path)
    made.add_argument("--size", type=int, default=3, help="pixels")
    made.add_argument("--order", choices=("global", "windowed"), default="global", help="of an epoch")
    return made


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--sise", "3"], "error: unknown flag --sise: did you mean --size? (--help shows all)"),
        (["x", "--size", "big"], "error: argument --size: invalid int value: 'big' (--help shows all)"),
        ([], "error: the following arguments are required: place (--help shows all)"),
        (
            ["x", "--order", "globl"],
            "error: argument --order: got 'globl'; choose from global, windowed: did you mean global? "
            "(--help shows all)",
        ),
    ],
)
def test_a_mistake_is_one_line(given: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(given)
    assert ended.value.code == 2 and capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("command", ["prep/make_shards.py --help", "-m shards info SET"])
def test_a_reader_that_stops_is_no_error(command: str, tiny_set: Path) -> None:
    read, write = os.pipe()
    os.close(read)  # as `| true` has it, sooner or later
    command = command.replace("SET", str(tiny_set))
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert not done.stderr and done.returncode in (0, 141)


def test_defaults_are_told_and_examples_kept() -> None:
    text = parser().format_help()
    assert "usage: tool PLACE [flags]" in text and "pixels (default 3)" in text
    assert "\n    tool x --size 3\n" in text and "--size N" in text


def test_rare_flags_are_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    made = Parser(prog="tool", rare={"size", "with slides"})
    made.add_argument("--size", help="pixels")
    made.add_argument("--seed", help="of all")
    made.add_argument_group("with slides", "who has some").add_argument("--tile", help="pixels of a tile")
    short = made.format_help()
    assert "--seed" in short and "--help-all" in short
    assert "--size" not in short and "--tile" not in short and "slides" not in short
    with pytest.raises(SystemExit):
        made.parse_args(["--help-all"])
    whole = capsys.readouterr().out
    assert "pixels of a tile" in whole and "who has some" in whole and "--size" in whole
    assert made.format_help() == short
    assert made.parse_args(["--tile", "3"]).tile == "3"


def test_the_shell_is_answered() -> None:
    script = "from test_command_line import parser; parser().parse_args()"
    line = "tool --or"
    done = subprocess.run(
        ["bash", "-c", f"exec 8>&1; {sys.executable} -c '{script}' 9>/dev/null"],
        cwd=ROOT / "tests",
        env=os.environ | {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ", "COMP_LINE": line, "COMP_POINT": str(len(line)),
                          "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "COMP_TYPE": "9", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "--order"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("./launch.sh do", "doctor"),
        ("./launch.sh train --label-sm", "--label-smoothing"),
        ("./launch.sh train --model x --zero-s", "--zero-stage"),
        ("python prep/make_shards.py --short", "--short-side"),
        ("python prep/make_shards.py --chroma 4:4", "4:4:4"),
    ],
)
def test_tab_completes_what_launch_says(line: str, found: str) -> None:
    function = "_medshard_launch" if line.startswith("./") else "_medshard_python"
    words = " ".join(f"'{word}'" for word in line.split())
    script = f"""source <(./launch.sh completion); COMP_LINE='{line}'; COMP_WORDS=({words})
    COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); {function}; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found in done.stdout.split(), done.stderr


@pytest.mark.parametrize("command", ["train/run.py", "prep/make_shards.py", "prep/show_shards.py", "-m shards bench"])
def test_help_is_what_the_process_prints(command: str) -> None:
    """The whole way of a few; test_parsers.py looks at the words of all."""
    done = run(f"{command} --help")
    assert done.returncode == 0 and not done.stderr and done.stdout.startswith("usage: ")
    if "run.py" in command:
        whole = run(f"{command} --help-all").stdout
        assert "--label-smoothing" in whole and "--label-smoothing" not in done.stdout
        assert done.stdout.endswith("\n--help-all shows every flag.\n")


@pytest.mark.parametrize("command", ["check U", "index U", "reshard U new", "merge U U --out new", "split U", "view U"])
def test_a_url_where_a_folder_is_wanted_is_told_as_one(command: str) -> None:
    """Not as a folder that does not exist, and without what it holds of secrets."""
    done = run(f"-m shards {command.replace('U', 'https://me:secret@host/set?sig=secret')}")
    assert done.returncode == 2 and done.stderr.startswith("error: argument folder")
    assert "https://host/set is a URL, and this works on a folder of this machine: copy the set here" in done.stderr
    assert "secret" not in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "password", ["p/secret", "secret", "p/secret@x", "12/secret", "secret?x", "secret#x", "p/secret?"]
)
def test_a_password_is_not_shown_however_it_is_written(password: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        local_folder(f"https://user:{password}@host/set?sig=secret")
    assert "secret" not in str(caught.value) and "user" not in str(caught.value)


@pytest.mark.parametrize(
    "command", ["view SET --samples 1 --versions 1 --out OUT.png", "sheet SET --out OUT.png", "split SET"]
)
def test_tools_that_write_files_tell_them_as_json_or_nothing(
    command: str, tiny_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = Path(shutil.copytree(tiny_set, tmp_path / "whole"))
    words = command.replace("SET", str(whole)).replace("OUT", str(tmp_path / "out")).split()
    assert shards_main([*words, "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert shards_main([*words, "--json"]) == 0
    told = capfd.readouterr()
    proof = whole / "splits" / "proof.json"
    assert not told.err
    assert json.loads(told.out) == (
        json.loads(proof.read_text()) if "split" in words else {"out": f"{tmp_path}/out.png"}
    )


@pytest.mark.parametrize("command", ["reshard SET OUT", "index SET"])
def test_tools_that_write_a_set_tell_it_as_json_or_nothing(
    command: str, tiny_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = Path(shutil.copytree(tiny_set, tmp_path / "whole"))
    words = command.replace("SET", str(whole))
    for number, flag in enumerate(("--json", "--quiet")):
        out = tmp_path / f"out{number}"
        assert shards_main([*words.replace("OUT", str(out)).split(), flag]) == 0
        told = capfd.readouterr()
        assert not told.err
        if flag == "--quiet":
            assert not told.out
            continue
        made, manifest = json.loads(told.out), Manifest.read(out if "OUT" in command else whole)
        assert made["digest"] == manifest.digest
        assert {name: split["samples"] for name, split in made["splits"].items()} == {
            name: split.samples for name, split in manifest.splits.items()
        }


@pytest.mark.parametrize("script", ["prep/check_shards.py", "prep/show_shards.py"])
def test_the_thin_scripts_show_a_traceback_when_asked(script: str, tmp_path: Path) -> None:
    told = run(f"{script} {tmp_path}/none --debug")
    assert told.returncode == 2 and "Traceback" in told.stderr
    assert "Traceback" not in run(f"{script} {tmp_path}/none").stderr
