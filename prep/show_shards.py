"""Draw a shard set, its classes and its splits: python prep/show_shards.py DIR. A thin call of shards.sheet."""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import sys

from shards.sheet import main

if __name__ == "__main__":
    run_cli(main, debug="--debug" in sys.argv)
