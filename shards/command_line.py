"""The parser of every script: a mistake is one line with the nearest word, Tab completes, help fits a screen."""

import argparse
import contextlib
import difflib
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from shards.errors import EXIT_USER_ERROR, flush_output

WIDTH = 100  # columns of a help text, where the terminal has them
CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)$")


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations; mistakes end in `error: …` on one line with exit code 2.

    `rare` names flags (as attributes) that `--help` leaves out and `--help-all` shows, as `--help` says in its last
    line; a group whose title is among them is left out whole.
    """

    def __init__(self, *, rare: Iterable[str] = (), **options: Any) -> None:
        given: dict[str, Any] = {"allow_abbrev": False, "formatter_class": Help, "prog": called()}
        super().__init__(**(given | options))
        self.rare = frozenset(rare)
        if self.rare:
            self.rare |= {"help_all"}
            self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show every flag and exit")

    def format_help(self) -> str:
        """What `--help` prints: without the rare flags and what is said of groups."""
        if not self.rare:
            return self.whole_help()
        hidden = [action for action in self._actions if action.dest in self.rare]
        for group in self._action_groups:
            hidden += group._group_actions if group.title in self.rare else []
        kept = [(action, action.help) for action in hidden]
        said = [(group, group.description) for group in self._action_groups]
        try:
            for action in hidden:
                action.help = argparse.SUPPRESS
            for group, _ in said:
                group.description = None
            return f"{self.whole_help()}\n--help-all shows every flag.\n"
        finally:
            for action, text in kept:
                action.help = text
            for group, text in said:
                group.description = text

    def whole_help(self) -> str:
        """What `--help-all` prints."""
        return super().format_help()

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The flags; also answers the shell when Tab is pressed (`./launch.sh completion`)."""
        given = sys.argv[1:] if args is None else args
        hands_on = any(action.nargs == argparse.REMAINDER for action in self._actions)
        if not (hands_on and given):  # else the parser that they are handed to answers
            complete(self)
        if not hands_on:
            self._refuse_unknown(given)  # before argparse misses the required ones
        return super().parse_args(given, namespace)

    def _refuse_unknown(self, given: Sequence[str]) -> None:
        for word in given:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag != "--" and flag not in self._option_string_actions:
                self.error(f"unknown flag {flag}{nearest(flag, flags_of(self))}")

    def _print_message(self, message: str, file: Any = None) -> None:
        with contextlib.suppress(BrokenPipeError):
            super()._print_message(message, file)
        flush_output()  # `--help | head` ends without a word

    def error(self, message: str) -> NoReturn:
        """One line instead of the usage."""
        if found := CHOICE.search(message):
            choices = [word.strip(" '") for word in found[2].split(",")]
            message = message[: found.start()] + f"got {found[1]!r}; choose from {', '.join(choices)}"
            message += nearest(found[1], choices)
        print(f"error: {message[0].lower()}{message[1:]} (--help shows all)", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def local_folder(text: str) -> Path:
    """The type of an argument that must be a folder of this machine: a URL is told as one, not looked for."""
    if "://" in text:
        from shards.redaction import shown

        raise argparse.ArgumentTypeError(
            f"{shown(text)} is a URL, and this works on a folder of this machine: copy the set here first (info, plan, "
            "bench and sheet read URLs)"
        )
    return Path(text)


def positive(text: str) -> int:
    """The type of an argument that counts: a whole number above 0."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def add_output_flags(parser: argparse._ActionsContainer, what: str = "what was made") -> None:
    """--json (which prints `what`), --quiet and --debug."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as one JSON document, no progress")
    parser.add_argument("--quiet", action="store_true", help="no progress, and no word where all is well")
    add_debug_flag(parser)


def add_debug_flag(parser: argparse._ActionsContainer) -> None:
    """--debug, which every script has."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def tell(options: argparse.Namespace, made: dict[str, Any], text: str) -> None:
    """Print what a tool made as its --json and --quiet ask: the document, nothing, or the text."""
    if options.json:
        print(json.dumps(made, indent=1, ensure_ascii=False))
    elif not options.quiet:
        print(text)


def called(tool: str = "") -> str:
    """How the running script is called; `python -m shards TOOL` where that is how it was started."""
    script = Path(sys.argv[0])
    if script.suffix != ".py" or script.name == "__main__.py":
        return f"python -m shards {tool}" if tool else script.name
    return f"python {script.parent.name}/{script.name}"


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        parser._print_message(parser.whole_help(), sys.stdout)
        parser.exit()


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell and end, where it asks what may follow."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The flags that a help text shows."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    return [option for action in shown for option in action.option_strings]


def nearest(word: str, known: Iterable[str]) -> str:
    """`: did you mean X?`, or nothing where none is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else ""


class Help(argparse.HelpFormatter):
    """One line of usage, prose wrapped and examples kept, defaults told, as wide as the terminal up to WIDTH."""

    def __init__(self, prog: str) -> None:
        columns = int(os.environ.get("COLUMNS", "0")) or _terminal_columns()
        super().__init__(prog, max_help_position=28, width=min(columns, WIDTH) - 2)

    def _format_usage(self, usage: Any, actions: Iterable[argparse.Action], groups: Any, prefix: Any) -> str:
        if usage is None:
            needed = [action for action in actions if action.required or not action.option_strings]
            words = [
                " ".join([*action.option_strings[:1], self._format_args(action, self._metavar(action))])
                for action in needed
            ]
            usage = " ".join(["%(prog)s", *words, "[flags]"])
        return super()._format_usage(usage, actions, groups, prefix)

    def _metavar(self, action: argparse.Action) -> str:
        if action.option_strings:
            return self._get_default_metavar_for_optional(action)
        return self._get_default_metavar_for_positional(action)

    def _get_default_metavar_for_positional(self, action: argparse.Action) -> str:
        return action.dest.upper()

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        kinds = {int: "N", positive: "N", float: "X", Path: "PATH", local_folder: "PATH"}
        return kinds.get(action.type) or action.dest.rpartition("_")[2].upper()

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        silent = action.default is None or isinstance(action.default, bool) or action.default in ([], argparse.SUPPRESS)
        told = "default" in text or silent
        if told or not action.option_strings:
            return text
        default = action.default
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default).replace("%", "%%")
        return f"{text} (default {shown})"

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs of prose are wrapped; indented lines, lists and examples, which are to be copied, stay."""
        return "\n\n".join(
            part if "\n " in f"\n{part}" or part.startswith("example:") else "\n".join(textwrap.wrap(part, width))
            for part in text.strip().split("\n\n")
        )


def _terminal_columns() -> int:
    try:
        return os.get_terminal_size().columns or WIDTH
    except OSError:
        return WIDTH
