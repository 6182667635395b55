"""Verify every byte of a shard set: python prep/check_shards.py DIR [--fast]. A thin call of shards.checking."""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import sys

from shards.checking import main

if __name__ == "__main__":
    run_cli(main, debug="--debug" in sys.argv)
