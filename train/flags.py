"""The trainer's command line: what to do, DeepSpeed's settings, and a flag for every field of the config."""

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from shards import command_line
from train import config as configs

DEEPSPEED_FLAGS = ("global_batch", "micro_batch", "precision", "zero_stage", "offload", "gradient_clipping")
ABOUT = """Train a timm model on a shard set.

    ./launch.sh train --shards data/shards/DDSM --model resnet50.tv_in1k
    ./launch.sh train --resume runs/ddsm
    RANKS=2 ./launch.sh train --config mine.toml --lr 3e-4"""
MORE = """Exit codes: 0 done, 1 a failure, 2 a mistake that one line names, 75 stopped by a signal with a checkpoint
(--resume goes on)."""
# What --help shows; --help-all shows the rest, too.
RARE = {
    "params", "study_exact", "print_config", "stop_after_steps", "split", "ds_config", "micro_batch", "precision",
    "zero_stage", "offload", "gradient_clipping",
}  # fmt: skip
COMMON = {
    "shards", "image_size", "preset", "model", "start", "weights", "optimizer", "lr", "epochs", "seed", "name", "out",
}  # fmt: skip


# What others call our flags.
ELSEWHERE = {
    "learning_rate": "lr", "max_lr": "lr", "batch_size": "global_batch", "train_batch_size": "global_batch",
    "batch": "global_batch", "epochs_num": "epochs", "num_epochs": "epochs", "max_epochs": "epochs",
    "num_workers": "threads", "workers": "threads", "arch": "model", "backbone": "model", "network": "model",
    "data": "shards", "dataset": "shards", "data_dir": "shards", "data_path": "shards",
    "output": "out", "output_dir": "out",
    "save_dir": "out", "run_name": "name", "lr_scheduler": "schedule", "scheduler": "schedule", "sched": "schedule",
    "opt": "optimizer", "wd": "weight_decay", "warmup": "warmup_epochs", "img_size": "image_size",
    "resolution": "image_size", "pretrained": "start", "init": "start", "checkpoint": "resume", "amp": "precision",
    "bf16": "precision", "fp16": "precision", "clip_grad": "gradient_clipping", "grad_clip": "gradient_clipping",
    "accumulate": "micro_batch", "gradient_accumulation": "micro_batch", "smoothing": "label_smoothing",
    "model_ema": "ema", "ema_decay": "ema", "augmentation": "preset", "find_lr": "lr_finder",
    "linear_probe": "freeze_backbone",
}  # fmt: skip


class Parser(command_line.Parser):
    """The parser of every script, but its mistakes are ValueErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise ValueError(f"{message} (--help-all lists all flags)")


def parser() -> Parser:
    """All flags: what to do, DeepSpeed's, and one a field of the config; `--help` shows the common ones."""
    out = Parser(
        prog="train/run.py", usage="./launch.sh train [flags]", description=ABOUT, epilog=MORE, add_help=False,
        rare={*RARE, *(name for name in configs.fields() if name not in COMMON)},
    )  # fmt: skip
    does = out.add_argument_group("what to do")
    does.add_argument("--config", metavar="FILE", help="JSON, TOML, or a run's config.json; flags win")
    does.add_argument("--params", metavar="FILE", help="params.json of the published study; flags win over it")
    does.add_argument(
        "--study-exact", action="store_true", help="with --params: the study's own behaviour where ours mends it"
    )
    does.add_argument("--print-config", action="store_true", help="print the checked config as JSON and stop")
    does.add_argument("--resume", metavar="RUN", help="go on from a run's newest whole checkpoint")
    does.add_argument("--stop-after-steps", type=int, metavar="K", help="stop, with a checkpoint, after K steps in all")
    does.add_argument("--test", metavar="RUN", help="score a run or weights on a split, and stop")
    does.add_argument(
        "--lr-finder",
        nargs="?",
        const="grid",
        metavar="grid|range",
        help="look for a learning rate, and stop",
    )
    does.add_argument("--split", default="test", help="split for --test (default test)")
    command_line.add_debug_flag(does)
    does.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    speed = out.add_argument_group("ds_config.json (flags change this run's copy)")
    speed.add_argument("--ds-config", metavar="FILE", help="another ds_config.json")
    speed.add_argument("--global-batch", type=int, metavar="N", help="images a step, all ranks (train_batch_size)")
    speed.add_argument(
        "--micro-batch", type=int, metavar="N", help="images a forward pass; none: the rank's whole part"
    )
    speed.add_argument("--precision", metavar="fp32|bf16|fp16", help="of the forward pass (torch_autocast)")
    speed.add_argument("--zero-stage", type=int, metavar="0-3", help="zero_optimization.stage; 0: plain data parallel")
    speed.add_argument(
        "--offload",
        metavar="none|optimizer|parameters",
        help="what lies in the machine's memory: optimizer states (ZeRO 1 to 3), parameters, too (ZeRO 3)",
    )
    speed.add_argument("--gradient-clipping", type=float, metavar="NORM", help="largest gradient norm; 0: none")
    for section, kind in configs.sections():
        group = out.add_argument_group(section, (kind.__doc__ or "").splitlines()[0])
        for name, field in kind.model_fields.items():
            _add_flag(group, name, field)
    return out


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    flag = "--" + name.replace("_", "-")
    default = field.get_default(call_default_factory=True)
    shown = ",".join(f"{each:g}" for each in default) if isinstance(default, tuple) else default
    text = (field.description or "") + (f" (default {shown})" if shown not in (None, "") else "")
    text = text.replace("%", "%%")
    if field.annotation is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        return
    choices = "|".join(get_args(field.annotation)) if get_origin(field.annotation) is Literal else _metavar(name, field)
    group.add_argument(flag, default=argparse.SUPPRESS, metavar=choices, help=text)


def _metavar(name: str, field: FieldInfo) -> str:
    kinds = str(field.annotation)
    return (
        "N" if "int" in kinds and "str" not in kinds else "X" if "float" in kinds else name.rpartition("_")[2].upper()
    )


def nearest_flag(flag: str, known: Sequence[str]) -> str:
    """`did you mean --X?` by what others call it, or by its letters; empty where none is near."""
    word = flag.lstrip("-").replace("-", "_").lower()
    if close := difflib.get_close_matches(word, ELSEWHERE, n=1, cutoff=0.9):
        return f"did you mean --{ELSEWHERE[close[0]].replace('_', '-')}?"
    return command_line.nearest(flag, known).removeprefix(": ")


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """What to do, and the config's fields that were given. Raises ValueError for unknown flags, with the nearest."""
    arguments = parser()
    command_line.complete(arguments)
    if {"--help", "-h", "--help-all"} & set(argv):
        if os.environ.get("RANK", "0") == "0":
            print(arguments.whole_help() if "--help-all" in argv else arguments.format_help(), end="")
        sys.exit(0)
    known, unknown = arguments.parse_known_args(argv)
    if unknown:
        flag = next((each for each in unknown if each.startswith("--")), unknown[0]).split("=")[0]
        flags = [
            option for action in arguments._actions for option in action.option_strings if option != "--local_rank"
        ]
        hint = near if flag[:2] == "--" and (near := nearest_flag(flag, flags)) else "--help-all lists all flags"
        raise ValueError(f"unknown flag {flag}: {hint}")
    given = {name: getattr(known, name) for name in configs.fields() if hasattr(known, name)}
    if known.lr_finder not in (None, "grid", "range"):
        raise ValueError(f"--lr-finder: got {known.lr_finder!r}; give grid or range")
    if known.lr_finder is not None and (known.resume or known.test):
        raise ValueError("--lr-finder starts afresh: drop --resume and --test, or give --config RUN/config.json")
    if known.stop_after_steps is not None and known.stop_after_steps < 1:
        raise ValueError(f"--stop-after-steps: got {known.stop_after_steps}; give 1 or more")
    return known, given
