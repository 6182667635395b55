"""All parsers of the command line together: help that fits a screen, and flags that mean the same everywhere."""

import argparse
import re
from pathlib import Path

import pytest
from parsers import every_parser

from shards.command_line import Parser, flags_of, positive

PARSERS = every_parser()
SCREEN = 50  # lines
TRAINER = "train/run.py"


@pytest.mark.parametrize("name", PARSERS)
def test_help_fits_a_screen_of_80_columns_and_shows_an_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = PARSERS[name]
    text = parser.format_help()
    lines = text.splitlines()
    assert lines[0].startswith("usage:") and len(lines) <= SCREEN and max(map(len, lines)) <= 80, text
    door = "train" if name == TRAINER else Path(name).stem
    called = f"(python {name}|\\./launch\\.sh {door})"
    if name.startswith("shards "):
        called = f"python -m {name}"
    assert re.search(rf"^( {{4}}|example: ){called} \S", text, re.M), text  # whole on its line, to be copied
    if "--help-all" in parser._option_string_actions:
        assert lines[-1] == "--help-all shows every flag." and "--help-all" not in "\n".join(lines[:-1])
        assert len(parser.whole_help().splitlines()) > len(lines)


@pytest.mark.parametrize("name", PARSERS)
def test_every_flag_says_what_it_is(name: str) -> None:
    for action in PARSERS[name]._actions:
        assert action.help and action.help[0] != " " and not action.help.endswith("."), action


# flag → how its help begins, type, default. A type of None is text; the trainer's are checked by its config.
SHARED = {
    "--shards": ("shard set, a folder or a URL", None, None),
    "--out": ("where ", Path, None),
    "--workers": ("processes", positive, "cores"),
    "--threads": ("decoding threads", positive, 2),
    "--seed": ("seed of ", int, 0),
    "--batch": ("images a ", positive, 64),
    "--global-batch": ("images a step, all ranks", int, 64),
    "--image-size": ("side of the square input, pixels", int, 224),
    "--device": ("cpu or cuda; default: cuda where there is one", None, None),
    "--split": ("split ", None, None),
    "--view": ("label view of the manifest", None, None),
    "--name": ("name of ", None, None),
    "--cache": ("folder for ", Path, None),
    "--json": ("print ", None, False),
    "--quiet": ("no progress, and no word where all is well", None, False),
    "--debug": ("show the traceback of an error", None, False),
}
# What differs, and why.
OTHERWISE = {
    ("prep/make_shards.py", "--split"): "how splits are made: it is where they come from",
    ("prep/make_shards.py", "--out"): "a folder or a URL, so that it is text; the default is told by the set's name",
    ("shards merge", "--out"): "a folder of this machine: a URL is refused with a word of its own",
    ("shards bench", "--threads"): "every core by default: it measures what a machine can do",
    ("train/doctor.py", "--out"): "the trainer's default",
    ("train/study.py", "--out"): "a place of its own beside single runs, which is told",
}


def takers(flag: str) -> dict[str, argparse.Action]:
    """Script → the flag as it takes it."""
    found = {name: parser._option_string_actions.get(flag) for name, parser in PARSERS.items()}
    return {name: action for name, action in found.items() if action is not None}


@pytest.mark.parametrize("flag", SHARED)
def test_a_shared_flag_means_the_same_everywhere(flag: str) -> None:
    text, kind, default = SHARED[flag]
    found = takers(flag)
    assert len(found) > 1 or flag == "--workers"
    for name, action in found.items():
        if (name, flag) == ("prep/make_shards.py", "--split"):
            continue
        assert (action.help or "").startswith(text), f"{name} {flag}: {action.help}"
        if name == TRAINER or (name, flag) in OTHERWISE:
            continue
        assert action.type is kind, f"{name} {flag}: {action.type}"
        if default == "cores":
            assert isinstance(action.default, int) and action.default >= 1
        elif flag != "--split":  # which one is of interest depends on the question, and is told
            assert action.default == default, f"{name} {flag}: {action.default}"


def test_every_difference_is_of_a_flag_that_is_there() -> None:
    for name, flag in OTHERWISE:
        assert name in takers(flag)


@pytest.mark.parametrize("flag", sorted({flag for each in PARSERS.values() for flag in flags_of(each)} - set(SHARED)))
def test_a_flag_of_two_scripts_is_of_one_type(flag: str) -> None:
    kinds = {action.type for name, action in takers(flag).items() if name != TRAINER}
    assert len(kinds) <= 1, f"{flag}: {kinds}"


@pytest.mark.parametrize("name", PARSERS)
def test_every_script_takes_debug_and_those_that_write_take_quiet(name: str) -> None:
    flags = PARSERS[name]._option_string_actions
    assert "--debug" in flags
    shows = ("shards info", "shards plan", "shards bench", "train/doctor.py", "train/study.py", "train/sbatch.py")
    assert "--quiet" in flags or name in (*shows, TRAINER, "train/lite0.py")  # they are for what they print, or a line
    assert "--json" in flags or name in ("prep/phantoms.py", "train/sbatch.py", TRAINER, "train/lite0.py")


def test_positive_takes_whole_numbers_above_0() -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--threads", type=positive, help="n")
    assert parser.parse_args(["--threads", "12"]).threads == 12
    for wrong in ("0", "-1", "1.5", "", "two", "²"):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--threads={wrong}"])
