"""Tools on shard sets.

    python -m shards info data/shards/DDSM

Each command has its own --help; what a command needs is imported only when it runs.
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import importlib
import sys
from collections.abc import Sequence

from shards.command_line import Parser

# command -> (module whose main(argv) runs it, what it does)
COMMANDS = {
    "info": ("shards.info", "what a set is: task, classes, splits, sizes"),
    "check": ("shards.checking", "verify every byte, image, label and count, and that splits are apart"),
    "index": ("shards.reindex", "mend a set's indices, or index tars that others wrote"),
    "plan": ("shards.plan_cli", "who reads which sample when, on any number of ranks"),
    "bench": ("shards.bench", "images a second of reading, decoding and the whole pipeline here"),
    "view": ("shards.view", "look at augmented samples as the trainer gets them"),
    "sheet": ("shards.sheet", "contact sheet, histograms, class balance and split proof as one picture"),
    "reshard": ("shards.reshard", "write a set again with shards of another size"),
    "split": ("shards.folds", "split files for K folds or repeated splits; no tar is rewritten"),
    "merge": ("shards.merge", "join sets with equal classes into one"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    parser = Parser(
        prog="python -m shards",
        usage="python -m shards COMMAND ...",
        description="Tools on shard sets.",
        epilog="commands:\n"
        + "\n".join(f"  {name:8} {text}" for name, (_, text) in COMMANDS.items())
        + "\n\nexample: python -m shards info data/shards/DDSM\n\nEach command shows more with --help.",
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its own arguments")
    options = parser.parse_args(argv)
    return importlib.import_module(COMMANDS[options.command][0]).main(options.arguments) or 0


if __name__ == "__main__":
    run_cli(main, debug="--debug" in sys.argv)
