"""Draw a shard set, its classes and its splits: python prep/show_shards.py DIR. A thin call of shards.sheet."""

import sys

from shards.errors import run_cli
from shards.sheet import main

if __name__ == "__main__":
    run_cli(main, debug="--debug" in sys.argv)
