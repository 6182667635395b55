"""Finding a learning rate: the published study's grid of short trainings, or one ramp through all rates.

    ./launch.sh train --shards data/shards/DDSM --model resnet50.tv_in1k --lr-finder           # grid
    ./launch.sh train --shards data/shards/DDSM --model resnet50.tv_in1k --lr-finder range

Grid: `finder_resolution` rates between 10^min_pow and 10^max_pow, each trained for `finder_epochs` from the same start,
scored on validation; best by loss and by the target metric. Range: the rate grows by a constant factor every step and
the loss is watched (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3). Rates are those
of `--lr`: they move all parameter groups, each by its own scale.

Each try has a model, an optimizer, an engine and random numbers of its own, so nothing of one is left in the next.
Writes NAME-lr-grid/ (or -range): lr_finder.json, .png, .svg, log.txt, metrics.jsonl. What was interrupted goes on under
the same command: tries that have ended are not made again.
"""

import gc
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from shards.aside import new_folder, write_aside
from shards.shardset import ShardSet
from train.assembly import (
    check,
    check_balance,
    check_floor,
    equip,
    freeze_backbone,
    lock,
    settled,
    start_of,
    versions,
    weights_info,
)
from train.config import RESUMABLE, Config, Schedule, changed
from train.divergence import Diverged
from train.ds_settings import DeepSpeedSettings
from train.engine import Ranks, agree, join, plain_copy
from train.job import Job
from train.layers import layer_groups
from train.lr_figure import grid_figure, range_figure, save_figure
from train.lr_trial import Notebook, Ramp, RangeNotebook, Trial
from train.models import create
from train.optimisation import Rates, make_optimizer, scaled
from train.progress import Progress
from train.pulse import Pulse
from train.reporting import Reporter, dumps
from train.rundir import read_json, with_nan
from train.stopping import Wish

RECORD = "lr_finder.json"
Kind = Literal["grid", "range"]


def rates_of(config: Config) -> list[float]:
    """The rates of a grid, rising: even in their logarithm, or drawn so from the seed."""
    finder = config.finder
    low, high, number = finder.finder_min_pow, finder.finder_max_pow, finder.finder_resolution
    if finder.finder_random:
        random = np.random.Generator(np.random.Philox(key=config.training.seed))
        return sorted((10 ** random.uniform(low, high, number)).tolist())
    return [float(each) for each in 10 ** np.linspace(low, high, number)]


class Search:
    """The start that all tries share, and one try at a time. All ranks build it and call it alike."""

    def __init__(self, job: Job, folder: Path, kind: Kind, ends: ExitStack) -> None:
        self.job, self.folder, self.kind = job, folder, kind
        self.wish = ends.enter_context(Wish())  # a signal before the first step is answered there
        check(job)
        check_balance(job.config)
        if kind == "grid":
            check_floor(self._schedule, self._scaled(rates_of(job.config)[0]))
        model, self.story = start_of(job)
        self.layers = layer_groups(model)
        self.start = {name: plain_copy(tensor) for name, tensor in model.state_dict().items()}
        self._optimizer(self._model(), 1.0)  # refuses what does not fit before anything is written
        join(job.ranks, job.device)
        self.tries: list[dict[str, Any]] = agree(lambda: _open(self, ends))
        finder = job.config.finder
        plan = job.plan
        self.epoch_steps = plan.samples_per_epoch / job.batch
        self.steps = plan.steps(finder.finder_epochs) if kind == "grid" else finder.finder_steps
        tries = finder.finder_resolution if kind == "grid" else 1
        self.pulse = ends.enter_context(Pulse(job.ranks, folder, minutes=job.config.training.hang_minutes))
        self.reporter = Reporter(
            folder if job.ranks.first else None,
            tensorboard=job.config.training.tensorboard,
            total_steps=(tries - len(self.tries)) * self.steps,
            per_step=job.batch,
        )
        ends.callback(self.reporter.close)

    def _model(self) -> nn.Module:
        info, drop_path = self.job.info, self.job.config.model.drop_path
        model = create(info.model, info.num_classes, info.in_chans, img_size=info.img_size, drop_path=drop_path)
        model.load_state_dict(self.start, strict=True)
        if self.job.config.model.freeze_backbone:
            freeze_backbone(model)
        return model

    def _optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        job = self.job
        return make_optimizer(
            job.config.optimizer, model, lr=lr, stage=job.settings.stage, layers=self.layers, batch=job.batch
        )

    def _scaled(self, lr: float) -> float:
        return scaled(self.job.config.optimizer, lr, self.job.batch)

    @property
    def _schedule(self) -> Schedule:
        """What the rate of a grid's try follows: itself, or the run's schedule where that was asked for."""
        config = self.job.config
        return config.schedule if config.finder.finder_keep_schedule else Schedule(schedule="constant", warmup_steps=0)

    def run(self, rates: Rates | Ramp, lr: float, notebook: Notebook, *, validates: bool) -> bool:
        """Train from the start along `rates`; the records are in the notebook. Whether it ended in finite losses."""
        model = self._model()
        engine = equip(self.job, model, self._optimizer(model, lr))
        trial = Trial(self.job, engine, rates, Progress(), notebook, self.pulse, self.wish)  # type: ignore[arg-type]
        trial.validates = validates
        try:
            trial.fit()
            return True
        except Diverged:
            return False
        finally:
            engine.destroy()
            del trial, engine, model
            gc.collect()
            if self.job.device.type == "cuda":
                torch.cuda.empty_cache()

    def try_rate(self, lr: float) -> dict[str, Any]:
        """Train at one rate of a grid: `lr`, `train_loss` (mean of the last tenth), `val_loss`, the metrics."""
        config, notebook = self.job.config, Notebook(self.reporter)
        rates = Rates(self._schedule, self._scaled(lr), self.steps, self.epoch_steps)
        whole = self.run(rates, lr, notebook, validates=True)
        losses, found = [each["loss"] for each in notebook.of("train")], notebook.of("val")
        last = found[-1] if whole and found else {}
        told: dict[str, Any] = {"lr": lr, "diverged": not whole}
        told["train_loss"] = float(np.mean(losses[-max(len(losses) // 10, 1) :])) if whole and losses else math.nan
        told["val_loss"] = last.get("loss", math.nan)
        told["metrics"] = {name: value for name, value in last.items() if name not in NO_METRIC}
        if config.finder.finder_intermediate:
            told["validations"] = [{k: v for k, v in each.items() if k != "kind"} for each in found]
        return told


NO_METRIC = ("kind", "step", "epoch", "consumed", "loss", "samples")


def find_rate(
    config: Config,
    settings: DeepSpeedSettings,
    shards: ShardSet,
    folder: Path,
    ranks: Ranks,
    device: torch.device,
    kind: Kind,
    ends: ExitStack,
) -> dict[str, Any]:
    """Search, write and tell; the content of lr_finder.json. All ranks call it; `ends` gets what is closed after it.

    Raises ValueError for what does not fit, with nothing written, and where no rate gave a finite loss.
    """
    every = config.training.val_every if config.finder.finder_intermediate else config.finder.finder_epochs
    training = config.training.model_copy(update={"log_every": 1, "val_every": every})
    config = settled(config, shards, device).model_copy(update={"training": training})
    job = Job(config, settings, shards, ranks, device, folder, weights_info(config, shards))
    search = Search(job, folder, kind, ends)
    for line in search.story:
        search.reporter.say(line)
    found = _grid(search) if kind == "grid" else _range(search)
    for line in found["told"]:
        search.reporter.say(line)
    search.reporter.say(f"done: {folder}")
    return found


def _grid(search: Search) -> dict[str, Any]:
    target, tries = search.job.shards.manifest.target_metric, search.tries
    values = rates_of(search.job.config)
    content: dict[str, Any] = {}
    for number, lr in enumerate(values, 1):
        if number > len(tries):
            tries.append(search.try_rate(lr))
        one = tries[number - 1]
        told = {name: value for name, value in one.items() if not isinstance(value, list | dict)}
        search.reporter.record("try", number, {**told, **one["metrics"]})
        search.reporter.say(f"{number}/{len(values)} {_row(one, target)}")
        content = {"kind": "grid", "target_metric": target, "tries": tries, **best_of(tries, target)}
        agree(partial(_write, search, content))
    table = ["learning rate  train loss  validation loss  " + target, *(_row(each, target) for each in tries)]
    best = [content[name] for name in ("best_by_loss", "best_by_metric")]
    if best == [None, None]:
        raise ValueError(f"no rate of the grid gave a finite loss: lower --finder-max-pow; see {search.folder}")
    for what, each in zip(("loss", target), best, strict=True):
        table.append(f"best by {what}: " + (f"--lr {each:.3g}" if each is not None else "undefined"))
    agree(lambda: save_figure(grid_figure(content), search.folder / "lr_finder") if tries else None)
    return {**content, "told": table}


def best_of(tries: Sequence[Mapping[str, Any]], target: str) -> dict[str, float | None]:
    """The rate of the lowest validation loss (training loss without a validation), and of the highest target metric."""
    by = "val_loss" if any(math.isfinite(each["val_loss"]) for each in tries) else "train_loss"
    losses = [each for each in tries if math.isfinite(each[by])]
    scored = [each for each in tries if math.isfinite(each["metrics"].get(target, math.nan))]
    return {
        "best_by_loss": min(losses, key=lambda each: each[by])["lr"] if losses else None,
        "best_by_metric": max(scored, key=lambda each: each["metrics"][target])["lr"] if scored else None,
    }


def _row(one: Mapping[str, Any], target: str) -> str:
    if one["diverged"]:
        return f"{one['lr']:13.3e}  diverged"
    return (
        f"{one['lr']:13.3e}  {one['train_loss']:10.4f}  {one['val_loss']:15.4f}  "
        f"{one['metrics'].get(target, math.nan):.4f}"
    )


def _range(search: Search) -> dict[str, Any]:
    finder = search.job.config.finder
    low, high = 10**finder.finder_min_pow, 10**finder.finder_max_pow
    ramp = Ramp(search._scaled(low), search._scaled(high), search.steps, search.epoch_steps)
    notebook, scale = RangeNotebook(search.reporter), search._scaled(1.0)
    whole = search.run(ramp, low, notebook, validates=False)
    steps = [
        {"lr": each["lr"] / scale, "loss": each["loss"], "smooth_loss": each["smooth_loss"]}
        for each in notebook.of("train")
    ]
    for number, each in enumerate(steps, 1):
        search.reporter.record("try", number, each)
    content = {"kind": "range", "diverged": not whole, "steps": steps, **suggestions(steps)}
    agree(lambda: _write(search, content))
    agree(lambda: save_figure(range_figure(content), search.folder / "lr_finder"))
    told = [f"{len(steps)} of {search.steps} steps, {low:.1e} to {steps[-1]['lr']:.1e}" if steps else "no step"]
    told += [f"loss falls fastest: --lr {content['steepest']:.3g}"] if content["steepest"] is not None else []
    told += [f"a tenth of where it is lowest: --lr {content['tenth']:.3g}"] if content["tenth"] is not None else []
    return {**content, "told": told}


def suggestions(steps: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
    """`steepest`: where the smoothed loss falls fastest by the logarithm of the rate, before its lowest point;
    `tenth`: a tenth of the rate of that point. None where the loss never falls.
    """  # fmt: skip
    smooth = np.array([each["smooth_loss"] for each in steps])
    if len(smooth) < 3:
        return {"steepest": None, "tenth": None}
    rates = np.array([each["lr"] for each in steps])
    bottom = int(smooth.argmin())
    slope = np.gradient(smooth, np.log(rates))[: max(bottom, 1)]
    falls = bottom > 0 and slope.min() < 0
    return {
        "steepest": float(rates[int(slope.argmin())]) if falls else None,
        "tenth": float(rates[bottom] / 10) if falls else None,
    }


def _open(search: Search, ends: ExitStack) -> list[dict[str, Any]]:
    """Make the folder, or take up what an interrupted search of the same choices has left there: its tries.

    Others are kept out of it until `ends`. Raises ValueError where a search lives in it, or where it is of another.
    """
    folder, path = search.folder, search.folder / RECORD
    if not folder.exists():
        with new_folder(folder) as part:
            _write(search, {"kind": search.kind, "tries": []}, part)
    lock(folder, ends)
    if (folder / "lr_finder.svg").is_file() or not path.is_file():  # the figure comes last
        raise ValueError(f"{folder} exists: remove it, or give another --name")
    before = read_json(path)
    if (other := _differs(search, before)) is not None:
        raise ValueError(f"{folder} was begun with another {other}: remove it, or give another --name")
    return [with_nan(each) for each in before["tries"]] if search.kind == "grid" else []


def _differs(search: Search, before: Mapping[str, Any]) -> str | None:
    """The first choice that reaches a weight and is not the one of a search that was begun; None: they agree."""
    job = search.job
    fields = changed(Config.model_validate(before["config"]), job.config.public())
    own = {
        "deepspeed": job.settings.portable(),
        "manifest_digest": job.shards.manifest.digest,
        "world": job.ranks.world,
    }
    others = [name for name, value in json.loads(dumps(own)).items() if before[name] != value]
    return next(iter([*(name for name in fields if name not in RESUMABLE), *others]), None)


def _write(search: Search, content: Mapping[str, Any], folder: Path | None = None) -> None:
    job = search.job
    record = {
        **content, "config": job.config.public().model_dump(mode="json"), "deepspeed": job.settings.portable(),
        "set": job.shards.manifest.name, "manifest_digest": job.shards.manifest.digest, "world": job.ranks.world,
        "start": search.story, "versions": versions(),
    }  # fmt: skip
    write_aside((folder or search.folder) / RECORD, dumps(record, indent=1).encode())
