"""The flags that every analysis of a run has."""

import argparse
from pathlib import Path

from shards.command_line import Parser

# --help shows the others; --help-all these, too.
RARE = {"model", "weights", "taps", "banks", "batch", "precision", "force"}


def parser(description: str, *, split: str = "test") -> argparse.ArgumentParser:
    """A parser with the flags of every analysis."""
    made = Parser(description=description, rare=RARE)
    made.add_argument("run", type=Path, help="run directory, .safetensors file or DeepSpeed checkpoint folder")
    made.add_argument("--shards", help="shard set, a folder or a URL; default: the one of the training")
    made.add_argument("--model", help="timm name, for weights that do not say what they are of")
    made.add_argument(
        "--weights", choices=("best", "last"), default="best", help="end of a run directory (default best)"
    )
    made.add_argument("--split", default=split, help=f"images to look at (default {split})")
    made.add_argument(
        "--limit", type=_positive, help="at most so many images of a split, the first as stored (shuffled)"
    )
    made.add_argument("--layers", help="layer groups (or fine taps), by commas; default: all")
    made.add_argument(
        "--taps",
        choices=("groups", "fine"),
        default="groups",
        help="where features are taken: after each layer group, or finer: both branches of each transformer block",
    )
    made.add_argument(
        "--out",
        type=Path,
        help="folder for results; default: RUN/analysis, and a folder of its own there for weights that are not the "
        "best, another set or split, some images or layers, or fine taps: it replaces nothing of the whole run",
    )
    made.add_argument("--banks", type=Path, help="folder of feature banks to reuse; without a fitting one, an error")
    made.add_argument("--batch", type=_positive, default=64, help="images a forward pass (default 64)")
    made.add_argument("--threads", type=_positive, default=2, help="decoding threads (default 2)")
    made.add_argument("--device", help="cpu or cuda; default: cuda where there is one")
    made.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward passes")
    made.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default 0)")
    made.add_argument("--force", action="store_true", help="work it out again, even if it is there")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    made.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher gives it
    return made


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)
