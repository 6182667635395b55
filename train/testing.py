"""`run.py --test`: score a run, a weights file or a checkpoint on a split of any set that fits."""

import argparse
from typing import Any

from shards.aside import write_aside
from train import ds_settings
from train import engine as engines
from train.assembly import settled
from train.assessment import assess, check_units
from train.config_file import load
from train.evaluation import evaluate_split
from train.flags import DEEPSPEED_FLAGS
from train.job import Job
from train.predictions import write_predictions
from train.reporting import dumps
from train.rundir import open_run


def test_run(args: argparse.Namespace, flags: dict[str, Any]) -> int:
    """Print loss and metrics as JSON; they and the predictions lie beside the analyses, test-SET-SPLIT.json and .csv.

    The images are cut as in the run's own evaluation; flags of the data section change that.

    Raises:
        ValueError: a split, a set or flags that do not fit the weights.
    """
    run = open_run(args.test, flags.get("shards"), flags.get("model"))
    kept = (
        {"data": run.config.data.model_dump()}
        if run.config is not None
        else {"data": {"image_size": run.info.img_size}}
    )
    kept["data"].pop("shards", None)
    config = load(kept, {name: value for name, value in flags.items() if name != "model"})
    shards = run.shards
    settings = ds_settings.read(args.ds_config, **{name: getattr(args, name) for name in DEEPSPEED_FLAGS})
    ranks = engines.ranks_from_environment()
    device = engines.device_of(ranks)
    if args.split not in shards.split_names:
        raise ValueError(f"--split {args.split}: {shards.path} has {', '.join(shards.split_names)}")
    check_units(shards.manifest, config.evaluation.units)
    model = run.build_model()
    model.load_state_dict(run.end_state(), strict=True)
    engines.join(ranks, device)
    job = Job(settled(config, shards, device), settings, shards, ranks, device, run.out_dir, run.info)
    found = evaluate_split(job, model.to(device), args.split)
    assert found is not None
    target = shards.manifest.target_metric
    result = {"weights": str(run.path), "set": shards.manifest.name, "split": args.split, "target_metric": target}
    if ranks.first:
        wanted, part = config.evaluation, shards.split(args.split)
        details = assess(found.predictions, part, seed=config.training.seed, draws=wanted.bootstrap, units=wanted.units)
        text = dumps({**result, **found.values, "remarks": found.remarks, "details": details}, indent=1)
        run.out_dir.mkdir(parents=True, exist_ok=True)
        name = f"test-{shards.manifest.name}-{args.split}"
        write_predictions(run.out_dir / f"{name}.csv", part, found.predictions)
        write_aside(run.out_dir / f"{name}.json", text.encode())
        print(text)
    engines.leave()
    return 0
