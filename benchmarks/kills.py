"""Are the final weights those of an undisturbed run, whatever was killed and when?

    python benchmarks/kills.py --kills 50 --seed 1          # two ranks; about half a minute a kill
    python benchmarks/kills.py --kills 8 --zero-stage 2

A tiny net trains on phantoms under ./launch.sh, once undisturbed, then with SIGKILL to a rank, to the launcher or to
all of it, in steps, in validation and while a checkpoint is written (each in turn), and `--resume` after each. When a
run comes to its end before the kills are through, the next one begins. Weights, losses and validations must be equal
to the last digit. Prints what was killed when; exit code 1 with any difference.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from soak import conversion, kill, last_step, launch, record_of, records, shell, started

TRAIN = ["--model", "test_vit", "--start", "ri", "--image-size", 32, "--global-batch", 8, "--val-every", 0.25]
TRAIN += ["--checkpoint-every", 5, "--log-every", 1, "--no-tensorboard"]
MOMENTS = ("step", "validation", "checkpoint")
PATIENCE_SECONDS = 300


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kills at chosen and random moments; the weights must be the same.")
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--images", type=int, default=300, help="phantoms")
    parser.add_argument("--epochs", type=int, default=8, help="of each training")
    parser.add_argument("--zero-stage", type=int, default=0, help="of each training")
    parser.add_argument("--seed", type=int, default=1, help="of the moments and the victims")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    chance, begun, done = random.Random(args.seed), time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="medshard-kills-") as folder:
        work = Path(folder)
        shell("prep/phantoms.py", "--dataset", "DDSM", "--out", work / "raw", "--num-images", args.images)
        shell(*conversion(work / "raw", work / "shards"))
        train = ["--shards", work / "shards", "--out", work / "runs", "--epochs", args.epochs, *TRAIN]
        train += ["--zero-stage", args.zero_stage]
        launch(*train, "--name", "calm")
        expected, rounds, equal = record_of(work / "runs" / "calm"), 0, True
        while done.total() < args.kills:
            run = work / "runs" / f"beaten-{rounds}"
            beat(run, train, chance, args.kills, done)
            rounds, equal = rounds + 1, equal and record_of(run) == expected
            shutil.rmtree(run)
        print(f"seed {args.seed}, ZeRO {args.zero_stage}, 2 ranks: {done.total()} kills in {rounds} runs of "
              f"{len(expected['train'])} steps, {time.monotonic() - begun:.0f} s")  # fmt: skip
        print(", ".join(f"{what} {count}" for what, count in sorted(done.items())))
        print(f"weights, losses and validations equal to the last digit: {equal}")
    return int(not equal)


def beat(run: Path, train: list[Any], chance: random.Random, kills: int, done: Counter[str]) -> None:
    """One training to its end, with kills until there were as many as are wanted."""
    while not (run / "results.json").exists():
        words = ["--resume", run] if (run / "config.json").exists() else [*train, "--name", run.name]
        with started(*words) as process:
            if done.total() < kills:
                moment = MOMENTS[done.total() % len(MOMENTS)]
                if wait_for(run, moment, process, chance):
                    what = kill(process.pid, chance)
                    done[f"{what} in a {moment}"] += 1
                    print(f"kill {done.total()}: {what} in a {moment}, step {last_step(run)}", flush=True)
            process.wait()


def wait_for(run: Path, moment: str, process: "subprocess.Popen[bytes]", chance: random.Random) -> bool:
    """Whether the moment came before the training ended."""
    before, deadline = last_step(run), time.monotonic() + PATIENCE_SECONDS
    wanted = before + chance.randint(1, 12)
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {moment} in {PATIENCE_SECONDS} s")
        if moment == "checkpoint" and any((run / "checkpoints").glob("*.part")):
            return True
        if moment == "step" and last_step(run) >= wanted:
            time.sleep(chance.uniform(0, 0.05))
            return True
        # A validation begins when the step before it is recorded; it ends with a record of its own.
        if moment == "validation" and last_step(run) >= wanted and validation_due(run):
            return True
        time.sleep(0.002)
    return False


def validation_due(run: Path) -> bool:
    """Whether the newest step ends a part of an epoch after which the run validates, and has not yet."""
    found = [each for each in records(run) if each["kind"] in ("train", "val")]
    if len(found) < 2 or found[-1]["kind"] == "val":
        return False
    now, earlier = found[-1]["epoch"], next((e["epoch"] for e in found[-2::-1] if e["step"] < found[-1]["step"]), 0.0)
    return int(now * 4 + 1e-9) > int(earlier * 4 + 1e-9)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
