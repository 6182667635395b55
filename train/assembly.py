"""From a checked config to a trainer that is ready to go: model, start, optimizer, engine, run directory.

All that can be refused is refused before the run directory is made; it appears whole, by a rename.
"""

import sys
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.aside import new_folder, write_aside
from shards.errors import first_line
from shards.executors import check_images, choose_executor
from shards.operators import CenterCrop, RandomCrop, RandomResizedCrop, Resize
from shards.shardset import ShardSet
from shards.storage import is_url
from shards.views import MultiCrop
from shards.words import counted
from train import checkpoints
from train.assessment import check_units
from train.config import Config, Schedule
from train.ds_settings import DeepSpeedSettings
from train.engine import Ranks, agree, build_engine, join
from train.job import Job
from train.layers import classifier_keys, layer_groups
from train.lock import take
from train.loop import Trainer
from train.metrics import check_metric
from train.models import create, report_of, take_any_size
from train.optimisation import Rates, make_optimizer, scaled
from train.progress import Progress
from train.pulse import Pulse
from train.reporting import Reporter, dumps
from train.resharding import Whole, load_weights, read_whole
from train.rundir import CONFIG_FILE, WeightsInfo, read_weights, save_weights
from train.starts import make_start
from train.stopping import Wish

VERSIONS = ("medshard", "torch", "timm", "deepspeed", "numpy", "opencv-python-headless")
INDEX_ROWS = 1 << 16  # read at once
OPTIONAL_VERSIONS = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def build(
    config: Config,
    settings: DeepSpeedSettings,
    shards: ShardSet,
    folder: Path,
    ranks: Ranks,
    device: torch.device,
    *,
    resume: bool,
    wish: Wish,
    ends: ExitStack,
) -> Trainer:
    """The trainer of a new run, or of one that goes on. All ranks call it; `ends` gets what is to be closed after it.

    Raises ValueError for all that does not fit, on every rank, with nothing written.
    """
    config = settled(config, shards, device)
    job = Job(config, settings, shards, ranks, device, folder, weights_info(config, shards))
    check(job)
    lr = scaled(config.optimizer, config.optimizer.lr, job.batch)
    if not resume:  # one that was begun with what is refused now goes on
        check_balance(config)
        check_floor(config.schedule, lr)
    model, story = start_of(job) if not resume else _stored(job)
    layers = layer_groups(model)
    if config.model.freeze_backbone:
        freeze_backbone(model)
    optimizer = make_optimizer(config.optimizer, model, lr=lr, stage=settings.stage, layers=layers, batch=job.batch)
    plan = job.plan
    rates = Rates(config.schedule, lr, plan.steps(config.training.epochs), plan.samples_per_epoch / job.batch)
    init = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()} if ranks.first else {}
    join(ranks, device)
    found, whole, damaged = _take_up(job, model, ends) if resume else (None, None, [])
    engine = equip(job, model, optimizer)
    if not resume:
        record = _record(job, list(layers), story)
        agree(lambda: _make_run(folder, record, init, job.info))
        agree(lambda: lock(folder, ends))
    pulse = ends.enter_context(Pulse(ranks, folder, minutes=config.training.hang_minutes))
    reporter = Reporter(
        folder if ranks.first else None,
        tensorboard=config.training.tensorboard,
        total_steps=rates.total_steps,
        first_step=int(found.state["step"]) if found else 0,
        per_step=job.batch,
    )
    ends.callback(reporter.close)
    trainer = Trainer(job, engine, rates, Progress(), reporter, pulse, wish)
    if found is not None:
        trainer.load(found, whole)
    for line in [*story, *damaged]:
        reporter.say(line)
    _say_beginning(trainer, resume)
    return trainer


def _take_up(
    job: Job, model: nn.Module, ends: ExitStack
) -> tuple[checkpoints.Checkpoint | None, Whole | None, list[str]]:
    """The run's newest checkpoint, and a line about each damaged one that was passed over; locks the run.

    Where another number of ranks wrote it in parts, its content too, whose weights the model then has.
    """
    folder, stage, world = job.folder, job.settings.stage, job.ranks.world
    agree(lambda: lock(folder, ends))
    found, damaged = agree(lambda: checkpoints.newest(folder / "checkpoints"))
    if found is None or stage == 0 or found.world == world:
        return found, None, damaged
    whole = read_whole(found.path, found.world, stage)
    load_weights(model, whole)
    return found, whole, damaged


def equip(job: Job, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """The DeepSpeed engine of a model, on the job's device, laid out and compiled as the config says."""
    engine = build_engine(model.to(job.device), optimizer, job.settings, job.ranks.world)
    if job.config.model.channels_last and job.settings.stage == 0:
        # After DeepSpeed has sent the weights around, which wants them contiguous; ZeRO keeps them in flat buffers.
        engine.module.to(memory_format=torch.channels_last)
    if job.config.model.compile:
        engine.module.compile()  # in place: names of tensors stay
    return engine


def lock(folder: Path, ends: ExitStack) -> None:
    """Keep other trainers out of the run, and tell them for as long as this process lives that it does."""
    held = take(folder, say=lambda line: print(line, flush=True))
    ends.callback(held.release)


def weights_info(config: Config, shards: ShardSet) -> WeightsInfo:
    """What the run's weights files say of themselves."""
    manifest = shards.manifest
    mean, std = config.data.norm(manifest)
    channels = net_channels(config, config.data.image_channels(manifest))
    return WeightsInfo(
        config.model.model, shards.num_classes, channels, config.data.image_size, tuple(shards.classes),
        tuple(mean), tuple(std), manifest.digest, config.public().model_dump(mode="json"),
    )  # fmt: skip


def net_channels(config: Config, channels: int) -> int:
    """Channels of the net for images of so many: the same, but three where grey images are to be repeated.

    Raises:
        ValueError: images that are neither grey nor colour, where grey ones are to be repeated.
    """
    if config.model.first_conv == "repeat" and channels not in (1, 3):
        raise ValueError(f"--first-conv repeat is for grey images, these have {channels} channels: take sum")
    return 3 if config.model.first_conv == "repeat" else channels


def freeze_backbone(model: nn.Module) -> None:
    """Leave the classifier alone to be trained."""
    head = set(classifier_keys(model))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in head)


def versions() -> dict[str, str]:
    """Versions of Python and of what decides a number."""
    found = {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in VERSIONS}
    installed = {each.name for each in metadata.distributions()}
    return found | {name: metadata.version(name) for name in OPTIONAL_VERSIONS if name in installed}


def settled(config: Config, shards: ShardSet, device: torch.device) -> Config:
    """The config with what the machine decides written in: the executor, and the set's place."""
    executor = choose_executor(config.data.executor, device)
    where = config.data.shards
    if where is None or not is_url(where):
        where = str(shards.path.resolve())
    data = config.data.model_copy(update={"executor": executor, "shards": where})
    return config.model_copy(update={"data": data})


def check(job: Job) -> None:
    """What only set, ranks and config together can tell.

    Raises:
        ValueError: whatever does not fit, in one line.
    """
    training, shards, world = job.config.training, job.shards, job.ranks.world
    check_metric(shards.manifest.target_metric, shards.task)
    check_units(shards.manifest, job.config.evaluation.units)
    if "train" not in shards.split_names:
        raise ValueError(f"{shards.path} has no split train; it has {', '.join(shards.split_names)}")
    if job.config.schedule.schedule == "plateau" and "val" not in shards.split_names:
        raise ValueError(f"--schedule plateau follows the validation, and {shards.path} has no split val: take cosine")
    for transform in (job.train_transform, job.eval_transform):
        check_images(transform, shards.manifest)
    shards.check_files()
    check_crop(job)
    micro = job.settings.micro_batch(world)
    if (training.mixup or training.cutmix) and (micro % 2 or job.batch % (2 * world)):
        name = "--mixup" if training.mixup else "--cutmix"
        raise ValueError(f"{name} mixes pairs: a micro-batch of {micro} on {world} ranks cuts them; take an even one")
    if training.class_weights != "none" and shards.task == "multi-label":
        raise ValueError(f"--class-weights is for single-label sets, {shards.manifest.name} is multi-label: drop it")
    if training.label_smoothing and shards.task == "multi-label":
        raise ValueError(f"--label-smoothing is for single-label sets, {shards.manifest.name} is multi-label: drop it")
    if job.settings.stage == 3 and (training.ema or training.on_nan == "skip"):
        raise ValueError("--ema and --on-nan skip need whole tensors: take ZeRO stage 0, 1 or 2 (--zero-stage)")


def check_balance(config: Config) -> None:
    """Refuse two corrections for rare classes at once."""
    if config.training.class_weights != "none" and config.data.balance != "none":
        raise ValueError("--class-weights balanced and --balance classes correct for the same thing twice: take one")


def check_floor(schedule: Schedule, lr: float) -> None:
    """Refuse a --min-lr above the rate, where the schedule would rise to it."""
    if schedule.schedule in ("cosine", "plateau") and schedule.min_lr > lr:
        raise ValueError(
            f"--min-lr {schedule.min_lr:g} is above the rate {lr:g} that the schedule lowers: take a smaller one"
        )


def check_crop(job: Job) -> None:
    """Refuse a fixed crop of stored images some of which are smaller, among those that the plan draws."""
    sizing = (Resize, CenterCrop, RandomCrop, RandomResizedCrop, MultiCrop)
    first = next((operator for operator in job.train_transform.operators if isinstance(operator, sizing)), None)
    if isinstance(first, RandomCrop):
        drawn = job.drawn
        for start in range(0, len(drawn), INDEX_ROWS):  # the index of millions of images need not fit in memory
            first.check(job.training_split.sides(drawn[start : start + INDEX_ROWS]))


def start_of(job: Job) -> tuple[nn.Module, list[str]]:
    """The model at its start, and what was loaded and drawn, in words."""
    chosen, info, seed = job.config.model, job.info, job.config.training.seed
    weights = Path(chosen.weights) if chosen.weights is not None else None
    model = create(
        info.model,
        info.num_classes,
        info.in_chans,
        pretrained=chosen.start != "ri" and weights is None,
        weights=weights,
        img_size=info.img_size,
        first_conv="red" if chosen.first_conv == "red" else "sum",
        seed=seed,
        drop_path=chosen.drop_path,
    )
    loaded = report_of(model)
    started = make_start(
        model, chosen.start, seed=seed, wt_until=chosen.boundary, st_variant=chosen.st_variant
    )  # fmt: skip
    sides = {max(size) for size in job.train_transform.sizes}
    if sides != {info.img_size}:
        take_any_size(model)
    for side in sorted(sides | {info.img_size}):
        _try_image(model, info, side)
    return model, [*([loaded.text()] if loaded is not None else []), started.text()]


def _try_image(model: nn.Module, info: WeightsInfo, side: int) -> None:
    """Refuse a model that does not take images of this size, here and not in step 1."""
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros(1, info.in_chans, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{info.model} does not take images of {side} pixels ({first_line(error)}): take "
            + ("another --image-size" if side == info.img_size else "train operators that end in other sizes")
        ) from error


def _stored(job: Job) -> tuple[nn.Module, list[str]]:
    """The model as it was at step 0, from the run itself."""
    info = job.info
    drop_path = job.config.model.drop_path
    model = create(info.model, info.num_classes, info.in_chans, img_size=info.img_size, drop_path=drop_path)
    if any(max(size) != info.img_size for size in job.train_transform.sizes):
        take_any_size(model)
    state, metadata_ = read_weights(job.folder / "weights" / "init.safetensors")
    if (there := metadata_.get("manifest_digest", "").strip('"')) != info.manifest_digest:
        raise ValueError(
            f"{job.shards.path} is not the set that {job.folder} was trained on (digest {info.manifest_digest[:12]}, "
            f"the run has {there[:12]}): give its place with --shards DIR"
        )
    model.load_state_dict(state, strict=True)
    return model, []


def _record(job: Job, groups: list[str], story: list[str]) -> dict[str, object]:
    return {
        "format": 1,
        "config": job.config.public().model_dump(mode="json"),
        "deepspeed": job.settings.portable(),
        "deepspeed_resolved": job.settings.resolved(job.ranks.world),
        "world": job.ranks.world,
        "device": str(job.device.type),
        "manifest_digest": job.shards.manifest.digest,
        "set": job.shards.manifest.name,
        "phantom": job.shards.manifest.phantom,
        "classes": job.shards.classes,
        "layer_groups": groups,
        "start": story,
        "versions": versions(),
    }


def _make_run(folder: Path, record: dict[str, object], init: dict[str, torch.Tensor], info: WeightsInfo) -> None:
    with new_folder(folder, f"--resume {folder} goes on with it, --name NAME starts another") as part:
        (part / "weights").mkdir()
        (part / "checkpoints").mkdir()
        write_aside(part / CONFIG_FILE, dumps(record, indent=1).encode())
        save_weights(part / "weights" / "init.safetensors", init, info)


def _say_beginning(trainer: Trainer, resume: bool) -> None:
    job, say = trainer.job, trainer.reporter.say
    trained = [parameter for parameter in trainer.engine.module.parameters() if parameter.requires_grad]
    count = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in trained)  # ZeRO 3 keeps parts
    size, ranks = job.plan.num_samples, job.ranks.world
    if resume:
        say(f"resumed at step {trainer.progress.step} of {trainer.rates.total_steps}, {counted(ranks, 'rank')}")
    say(
        f"{job.info.model}, {count:,} trainable numbers, on {job.shards.manifest.name}: {size} training images, "
        f"{counted(job.config.training.epochs, 'epoch')} of {trainer.rates.epoch_steps:.1f} steps of {job.batch} on "
        f"{counted(ranks, 'rank')} ({job.device.type}, {job.settings.precision}, ZeRO {job.settings.stage})"
    )
    if ranks > 1 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trainer.engine.module.modules()
    ):
        say("BatchNorm uses each rank's own part of the batch; the running statistics kept are rank 0's")
