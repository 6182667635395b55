"""A grid of runs with stable names: runs what is not done, goes on with what was stopped, and tells it as a table.

    python train/study.py examples/studies/figure.toml --parallel 2
    python train/study.py examples/studies/figure.toml --on slurm --slurm partition=gpu gpus_per_node=1 timeout_min=600

The file has `name`, a table `[base]` of the trainer's flags (with _ for -), and a table `[grid]` of flags with lists of
values; every combination is a run at runs/studies/NAME/. Several `[[grid]]` tables are joined, `[[skip]]` tables leave
combinations out, and start ri takes no `weights`. Reads the results of the runs; writes study.json and study.md beside
them. The same command again does only what is missing.
Exit codes: 0 all is done, 1 some runs failed, 75 a signal stopped a run, 130 Ctrl-C: the same command goes on.
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import itertools
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from shards.aside import write_aside
from shards.command_line import Parser, add_debug_flag, positive
from shards.fetching import shown_place
from train import config as configs
from train.config_file import nearest
from train.flags import DEEPSPEED_FLAGS
from train.stopping import EXIT_PREEMPTED
from train.study_run import ROOT, STOPPED, TAIL, Run
from train.study_table import last_line, rows, table, unfinished

SET_BY_STUDY = ("name", "out")
SHARED = (
    "name",
    "timeout_min",
    "mem_gb",
    "nodes",
    "cpus_per_task",
    "gpus_per_node",
    "tasks_per_node",
    "stderr_to_stdout",
)


class Study(NamedTuple):
    """A study file, read. `axes`: the flags that vary."""

    name: str
    folder: Path
    runs: tuple[Run, ...]
    axes: tuple[str, ...]

    def cells(self) -> Iterator[tuple[dict[str, Any], Run]]:
        """Every run with its values on the axes that vary, done or not, in the order of the grid."""
        for run in self.runs:
            flags = dict(run.flags)
            yield {axis: flags.get(axis) for axis in self.axes}, run


def read(path: Path, out: Path, command: Sequence[str]) -> Study:
    """The study of a TOML file, its runs below out/NAME.

    Raises ValueError in one line for an unknown key or flag, an empty grid, or two runs of one name.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable TOML file: {error}") from None
    if unknown := sorted(set(content) - {"name", "base", "grid", "skip"}):
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; known: name, base, grid, skip")
    name, base, found = content.get("name", path.stem), content.get("base", {}), content.get("grid", {})
    grids = found if isinstance(found, list) else [found]
    for key in (*base, *itertools.chain(*grids, *content.get("skip", []))):
        _check_flag(path, key)
    if not all(grids) or not grids or any(not isinstance(v, list) or not v for grid in grids for v in grid.values()):
        raise ValueError(f"{path}: [grid] holds flags with lists of values, such as seed = [0, 1, 2]")
    folder = out / name
    runs = []
    joined = {key: distinct(grids, key) for key in dict.fromkeys(itertools.chain(*grids))}
    for combination in (each for grid in grids for each in combinations(grid, content.get("skip", []))):
        run_name = name_of(combination, joined)
        flags = base | combination
        if flags.get("start") == "ri":
            flags.pop("weights", None)
        runs.append(Run(run_name, folder / run_name, tuple(flags.items()), tuple(command)))
    names = [run.name for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path}: two combinations are called {sorted(twice)[0]}: take values whose names differ")
    return Study(name, folder, tuple(runs), tuple(axis for axis, values in joined.items() if len(values) > 1))


def _check_flag(path: Path, key: str) -> None:
    known = [*configs.fields(), *DEEPSPEED_FLAGS, "ds_config"]
    if key in SET_BY_STUDY:
        raise ValueError(f"{path}: {key} is set by the study: take it out")
    if key not in known:
        raise ValueError(f"{path}: unknown flag {key!r}: {nearest(key, known)}")


def distinct(grids: Sequence[Mapping[str, list[Any]]], key: str) -> list[Any]:
    """The values of a flag over all grids, each once; None where a grid leaves the flag alone."""
    values = [value for grid in grids for value in grid.get(key, [None])]
    return [value for i, value in enumerate(values) if value not in values[:i]]


def combinations(grid: Mapping[str, list[Any]], skip: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values but those that agree with a table of `skip`."""
    for values in itertools.product(*grid.values()):
        found = dict(zip(grid, values, strict=True))
        if not any(all(found.get(key) == value for key, value in table.items()) for table in skip):
            yield found


def name_of(combination: Mapping[str, Any], grid: Mapping[str, list[Any]]) -> str:
    """Values joined by -, those of a single value left out: "DDSM-resnet50.tv_in1k-wt-0"."""
    parts = []
    for key, value in combination.items():
        if len(grid[key]) == 1 and len(grid) > 1:
            continue
        text = Path(shown_place(str(value))).name if key in ("shards", "weights") else str(value)
        parts.append(text if key in ("shards", "model", "start", "seed") else f"{key}{text}")
    joined = "-".join(parts or ["run"])
    return "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in joined)[:120]


def run_here(study: Study, parallel: int, tries: int) -> dict[str, str]:
    """Run what is missing on this machine; name -> last words of those that failed every time or were stopped."""
    missing = [run for run in study.runs if run.results is None]
    failed: dict[str, str] = {}

    def one(run: Run) -> None:
        if STOPPED in failed.values():  # whoever stops one run wants the others to wait, too
            return
        for number in range(tries):
            words = run()
            if words == STOPPED:
                failed[run.name] = words
                return
            if not words:
                print(f"{run.name}: done", flush=True)
                failed.pop(run.name, None)
                return
            failed[run.name] = words
            print(f"{run.name}: failed, try {number + 1} of {tries}: {last_line(words)}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(one, missing))
    return failed


def run_submitted(study: Study, cluster: str, options: Mapping[str, Any], tries: int) -> dict[str, str]:
    """Run what is missing as jobs of submitit (`slurm`, or `local` processes); as `run_here`.

    Raises:
        ValueError: the cluster cannot be reached.
    """
    import submitit

    failed: dict[str, str] = {}
    for _ in range(tries):
        missing = [run for run in study.runs if run.results is None]
        if not missing:
            break
        try:
            executor = submitit.AutoExecutor(folder=study.folder / "jobs", cluster=cluster)
            executor.update_parameters(**options)
        except RuntimeError as error:
            raise ValueError(f"--on {cluster}: {error} (--on here runs on this machine)") from None
        except (NameError, TypeError, AssertionError) as error:
            raise ValueError(f"--slurm: submitit does not take this: {error}") from None
        jobs = executor.submit_array(missing)
        print(
            f"{len(jobs)} jobs: {', '.join(job.job_id for job in jobs[:8])}{', …' if len(jobs) > 8 else ''}", flush=True
        )
        failed = {}
        for run, job in zip(missing, jobs, strict=True):
            try:
                words = job.result()
            except submitit.core.utils.UncompletedJobError as error:
                words = str(error)[-TAIL:]
            if words:
                failed[run.name] = words
                print(f"{run.name}: failed: {last_line(words)}", file=sys.stderr, flush=True)
    return failed


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        description="Run a grid of trainings, and tell it as a table. The same command again does what is missing.",
        epilog="example: python train/study.py examples/studies/figure.toml --parallel 2",
    )
    parser.add_argument("study", type=Path, help="TOML file with name, [base] and [grid]")
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="where the runs go: OUT/NAME")
    parser.add_argument("--on", choices=("here", "slurm", "local"), default="here", help="local: submitit's processes")
    parser.add_argument("--parallel", type=positive, default=1, help="with --on here: runs at a time")
    parser.add_argument(
        "--slurm", nargs="*", default=[], metavar="KEY=VALUE", help="timeout_min, mem_gb, … and sbatch's"
    )
    parser.add_argument("--tries", type=positive, default=2, help="of a run that fails")
    parser.add_argument("--show", action="store_true", help="the table alone: run nothing")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON document")
    add_debug_flag(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Run, write, tell; 1 where runs failed."""
    study = read(args.study, args.out.absolute(), [str(ROOT / "launch.sh"), "train"])
    failed = _failed_before(study)
    if not args.show:
        study.folder.mkdir(parents=True, exist_ok=True)
        failed = _run_missing(study, args)
    found = rows(study)
    runs = [{"name": run.name, "folder": str(run.folder), "state": run.state, "step": run.step} | values
            for values, run in study.cells()]  # fmt: skip
    told = {"name": study.name, "axes": study.axes, "rows": found, "runs": runs, "failed": failed}
    if study.folder.is_dir() and not args.show:
        write_aside(study.folder / "study.json", (json.dumps(told, indent=1) + "\n").encode())
        write_aside(study.folder / "study.md", (table(found, study.axes) + "\n").encode())
    tables = [table(found, study.axes), unfinished(study, failed)]
    print(json.dumps(told, indent=1) if args.json else "\n\n".join(each for each in tables if each))
    done = sum(run["state"] == "done" for run in runs)
    print(f"{done} of {len(runs)} runs are done", file=sys.stderr)
    if args.show or not failed:
        return 0
    return EXIT_PREEMPTED if set(failed.values()) == {STOPPED} else 1


def _failed_before(study: Study) -> dict[str, str]:
    """Last words of the runs that failed when the study was run last."""
    try:
        return dict(json.loads((study.folder / "study.json").read_text(encoding="utf-8"))["failed"])
    except FileNotFoundError:
        return {}


def _run_missing(study: Study, args: argparse.Namespace) -> dict[str, str]:
    if args.on == "here":
        return run_here(study, args.parallel, args.tries)
    options = dict(word.split("=", 1) for word in args.slurm if "=" in word)
    if len(options) < len(args.slurm):
        raise ValueError(f"--slurm {' '.join(args.slurm)}: write KEY=VALUE, such as partition=gpu timeout_min=600")
    return run_submitted(
        study, args.on, {_of_submitit(key): _typed(value) for key, value in options.items()}, args.tries
    )


def _of_submitit(key: str) -> str:
    """The option's name there."""
    return key if key in SHARED or key.startswith("slurm_") else f"slurm_{key}"


def _typed(value: str) -> Any:
    return {"true": True, "false": False}.get(value.lower(), int(value) if value.isdigit() else value)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    arguments = parse_args()
    run_cli(lambda: main(arguments), debug=arguments.debug)
