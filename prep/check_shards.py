"""Verify every byte of a shard set: python prep/check_shards.py DIR [--fast]. A thin call of shards.checking."""

import sys

from shards.checking import main
from shards.errors import run_cli

if __name__ == "__main__":
    run_cli(main, debug="--debug" in sys.argv)
