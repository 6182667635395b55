"""How an analysis of runs starts; the first import of its script, for the reason that shards/script.py gives."""

from shards.script import run_cli

import argparse
from collections.abc import Callable
from typing import NoReturn


def launch(made: argparse.ArgumentParser, main: Callable[[argparse.Namespace], int | None]) -> NoReturn:
    """Parse the command line and run `main`; a user's mistake ends in one line.

    Of several ranks the first runs `main`, the others extract their shares of its banks.
    """
    args = made.parse_args()

    def work() -> int | None:
        from analysis import ranks
        from analysis.session import help_out

        with ranks.joined():
            if ranks.rank() == 0:
                return main(args)
            help_out()
            return 0

    run_cli(work, debug=args.debug)
