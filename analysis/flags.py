"""The flags that every analysis of a run has."""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shards.command_line import Parser, add_output_flags, positive
from train.hooks import HOWS, How

# --help shows the others; --help-all these, too.
RARE = {"model", "weights", "taps", "banks", "batch", "precision", "force", "local_rank"}
IMAGES = ("split", "limit", "taps", "banks", "batch", "threads", "device", "precision")


def parser(
    description: str, *, split: str = "test", without: Collection[str] = (), rare: Collection[str] = ()
) -> argparse.ArgumentParser:
    """A parser with the flags of every analysis; the script's own come first in its help.

    `without` names flags that would do nothing in it: they are refused, and their defaults stand. `rare` are flags of
    its own that `--help` leaves to `--help-all`.
    """
    made = Parser(description=description, rare={*RARE, *rare})
    made.add_argument("run", type=Path, help="run directory, .safetensors file or DeepSpeed checkpoint folder")
    shared = made.add_argument_group("of every analysis")

    def add(flag: str, **options: Any) -> None:
        name = flag.removeprefix("--")
        if name in without:
            made.set_defaults(**{name: options.get("default")})
        else:
            shared.add_argument(flag, **options)

    add("--shards", help="shard set, a folder or a URL; default: the one of the training")
    add("--model", help="timm name, for weights that do not say what they are of")
    add("--weights", choices=("best", "last"), default="best", help="end of a run directory")
    add("--split", default=split, help="split to look at")
    add("--limit", type=positive, help="at most so many images of a split, the first as stored (shuffled)")
    add("--layers", help="layer groups (or fine taps), by commas; default: all")
    add(
        "--taps",
        choices=("groups", "fine"),
        default="groups",
        help="where features are taken: after each layer group, or finer: both branches of each transformer block",
    )
    add("--out", type=Path, help="where the results go (default RUN/analysis; of a part of a run, a folder there)")
    add("--banks", type=Path, help="folder of feature banks to reuse; without a fitting one, an error")
    add("--batch", type=positive, default=64, help="images a forward pass")
    add("--threads", type=positive, default=2, help="decoding threads")
    add("--device", choices=("cpu", "cuda"), help="cpu or cuda; default: cuda where there is one")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the forward passes")
    add("--seed", type=int, default=0, help="seed of everything that is drawn")
    add("--force", action="store_true", help="work it out again, even if it is there")
    add_output_flags(shared, "the result")
    made.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher gives it
    return made


def add_pool(made: argparse.ArgumentParser, default: How, why: str = "") -> None:
    """--pool: how tokens become one vector, and `why` the default is another than elsewhere."""
    made.add_argument("--pool", choices=HOWS, default=default, help=f"what of a transformer's tokens{why}")
