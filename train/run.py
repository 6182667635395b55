"""Train a timm model on a shard set.

    deepspeed train/run.py --shards data/shards/IDRiD --model resnet50.tv_in1k --start wt
    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 deepspeed --num_accelerators 2 train/run.py --epochs 5   # two ranks, no GPU
    python train/run.py --resume runs/NAME                                                        # one rank goes on

Reads a shard set and ds_config.json; writes runs/NAME (see train/rundir.py). Every field of train/config.py is a flag;
--config FILE (JSON or TOML with its sections, or the config.json of a run) lies under the flags. Exit codes: 0 done,
1 a failure with a traceback, or a rank that died or hung, 2 a mistake that one line names, 75 stopped by a signal with
a checkpoint (--resume goes on).
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from shards.plan import check_world
from shards.shardset import ShardSet
from shards.storage import is_url
from train import config as configs
from train import ds_settings
from train.config import Config
from train.config_file import load, read_file
from train.data_config import shares
from train.ds_settings import DeepSpeedSettings
from train.flags import DEEPSPEED_FLAGS, parse_args
from train.stopping import EXIT_PREEMPTED, Preempted, Wish, ending_at_once

if TYPE_CHECKING:
    from train.evaluation import Predictions
    from train.job import Job
    from train.loop import Trainer

EXIT_FILE_VARIABLE = "MEDSHARD_EXIT_FILE"  # launch.sh sets it
WORDS_VARIABLE = "MEDSHARD_WORDS"  # likewise: the flags between NULs, in base64
PATIENCE_SECONDS = 8  # another rank's error waits so long for the first rank's, which is the same as a rule
SHARDS_FOLDER = Path("data/shards")


def resolve(args: argparse.Namespace, flags: dict[str, Any]) -> tuple[Config, DeepSpeedSettings]:
    """The checked config and DeepSpeed settings of file and flags, or of the run that goes on.

    Raises ValueError for what contradicts itself or the run.
    """
    overrides = {name: getattr(args, name) for name in DEEPSPEED_FLAGS}
    if args.resume is not None:
        return _resumed(Path(args.resume), args, flags, overrides)
    if args.params is not None:
        return _of_study(args, flags, overrides)
    if args.study_exact:
        raise ValueError("--study-exact says how --params FILE is read: give that, too")
    content = read_file(args.config) if args.config else {}
    stored = None
    if "config" in content and "deepspeed" in content:  # the config.json of a run
        content, stored = content["config"], content["deepspeed"]
    config = load(content, flags, where=args.config or "")
    if stored is not None and args.ds_config is None:
        return config, ds_settings.parse(stored, where=args.config, **overrides)
    return config, ds_settings.read(args.ds_config, **overrides)


def _of_study(
    args: argparse.Namespace, flags: dict[str, Any], overrides: dict[str, Any]
) -> tuple[Config, DeepSpeedSettings]:
    from train.study_params import translate

    if args.config:
        raise ValueError("--params and --config are two descriptions of a run: give one of them")
    told = translate(read_file(args.params), exact=args.study_exact)
    if os.environ.get("RANK", "0") == "0":
        for note in told.notes:
            print(f"params: {note}", file=sys.stderr)
    if flags.get("start") == "ri":
        told.fields["wt_until"] = None
    config = load({}, told.fields | flags, where=args.params)
    given = {name: value for name, value in overrides.items() if value is not None}
    return config, ds_settings.read(args.ds_config, **overrides | told.deepspeed | given)


def _resumed(
    folder: Path, args: argparse.Namespace, flags: dict[str, Any], overrides: dict[str, Any]
) -> tuple[Config, DeepSpeedSettings]:
    from train.rundir import CONFIG_FILE, read_json

    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(f"--resume {folder}: no run directory (it has no {CONFIG_FILE}); give runs/NAME")
    if args.config or args.ds_config:
        raise ValueError("--resume goes on with the run's own config: drop --config and --ds-config")
    record = read_json(folder / CONFIG_FILE)
    before = load(record["config"], where=str(folder / CONFIG_FILE))
    after = load(record["config"], flags, where=str(folder / CONFIG_FILE))
    settings = ds_settings.parse(record["deepspeed"], where=str(folder / CONFIG_FILE), **overrides)
    changed = configs.changed(before.public(), after.public())
    fixed = {name: pair for name, pair in changed.items() if name not in configs.RESUMABLE}
    if settings.portable() != {**ds_settings.parse(record["deepspeed"]).portable(), **_micro(settings)}:
        raise ValueError("--resume keeps batch, precision, ZeRO stage and clipping: start a new run to change them")
    if fixed:
        name, (old, new) = next(iter(fixed.items()))
        raise ValueError(
            f"--{name.replace('_', '-')} {new} differs from the run's {old}: --resume cannot change it; start a new "
            f"run with --config {folder / CONFIG_FILE}"
        )
    return after, settings


def _micro(settings: DeepSpeedSettings) -> dict[str, Any]:
    name = "train_micro_batch_size_per_gpu"
    return {name: value} if (value := getattr(settings, name)) is not None else {}


def open_shards(config: Config) -> ShardSet:
    """The set of the config, or the only one under data/shards. Raises ValueError listing what is there."""
    data = config.data
    place = data.shards or next(iter(shares(data.mix)), None) if data.mix else data.shards
    where = place if place is not None else _only_set(SHARDS_FOLDER)
    if not is_url(where) and not (Path(where) / "manifest.json").is_file():
        raise ValueError(f"no shard set in {where} (it has no manifest.json). {_found(SHARDS_FOLDER)}")
    return data.open(where)


def _sets(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/manifest.json"))


def _only_set(folder: Path) -> Path:
    if len(found := _sets(folder)) == 1:
        return found[0]
    raise ValueError(f"which shard set? {_found(folder)}")


def _found(folder: Path) -> str:
    if found := _sets(folder):
        return f"Under {folder}: {', '.join(path.name for path in found)}; choose with --shards {found[0]}"
    return (
        f"None under {folder}: make one with python prep/make_shards.py --dataset NAME (without data: python "
        "prep/phantoms.py --dataset DDSM), or give its place with --shards DIR"
    )


def run_name(config: Config, shards: ShardSet) -> str:
    """Name of the run directory: the chosen one, or set-model-start-seed."""
    if config.training.name is not None:
        return config.training.name
    start = config.model.start + (f"-{config.model.wt_until}" if config.model.wt_until is not None else "")
    name = f"{shards.manifest.name}-{config.model.model}-{start}-{config.training.seed}"
    return "".join(letter if letter.isalnum() or letter in "._+-" else "_" for letter in name)[:120]


def main(argv: Sequence[str]) -> int:
    """Train as the flags say; the exit code. Raises ValueError for the user's mistakes."""
    args, flags = parse_args(argv)
    if args.test is not None:
        with ending_at_once():
            from train.testing import test_run

            return test_run(args, flags)
    config, settings = resolve(args, flags)
    first = os.environ.get("RANK", "0") == "0"
    if args.print_config:
        if first:
            print(json.dumps({"config": config.public().model_dump(), "deepspeed": settings.portable()}, indent=1))
        return 0
    if args.resume is not None and (Path(args.resume) / "results.json").is_file():
        if first:
            print(f"{args.resume} is done: see its results.json")
        return 0
    shards = open_shards(config)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    check_world(settings.train_batch_size, world)
    settings.micro_batch(world)
    if args.lr_finder is not None:
        named = Path(config.training.out) / f"{run_name(config, shards)}-lr-{args.lr_finder}"
        return _find_rate(args.lr_finder, config, settings, shards, named)
    folder = Path(args.resume) if args.resume is not None else Path(config.training.out) / run_name(config, shards)
    if args.resume is None and first and folder.exists():
        raise ValueError(f"{folder} exists: --resume {folder} goes on with it, --name NAME starts another")
    return _train(args, config, settings, shards, folder)


def _train(
    args: argparse.Namespace, config: Config, settings: DeepSpeedSettings, shards: ShardSet, folder: Path
) -> int:
    # Heavy imports come after every check that needs none of them.
    from train import engine as engines
    from train.assembly import build
    from train.failures import explained

    ranks = engines.ranks_from_environment()
    device = engines.device_of(ranks)
    with ExitStack() as ends:
        wish = ends.enter_context(Wish())  # a signal before the first step is answered there
        ends.callback(engines.leave)
        with explained(folder):
            resume = args.resume is not None
            trainer = build(config, settings, shards, folder, ranks, device, resume=resume, wish=wish, ends=ends)
        with explained(folder, trainer):
            try:
                return _run(trainer, args.stop_after_steps)
            except Preempted:
                step = trainer.progress.step
                trainer.reporter.say(f"stopped by a signal at step {step}; go on with --resume {folder}")
                return EXIT_PREEMPTED


def _find_rate(kind: str, config: Config, settings: DeepSpeedSettings, shards: ShardSet, folder: Path) -> int:
    from train import engine as engines
    from train.failures import explained
    from train.lr_finder import find_rate

    ranks = engines.ranks_from_environment()
    device = engines.device_of(ranks)
    with ExitStack() as ends:
        ends.callback(engines.leave)
        with explained(folder, again="give the same command again"):
            try:
                find_rate(config, settings, shards, folder, ranks, device, kind, ends)  # type: ignore[arg-type]
            except Preempted:
                print(f"stopped by a signal; the same command goes on after the tries in {folder}", file=sys.stderr)
                return EXIT_PREEMPTED
    return 0


def _run(trainer: "Trainer", stop_after: int | None) -> int:
    if trainer.fit(stop_after):
        finish(trainer)
    else:
        step, folder = trainer.progress.step, trainer.job.folder
        trainer.reporter.say(f"stopped at step {step} as asked; go on with --resume {folder}")
    return 0


def finish(trainer: "Trainer") -> None:
    """Score the best weights on validation and test, write predictions, then results.json: the mark of a run's end."""
    from shards.aside import write_aside
    from train.assessment import assess
    from train.engine import agree
    from train.models import create
    from train.monitoring import show
    from train.predictions import operating_points
    from train.reporting import dumps
    from train.rundir import RESULTS_FILE, read_weights

    job, progress = trainer.job, trainer.progress
    which = "best" if progress.best is not None else "last"
    test: dict[str, float] | None = None
    more: dict[str, Any] = {}
    if "test" in job.shards.split_names:
        info = job.info
        model = create(info.model, info.num_classes, info.in_chans, img_size=info.img_size)
        model.load_state_dict(read_weights(job.folder / "weights" / f"{which}.safetensors")[0], strict=True)
        splits = [name for name in ("val", "test") if name in job.shards.split_names]
        found = {name: trainer.scores(model.to(job.device), name) for name in splits}
        test = found["test"].values
        show(job, trainer.reporter, found["test"].predictions, "test", progress.step)
        trainer.reporter.record("test", progress.step, {"epoch": trainer.epoch, **test})
        agree(lambda: _keep(job, {name: each.predictions for name, each in found.items()}))
        split, wanted = job.shards.split("test"), job.config.evaluation
        seed, draws, units = job.config.training.seed, wanted.bootstrap, wanted.units
        details = agree(lambda: assess(found["test"].predictions, split, seed=seed, draws=draws, units=units))
        more |= {"test_details": details}
        if "val" in found:
            points = operating_points(found["val"].predictions, found["test"].predictions, split)
            more |= {"operating_points": points} if points else {}
    results = {**_description(job), "weights": which, "steps": progress.step, "samples_consumed": progress.consumed}
    results |= {"best": progress.best, "val": (progress.best or {}).get("metrics"), "test": test}
    results |= more
    results |= {"bad_samples": progress.bad, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    agree(lambda: write_aside(job.folder / RESULTS_FILE, dumps(results, indent=1).encode()))
    if test is not None:
        target = job.shards.manifest.target_metric
        trainer.reporter.say(f"test with the {which} weights: loss {test['loss']:.4f}, {target} {test[target]:.4f}")
    trainer.reporter.say(f"done: {job.folder}")


def _keep(job: "Job", found: dict[str, "Predictions"]) -> None:
    from train.predictions import write_predictions

    for name, predictions in found.items():
        write_predictions(job.folder / f"predictions-{name}.csv", job.shards.split(name), predictions)


def _description(job: "Job") -> dict[str, Any]:
    manifest, model = job.shards.manifest, job.config.model
    return {
        "run": job.folder.name, "model": model.model, "start": model.start, "wt_until": model.wt_until,
        "seed": job.config.training.seed, "shards": manifest.name, "phantom": manifest.phantom,
        "manifest_digest": manifest.digest, "target_metric": manifest.target_metric, "world": job.ranks.world,
    }  # fmt: skip


def command_line(argv: Sequence[str]) -> int:
    """`main`, with the other ranks silent where the first rank says the same.

    Each machine's first rank leaves its exit code in the file that EXIT_FILE_VARIABLE names, if any: DeepSpeed's
    launcher turns a stop by a signal into 143, and its own death into 0.
    """
    try:
        try:
            code = main(argv)
        except SystemExit as asked:  # --help
            code = int(asked.code or 0)
        if os.environ.get("LOCAL_RANK", "0") == "0" and EXIT_FILE_VARIABLE in os.environ:
            Path(os.environ[EXIT_FILE_VARIABLE]).write_text(f"{code}\n")
        return code
    except (ValueError, OSError) as error:
        if int(os.environ.get("RANK", "0")) > 0:
            # The launcher ends all ranks when one fails: the first must have had its say.
            time.sleep(PATIENCE_SECONDS)
            raise ValueError(f"rank {os.environ['RANK']}: {error}") from error
        raise


def words(argv: Sequence[str]) -> list[str]:
    """The command line: what came over ssh whole in WORDS_VARIABLE stands behind what the launcher gave."""
    sent = base64.b64decode(os.environ.pop(WORDS_VARIABLE, "")).decode().split("\0")[:-1]
    return [*argv, *sent]


def leave(code: int) -> NoReturn:
    """End the process; under launch.sh with 0 and the code in its file, since DeepSpeed has a line on other codes.

    Not with an error of one of several ranks: the launcher has to end the others.
    """
    file, alone = os.environ.get(EXIT_FILE_VARIABLE), os.environ.get("WORLD_SIZE") == "1"
    if file is not None and alone:
        Path(file).write_text(f"{code}\n")
    if file is not None and (alone or code == EXIT_PREEMPTED):
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    given = words(sys.argv[1:])
    try:
        run_cli(lambda: command_line(given), debug="--debug" in given)
    except SystemExit as ended:
        leave(int(ended.code or 0))
