"""A training as a Slurm job that is requeued, and goes on, when it is preempted or its time is up.

    ./launch.sh sbatch --nodes 2 --gpus-per-node 8 --time 24:00:00 -- --shards data/shards/DDSM --name ddsm
    ./launch.sh sbatch --partition gpu --dry-run -- --resume runs/ddsm       # shows the script, submits nothing

What comes before `--` is Slurm's, what comes after it the trainer's, and is checked here, not hours later in the queue.
Writes OUT/NAME.sbatch and hands it to sbatch; the job's words go to OUT/NAME.slurm.log. Exit codes: 0 submitted, 2 a
mistake that one line names.
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shards.aside import write_aside
from shards.command_line import Parser, add_debug_flag
from shards.fetching import shown_place
from shards.plan import check_world
from train.data_config import shares
from train.flags import parse_args as trainer_flags
from train.flags import parser as trainer_parser
from train.run import open_shards, resolve, run_name

ROOT = Path(__file__).resolve().parents[1]
# sbatch's flags that are taken as they are; the rest through --option.
PASSED_ON = ("partition", "account", "qos", "time", "gpus_per_node", "cpus_per_task", "mem", "constraint", "nodelist")
SCRIPT = """#!/usr/bin/env bash
# Written by ./launch.sh sbatch; submit it again to go on with the run by hand.
{directives}
cd {folder} || exit 2
{environment}flags=({flags})
[[ ! -f {run}/config.json ]] || flags=(--resume {run})
{root}/launch.sh train "${{flags[@]}}" &
trainer=$!
trap 'kill -USR1 "$trainer" 2>/dev/null' USR1 TERM # Slurm's warning: the ranks write a checkpoint and end with code 75
code=0
while kill -0 "$trainer" 2>/dev/null; do
    code=0
    wait "$trainer" || code=$?
done
# Not where the job was cancelled: a requeue would bring it back.
state=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)
if ((code == 75)) && [[ $state == RUNNING || $state == PREEMPTED ]]; then
    scontrol requeue "$SLURM_JOB_ID" && exec sleep 60 # Slurm ends it here
fi
exit "$code"
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Slurm's words and, behind --, the trainer's."""
    parser = Parser(
        prog="./launch.sh sbatch",
        description="Submit a training to Slurm. It is requeued, and goes on, when it is preempted or its time is up.",
        epilog="example: ./launch.sh sbatch --gpus-per-node 8 -- --shards data/shards/DDSM",
    )
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", help="ranks on each machine; none: ranks on the CPU")
    parser.add_argument(
        "--ranks-per-node", type=int, default=1, metavar="N", help="without GPUs: ranks on each machine"
    )
    parser.add_argument("--cpus-per-task", type=int, metavar="N", help="cores on each machine")
    parser.add_argument("--time", metavar="D-HH:MM:SS", help="longest time, then Slurm stops the job; it is requeued")
    parser.add_argument("--partition", help="partition of the cluster")
    parser.add_argument("--account", help="account that pays")
    parser.add_argument("--qos", help="quality of service that the job asks for")
    parser.add_argument("--mem", help="memory of each machine, as in 64G")
    parser.add_argument("--constraint", help="features the machines must have")
    parser.add_argument("--nodelist", help="the machines by name")
    parser.add_argument(
        "--option", action="append", default=[], metavar="'--flag=value'", help="another one of sbatch's"
    )
    parser.add_argument("--warn-seconds", type=int, default=180, help="seconds before the end, for the last checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="show the script and stop")
    add_debug_flag(parser)
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    trainers = {option for action in trainer_parser()._actions for option in action.option_strings}
    for word in given[:cut]:
        if (flag := word.partition("=")[0]) in trainers and flag not in parser._option_string_actions:
            parser.error(f"{flag} is the trainer's: put it behind --, as in ./launch.sh sbatch --nodes 2 -- {flag} …")
    args = parser.parse_args(given[:cut])
    args.flags = given[cut + 1 :]
    return args


def script_of(args: argparse.Namespace, run: Path, flags: Sequence[str]) -> str:
    """The batch script of a run directory; `flags`: the trainer's for its first start."""
    run, log = run.absolute(), run.absolute().with_name(f"{run.name}.slurm.log")
    words = [f"--job-name={run.name}", f"--nodes={args.nodes}", "--ntasks-per-node=1"]
    given = {name: value for name in PASSED_ON if (value := getattr(args, name)) is not None}
    words += [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    words += [f"--signal=B:USR1@{args.warn_seconds}", "--requeue", "--open-mode=append"]
    words += [f"--output={str(log).replace('%', '%%')}", *args.option]
    environment = "" if args.gpus_per_node else f"export RANKS={args.ranks_per_node}\n"
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {word}" for word in words), root=shlex.quote(str(ROOT)),
        folder=shlex.quote(str(Path.cwd())), environment=environment, flags=shlex.join(flags),
        run=shlex.quote(str(run)),
    )  # fmt: skip


def run_of(flags: Sequence[str], ranks: int) -> Path:
    """The run directory that the trainer's flags lead to. Raises ValueError for what the trainer would refuse."""
    told, given = trainer_flags(flags)
    if told.test is not None or told.print_config or told.lr_finder is not None:
        raise ValueError("sbatch is for trainings: run --test, --lr-finder and --print-config with ./launch.sh train")
    config, settings = resolve(told, given)
    for place in (config.data.shards, *(shares(config.data.mix) if config.data.mix else ())):
        if place is not None and shown_place(place).rstrip("/") != place.rstrip("/"):
            raise ValueError(
                f"{shown_place(place)}: the job's script would hold the URL's user, password or query, and a requeued "
                "job goes on without; leave them out: the environment has a place for credentials"
            )
    check_world(settings.train_batch_size, ranks)
    settings.micro_batch(ranks)
    if told.resume is not None:
        return Path(told.resume)
    run = Path(config.training.out) / run_name(config, open_shards(config))
    if run.exists():
        raise ValueError(f"{run} exists: -- --resume {run} goes on with it, --name NAME starts another")
    return run


def submit(script: Path) -> str:
    """The job's number. Raises ValueError with sbatch's own words."""
    if shutil.which("sbatch") is None:
        raise ValueError(f"no sbatch here: {script} is written; on a login node: sbatch {script}")
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"sbatch refused {script}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]


def main(args: argparse.Namespace) -> int:
    """Check, write, submit, tell."""
    if args.nodes < 1 or args.ranks_per_node < 1 or args.warn_seconds < 1:
        raise ValueError("--nodes, --ranks-per-node and --warn-seconds: give 1 or more")
    if wrong := [word for word in args.option if not re.fullmatch(r"--[a-z][a-z0-9-]*(=\S+)?", word)]:
        raise ValueError(f"--option {wrong[0]}: write it as sbatch has it, in one word: --option=--exclusive")
    run = run_of(args.flags, args.nodes * (args.gpus_per_node or args.ranks_per_node))
    text = script_of(args, run, args.flags)
    if args.dry_run:
        print(text, end="")
        return 0
    run.parent.mkdir(parents=True, exist_ok=True)
    script = run.with_name(f"{run.name}.sbatch")
    write_aside(script, text.encode())
    number = submit(script)
    print(f"job {number}: {script}, its words in {run.with_name(f'{run.name}.slurm.log')}")
    print(f"watch: squeue --jobs {number}; requeue: scancel --signal=USR1 --batch {number}; stop: scancel {number}")
    return 0


if __name__ == "__main__":
    arguments = parse_args()
    run_cli(lambda: main(arguments), debug=arguments.debug)
