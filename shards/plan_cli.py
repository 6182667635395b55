"""`python -m shards plan DIR --world 64 --epoch 3 --step 1000`: who reads what, and proof that an epoch is whole.

Reads the manifest of a shard set and, where labels are replaced or a view is chosen, its indices; writes nothing.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shards.choosing import Choice
from shards.command_line import Parser, add_debug_flag
from shards.plan import ORDERS, TAILS, Plan, PlanConfig, Slice, check_world, rank_places
from shards.shardset import ShardSet
from shards.words import counted

PROVED_UNASKED = 1_000_000  # samples
STREAM_CHUNK = 1 << 20  # samples drawn at a time by the proof


@dataclass(frozen=True)
class Proof:
    """How often the samples of an epoch come: `missing` never (`allowed` by the tail), `repeated` more than once."""

    epoch: int
    world: int
    read: int
    missing: int
    allowed: int
    repeated: int

    @property
    def holds(self) -> bool:
        """Whether each sample comes exactly once but for those that the tail leaves out."""
        return not self.repeated and self.missing == self.allowed

    def __str__(self) -> str:
        if not self.holds:
            missing = f"{counted(self.missing, 'sample')} missing ({self.allowed} expected)"
            return f"NOT exactly once: {missing}, {self.repeated} more than once"
        left_out = f", {self.missing} left out by the tail 'drop'" if self.missing else ""
        who = f"the {self.world} ranks read" if self.world > 1 else "the rank reads"
        return f"proved: in epoch {self.epoch} {who} {counted(self.read, 'sample')} exactly once{left_out}"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        prog="python -m shards plan",
        description="Show who reads which sample when, and prove that an epoch is whole.",
        epilog="example: python -m shards plan data/shards/DDSM --world 64 --epoch 3 --prove",
    )
    parser.add_argument("shards", help="shard set, a folder or a URL")
    parser.add_argument("--split", default="train", help="split to plan")
    parser.add_argument("--world", type=int, default=1, help="ranks")
    parser.add_argument("--epoch", type=int, default=0, help="counted from 0")
    parser.add_argument("--step", type=int, default=0, help="steps into that epoch, from its first whole batch")
    parser.add_argument("--global-batch", type=int, default=64, help="images a step, all ranks")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--order", choices=ORDERS, default="global", help="of an epoch")
    parser.add_argument("--tail", choices=TAILS, default="carry", help="what becomes of an epoch's last, short batch")
    parser.add_argument("--window", type=int, default=16, help="shards a window of the windowed order")
    parser.add_argument("--partitions", type=int, default=64, help="of the windowed order")
    parser.add_argument("--fraction", type=float, default=1.0, help="share of the samples, by whole groups")
    parser.add_argument("--fraction-seed", type=int, default=0, help="which share")
    parser.add_argument("--exclude", type=Path, help="text file of keys to leave out")
    parser.add_argument("--balance", choices=("none", "classes"), default="none", help="classes: each equally often")
    parser.add_argument("--cache", type=Path, help="folder for what is fetched from a URL")
    parser.add_argument(
        "--prove",
        action=argparse.BooleanOptionalAction,
        help="draw the whole epoch for every rank and count each sample (default: up to a million samples)",
    )
    parser.add_argument("--json", action="store_true", help="print the plan and the proof as one JSON document")
    add_debug_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the plan; 0, or 1 where the proof fails."""
    args = parse_args(argv)
    split = ShardSet(args.shards, cache=args.cache).split(args.split)
    config = PlanConfig(args.global_batch, args.seed, args.order, args.tail, args.window, args.partitions)
    if args.epoch < 0 or args.step < 0:
        raise ValueError(f"epoch {args.epoch}, step {args.step}: give 0 or more")
    check_world(args.global_batch, args.world)
    if args.prove is True and args.balance != "none":
        raise ValueError("--prove counts each sample once, --balance repeats the rare: drop one of the two")
    plan = Choice(args.fraction, args.fraction_seed, args.exclude, args.balance).plan(split, config)
    if not args.json:
        print("\n".join(describe(plan, args.world, args.epoch, args.step)))
    small = plan.num_samples <= PROVED_UNASKED and args.balance == "none"
    proof = prove(plan, args.world, args.epoch) if args.prove or (args.prove is None and small) else None
    if args.json:
        print(json.dumps(document(plan, args.world, args.epoch, args.step, proof), indent=1))
    elif proof is not None:
        print(proof)
    return int(proof is not None and not proof.holds)


def first_consumed(plan: Plan, epoch: int, step: int) -> int:
    """Samples consumed before the step: whole batches before the epoch's first, and `step` more."""
    batch = plan.config.global_batch
    return (-(-epoch * plan.samples_per_epoch // batch) + step) * batch


def document(plan: Plan, world: int, epoch: int, step: int, proof: Proof | None) -> dict[str, Any]:
    """The plan in numbers, the positions that each rank reads at the step (null: padding), and the proof if drawn."""
    consumed = first_consumed(plan, epoch, step)
    slices = [plan.slice(consumed, world, rank) for rank in range(world)]
    return {
        "samples": plan.num_samples,
        "samples_per_epoch": plan.samples_per_epoch,
        "config": asdict(plan.config),
        "partitions": plan.partitions,
        "world": world,
        "epoch": epoch,
        "step": consumed // plan.config.global_batch,
        "consumed": consumed,
        "ranks": [
            [int(position) if valid else None for position, valid in zip(own.positions, own.valid, strict=True)]
            for own in slices
        ],
        "proof": None if proof is None else asdict(proof) | {"holds": proof.holds},
    }


def describe(plan: Plan, world: int, epoch: int, step: int) -> list[str]:
    """Lines: the plan in numbers, then what each rank (at most 16 of them) reads at that step."""
    config, batch = plan.config, plan.config.global_batch
    consumed = first_consumed(plan, epoch, step)
    order: str = config.order
    if order == "windowed":
        lowered = (
            "" if plan.partitions == config.partitions else f", lowered from {config.partitions} to divide {batch}"
        )
        order += f" (windows of {counted(config.window, 'shard')}, {counted(plan.partitions, 'partition')}{lowered})"
    shown = range(min(world, 16))
    held = f"{counted(plan.num_samples, 'sample')} in {counted(plan.shard_starts.size - 1, 'shard')}"
    return [
        f"{held}, {plan.samples_per_epoch} an epoch; order {order}, tail {config.tail}, seed {config.seed}",
        f"global batch {batch} over {counted(world, 'rank')}; "
        f"step {consumed // batch} begins after {counted(consumed, 'sample')}",
        *(_rank_line(plan, rank, plan.slice(consumed, world, rank)) for rank in shown),
        *([f"… and {counted(world - 16, 'more rank')}"] if world > 16 else []),
    ]


def _rank_line(plan: Plan, rank: int, own: Slice) -> str:
    shards = np.unique(np.searchsorted(plan.shard_starts, own.positions[own.valid], side="right") - 1)
    named = ", ".join(map(str, shards[:8])) + (", …" if shards.size > 8 else "")
    epochs = "-".join(map(str, np.unique(own.epochs)))
    read = counted(int(own.valid.sum()), "sample")
    return f"rank {rank}: {read} of epoch {epochs} from {counted(shards.size, 'shard')} ({named})"


def prove(plan: Plan, world: int, epoch: int) -> Proof:
    """Draw the epoch rank by rank and count how often each sample comes. A byte a sample."""
    missing, repeated = count_epoch(plan, world, epoch)
    allowed = plan.num_samples % plan.config.global_batch if plan.config.tail == "drop" else 0
    return Proof(epoch, world, plan.num_samples - missing, missing, allowed, repeated)


def count_epoch(plan: Plan, world: int, epoch: int) -> tuple[int, int]:
    """How many samples the ranks together never read in an epoch, and how many more than once."""
    batch, length = plan.config.global_batch, plan.samples_per_epoch
    seen = np.zeros(int(plan.shard_starts[-1]), np.uint8)
    first, stop = epoch * length // batch, -(-(epoch + 1) * length // batch)
    for rank in range(world):
        places = rank_places(batch, world, rank)
        stride = max(STREAM_CHUNK // max(places.size, 1), 1)
        for step in range(first, stop, stride):
            starts = np.arange(step, min(step + stride, stop)) * batch
            drawn = plan.draw((starts[:, None] + places).ravel())
            positions = drawn.positions[drawn.valid & (drawn.epochs == epoch)]
            twice = seen[positions] > 0
            seen[positions] = np.where(twice, 2, 1)
            values, counts = np.unique(positions, return_counts=True)
            seen[values[counts > 1]] = 2
    return plan.num_samples - int((seen > 0).sum()), int((seen == 2).sum())
