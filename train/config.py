"""Every choice of a training run: one frozen config, checked where it is built, from a file, flags or both.

A file (JSON or TOML) has the sections of `Config`; a flag is the bare name of a field (`--lr 3e-4`) and wins over the
file. What DeepSpeed decides (global batch, precision, ZeRO stage, clipping) lives in ds_config.json: see
train/ds_settings.py.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from shards.manifest import Manifest
from shards.presets import preset_of
from shards.reshard import parse_size
from shards.shardset import ShardSet
from shards.transforms import AnyTransform, Transform, eval_transform, one_view, train_transform, transform_of
from shards.windows import Window, window_of

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Stretch = Annotated[float, Field(ge=0, le=4)]
JSONScalars = dict[str, float | int | bool | str | list[float] | None]


class Section(BaseModel):
    """A frozen group of fields; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Data(Section):
    """Which images, and how they are cut and fed."""

    shards: str | None = Field(
        default=None, description="folder or URL of the shard set; none: the only set under data/shards"
    )
    cache: str | None = Field(default=None, description="folder for shards fetched from a URL, shared by runs")
    cache_limit: str | None = Field(default=None, description="most bytes in it, such as 200GB; none: no limit")
    mix: str | None = Field(
        default=None, description="train on several sets in shares: PLACE=0.7,PLACE=0.3; shards is tested on"
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share of the training split, by whole groups, stratified; .1 lies within .2"
    )
    fraction_seed: Count = Field(default=0, description="which share")
    exclude: str | None = Field(default=None, description="text file of keys to leave out of training, one a line")
    balance: Literal["none", "classes"] = Field(
        default="none", description="classes: every class comes equally often in an epoch"
    )
    view: str | None = Field(default=None, description="label view of the manifest; none: its default view")
    labels_file: str | None = Field(default=None, description="csv (key, label columns) that replaces the labels")
    split_file: str | None = Field(
        default=None, description="csv (key, split) that replaces the splits, or the name of one of the set's own folds"
    )
    image_size: Annotated[int, Field(ge=16, le=4096)] = Field(
        default=224, description="side of the square input, pixels"
    )
    resize: Annotated[int, Field(ge=16, le=8192)] | None = Field(
        default=None,
        description="short side before the center crop of evaluation, pixels; none: image_size * 256 / 224",
    )
    preset: Literal["light", "full", "study", "histology", "mammography", "fundus", "dermoscopy", "chest"] = Field(
        default="light", description="augmentation: crop and flips; and colours; the published study's; or a domain's"
    )
    crop_scale: tuple[Positive, Positive] | None = Field(
        default=None, description="area of a random crop, share of the image; none: the preset's own"
    )
    tta: Literal["none", "flips", "rotations", "all"] = Field(
        default="none", description="evaluation averages logits over mirrored images, quarter turns, or all eight"
    )
    train_operators: list[dict[str, Any]] | None = Field(
        default=None, description='in place of the preset, as JSON: [{"op": "HorizontalFlip", "p": 0.5}, ...]'
    )
    eval_operators: list[dict[str, Any]] | None = Field(
        default=None, description="in place of resize and center crop, likewise"
    )
    display_window: tuple[float, ...] | None = Field(
        default=None,
        description="16-bit images: center,width of the stored levels shown as black to white (DICOM's linear window); "
        "three such pairs make three channels",
    )
    display_jitter: tuple[Fraction, Stretch] = Field(
        default=(0.0, 0.0),
        description="training: the window moved by up to this share of its width, and stretched by up to 1 + this",
    )
    mean: tuple[float, ...] | None = Field(
        default=None,
        description="of normalisation by channel, on the 0..1 scale; none: the set's own, behind a display window .5",
    )
    std: tuple[Positive, ...] | None = Field(default=None, description="likewise; behind a display window .25")
    order: Literal["global", "windowed", "sequential"] = Field(default="global", description="order of an epoch")
    window: Annotated[int, Field(ge=1)] = Field(default=16, description="windowed: shards a window")
    partitions: Annotated[int, Field(ge=1)] = Field(
        default=64, description="windowed: parts of equal size, so that nodes read different shards"
    )
    tail: Literal["carry", "drop"] = Field(
        default="carry", description="end of an epoch: carried into the next, or dropped"
    )
    executor: Literal["auto", "dali", "host"] = Field(
        default="auto", description="who decodes; auto: dali on a GPU, else host"
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(default=2, description="decoding threads a rank")
    prefetch: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="batches decoded ahead")
    verify: bool = Field(default=True, description="check the hash of every image that is read")
    max_bad: Count = Field(
        default=100, description="unreadable images that are masked and named; at most a tenth of a split"
    )
    strict: bool = Field(default=False, description="stop at the first unreadable image")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            low, high = self.crop_scale
            raise ValueError(f"crop_scale: {low},{high} is upside down: write the smaller number first")
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(
                f"resize {self.resize} is below image_size {self.image_size}: the center crop would not fit"
            )
        for name in ("train_operators", "eval_operators"):
            if (steps := getattr(self, name)) is not None:
                made = transform_of(steps, (0.5,) * 3, (0.5,) * 3, self.window_of(training=False))
                size = (made if name == "train_operators" else one_view(made)).size
                if name == "eval_operators" and size != (self.image_size, self.image_size):
                    raise ValueError(
                        f"{name} end in {size[0]} x {size[1]} pixels, image_size is {self.image_size}: make them agree"
                    )
        window = self.window_of(training=True)
        if window is None and any(self.display_jitter):
            raise ValueError("display_jitter moves a display window, and none is given: add --display-window")
        if self.mix is not None:
            shares(self.mix)
        if self.cache_limit is not None:
            parse_size(self.cache_limit)
        return self

    def norm(self, manifest: Manifest) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation by channel, on the 0..1 scale.

        Behind a display window levels are others than the set's own mean and deviation were taken from.
        """
        if self.display_window is not None:
            channels = self.image_channels(manifest)
            return self.mean or (0.5,) * channels, self.std or (0.25,) * channels
        return self.mean or manifest.mean, self.std or manifest.std

    def window_of(self, *, training: bool) -> Window | None:
        """The display window, with its jitter in training."""
        if self.display_window is None:
            return None
        return window_of(self.display_window, self.display_jitter if training else (0.0, 0.0))

    def image_channels(self, manifest: Manifest) -> int:
        """Channels of an image when it reaches the net: the stored ones, or one a display window."""
        window = self.window_of(training=False)
        if window is None or window.count == 1:
            return manifest.channels
        if manifest.channels != 1:
            raise ValueError(
                f"several display windows are for grey images, {manifest.name} has {manifest.channels} channels: give "
                "one center,width"
            )
        return window.count

    @property
    def cache_bytes(self) -> int | None:
        """`cache_limit` in bytes."""
        return parse_size(self.cache_limit) if self.cache_limit is not None else None

    def open(self, place: str | Path) -> ShardSet:
        """A shard set at a folder or URL, under this view, these files and this cache."""
        return ShardSet(
            place,
            view=self.view,
            labels_file=self.labels_file,
            split_file=self.split_file,
            cache=self.cache,
            cache_limit=self.cache_bytes,
        )

    @property
    def resize_to(self) -> int | tuple[int, int]:
        """What evaluation resizes an image to before the center crop, pixels: the short side; both under `study`."""
        return preset_of(self.preset).resize(self.image_size, self.resize)

    def eval_transform(self, mean: Sequence[float], std: Sequence[float]) -> Transform:
        """What evaluation makes of an image: its own operators, or resize and center crop; then normalisation."""
        if self.eval_operators is not None:
            return one_view(transform_of(self.eval_operators, mean, std, self.window_of(training=False)))
        window = self.window_of(training=False)
        return eval_transform(self.image_size, mean, std, resize=self.resize_to, window=window)

    def train_transform(self, mean: Sequence[float], std: Sequence[float]) -> AnyTransform:
        """What training makes of an image: the preset's augmentation or operators of its own; then normalisation."""
        window = self.window_of(training=True)
        if self.train_operators is not None:
            return transform_of(self.train_operators, mean, std, window)
        return train_transform(self.image_size, mean, std, scale=self.crop_scale, preset=self.preset, window=window)


def shares(mix: str) -> dict[str, float]:
    """Place -> share of `PLACE=0.7,PLACE=0.3`. Raises ValueError for anything else."""
    found: dict[str, float] = {}
    for part in mix.split(","):
        place, _, share = part.rpartition("=")
        try:
            found[place.strip()] = float(share)
        except ValueError:
            place = ""
        if not place or not 0 < found[place.strip()] < math.inf:
            raise ValueError(f"mix: got {part!r}; write places and positive shares, PLACE=0.7,PLACE=0.3")
    return found


class Model(Section):
    """The net and where its weights start."""

    model: str = Field(
        default="deit_small_patch16_224.fb_in1k", description="any classifier of timm, with its tag if wanted"
    )
    start: Literal["wt", "st", "ri"] = Field(
        default="wt", description="wt: pretrained weights; st: their mean and std alone, tensor by tensor; ri: random"
    )
    weights: str | None = Field(
        default=None, description="file of pretrained weights, or another run's directory (its best); none: timm's hub"
    )
    wt_until: str | None = Field(
        default=None, description="with st: the layer group (name, or how many) up to which weights stay pretrained"
    )
    st_variant: Literal["full", "study"] = Field(
        default="full", description="full: all tensors are redrawn; study: convolutions and linear layers alone"
    )
    first_conv: Literal["sum", "red", "repeat"] = Field(
        default="sum",
        description="grey images and a net of three channels: its first layer's colours summed; the red one alone, as "
        "the study; or the image repeated, the layer left as it is",
    )
    channels_last: bool = Field(
        default=True, description="memory format of the net at ZeRO stage 0: convolutions are faster"
    )
    freeze_backbone: bool = Field(default=False, description="train the head alone (linear probe)")
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="stochastic depth: the rate of the last block, less below"
    )
    compile: bool = Field(default=False, description="torch.compile of the forward and backward pass")

    @model_validator(mode="after")
    def _start_fits(self) -> Self:
        if self.start == "ri" and self.weights is not None:
            raise ValueError("weights: start ri reads no weights: drop --weights, or take --start wt or st")
        if self.wt_until is not None and self.start != "st":
            raise ValueError(f"wt_until: start {self.start} has no boundary: take --start st, pretrained up to there")
        return self

    @property
    def boundary(self) -> str | int | None:
        """`wt_until` as a group's name or as a number of groups."""
        return int(self.wt_until) if self.wt_until is not None and self.wt_until.isdigit() else self.wt_until


class Optimizer(Section):
    """How the weights move."""

    optimizer: str = Field(
        default="adam", description="any optimizer of torch or timm by name: adam, adamw, sgd, nadamw, ..."
    )
    lr: Positive = Field(default=1e-4, description="learning rate after the warm-up")
    autoscale_lr: bool = Field(default=False, description="multiply lr by global batch / 256")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=1e-5, description="none on biases and 1-d tensors")
    optimizer_args: JSONScalars = Field(
        default_factory=dict, description='more arguments of the optimizer as JSON, e.g. {"momentum": 0.9}'
    )
    lars: bool = Field(default=False, description="scale each tensor's gradient by LARS's trust ratio (ZeRO stage 0)")
    lars_from_batch: Count = Field(default=256, description="global batch from which lars acts")
    lars_trust: Positive = Field(default=0.001, description="lars: trust coefficient")
    lars_eps: Annotated[float, Field(ge=0)] = Field(default=1e-8, description="lars: added to the divisor")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="lr of a layer group = lr * layer_decay ** (groups above it)"
    )


class Schedule(Section):
    """How the learning rate moves: a pure function of the step (and, for plateau, of the validation history)."""

    schedule: Literal["cosine", "constant", "multistep", "onecycle", "plateau"] = Field(
        default="cosine", description="after the linear warm-up"
    )
    warmup_steps: Count | None = Field(
        default=None, description="steps of linear warm-up; none: 1000, or a tenth of the run where that is less"
    )
    warmup_epochs: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="epochs; wins over warmup_steps"
    )
    min_lr: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="cosine and plateau: learning rate at the end"
    )
    milestones: tuple[Positive, ...] = Field(
        default=(), description="multistep: epochs at which lr is multiplied by gamma"
    )
    gamma: Fraction = Field(default=0.1, description="multistep: factor at each milestone")
    plateau_factor: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.1, description="plateau: factor")
    plateau_patience: Count = Field(default=3, description="plateau: validations without a gain that are waited for")
    pct_start: Fraction = Field(default=0.3, description="onecycle: share of the steps that rises")
    div_factor: Positive = Field(default=25.0, description="onecycle: lr / div_factor is the first rate")
    anneal: Literal["cos", "linear"] = Field(default="cos", description="onecycle: shape of the rise and the fall")
    final_div_factor: Positive = Field(default=1e4, description="onecycle: first rate / final_div_factor is the last")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.schedule == "multistep" and not self.milestones:
            raise ValueError("milestones: schedule multistep needs them: --milestones 10,20 (epochs)")
        end = 1 / (self.div_factor * self.final_div_factor)
        if self.schedule == "onecycle" and end > 1 / self.div_factor:
            raise ValueError(
                f"final_div_factor: {self.final_div_factor:g} makes onecycle end at {end:g} x lr, above its start of "
                f"{1 / self.div_factor:g} x lr: take a value of at least 1"
            )
        return self


class Training(Section):
    """How long, how often, what is kept."""

    epochs: Annotated[int, Field(ge=1)] = Field(default=10, description="epochs")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="of the order, the crops, the start, dropout"
    )
    val_every: Positive = Field(default=1.0, description="epochs between validations, fractions allowed")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="single-label sets")
    mixup: Annotated[float, Field(ge=0)] = Field(default=0.0, description="alpha of Beta(alpha, alpha); 0: off")
    cutmix: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="likewise; with both, each pair of images takes one of them"
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: the loss of a class weighs as n / (classes * its images)"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="decay a step of an average of the weights that is evaluated and kept; 0: off"
    )
    on_nan: Literal["stop", "skip"] = Field(
        default="stop", description="a loss that is not finite: stop, or skip the step"
    )
    checkpoint_every: Count = Field(
        default=0, description="steps between checkpoints besides those at the ends of epochs"
    )
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="minutes between checkpoints; 0: off"
    )
    keep_checkpoints: Annotated[int, Field(ge=1)] = Field(default=2, description="newest checkpoints that stay")
    hang_minutes: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="a rank that stands still so long ends the run, with the stacks of all; 0: never"
    )
    log_every: Annotated[int, Field(ge=1)] = Field(default=10, description="steps between lines of the log")
    tensorboard: bool = Field(default=True, description="write scalars for TensorBoard")
    out: str = Field(default="runs", description="folder of the run directories")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{1,120}$")] | None = Field(
        default=None, description="name of the run directory; none: set-model-start-seed"
    )


class Evaluation(Section):
    """What is measured of a model; none of it moves a weight."""

    bootstrap: Count = Field(
        default=1000, description="resamples of groups for the intervals of the test scores; 0: none"
    )
    units: str = Field(
        default="group",
        description="what test scores are also given by, mean probability over its images: columns of the set, joined "
        "by +, such as group+side: a patient's breasts",
    )
    knn_eval: bool = Field(
        default=False, description="at each validation and the test: k-NN metrics at the embedding, too"
    )
    study_metrics: bool = Field(
        default=False, description="scores as the published study's: 3 digits, ROC-AUC .5 where a class has no image"
    )
    log_embeddings: bool = Field(
        default=False, description="at each validation: a UMAP of the embeddings, as an image of TensorBoard"
    )


class Finder(Section):
    """The search for a learning rate (--lr-finder)."""

    finder_min_pow: float = Field(default=-6.0, description="lowest rate, as a power of ten")
    finder_max_pow: float = Field(default=-1.0, description="highest rate, likewise")
    finder_resolution: Annotated[int, Field(ge=1, le=1000)] = Field(default=11, description="grid: how many rates")
    finder_epochs: Annotated[int, Field(ge=1)] = Field(default=1, description="grid: epochs of each try")
    finder_random: bool = Field(default=False, description="grid: draw the rates between the powers from the seed")
    finder_keep_schedule: bool = Field(
        default=False, description="grid: each try runs through the whole schedule; else its rate is constant"
    )
    finder_intermediate: bool = Field(
        default=False, description="grid: validate within a try, too, every val_every epochs, and keep the scores"
    )
    finder_steps: Annotated[int, Field(ge=10)] = Field(default=100, description="range: steps of the ramp")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.finder_min_pow >= self.finder_max_pow and self.finder_resolution > 1:
            raise ValueError(
                f"finder_min_pow {self.finder_min_pow:g} is not below finder_max_pow {self.finder_max_pow:g}: swap them"
            )
        return self


class Config(Section):
    """All of it. Build with `load`."""

    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    finder: Finder = Finder()


# What may differ when a run goes on: none of it reaches a weight.
RESUMABLE = {"shards", "cache", "cache_limit", "threads", "prefetch", "verify"} | {
    "checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "hang_minutes", "log_every", "tensorboard",
    "bootstrap", "units", "knn_eval", "log_embeddings",
}  # fmt: skip


def sections() -> Iterator[tuple[str, type[Section]]]:
    """(name, class) of each section, in order."""
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        yield name, field.annotation


def fields() -> dict[str, tuple[str, FieldInfo]]:
    """Field name -> (section, field). Names are unique over the sections, so that a flag needs no dot."""
    found: dict[str, tuple[str, FieldInfo]] = {}
    for section, kind in sections():
        for name, field in kind.model_fields.items():
            assert name not in found, f"two sections have a field {name}"
            found[name] = (section, field)
    return found


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or the known names where none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def load(file: Mapping[str, Any] | None = None, flags: Mapping[str, Any] | None = None, *, where: str = "") -> Config:
    """The config of a file's content with flags (field name -> text or value) over it.

    Raises ValueError in one line that names the field, what was got and what is allowed.
    """
    known = fields()
    merged: dict[str, dict[str, Any]] = {}
    for section, content in (file or {}).items():
        merged[section] = dict(_checked_section(section, content, known, where))
    for name, value in (flags or {}).items():
        section, field = known[name]
        merged.setdefault(section, {})[name] = parse_flag(value, field) if isinstance(value, str) else value
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ValueError(one_line(error, flags or {}, where)) from None


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a JSON or TOML file. Raises ValueError when it is neither."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no config file {path}: write one (see --print-config) or drop --config")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table of sections")
    return content


def changed(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Field name -> (old, new) where two configs differ."""
    return {
        name: (a, b)
        for name, (section, _) in fields().items()
        if (a := getattr(getattr(old, section), name)) != (b := getattr(getattr(new, section), name))
    }


def parse_flag(text: str, field: FieldInfo) -> Any:
    """A flag's text as the value its field wants: `none`, text as it stands, comma-separated numbers, or JSON."""
    if text.lower() == "none":
        return None
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    wanted = [get_args(each)[0] if get_origin(each) is Annotated else each for each in kinds]
    if str in wanted:
        return text
    if any(get_origin(each) is tuple for each in wanted):
        return [part.strip() for part in text.strip("[]()").split(",") if part.strip()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def one_line(error: ValidationError, flags: Mapping[str, Any], where: str) -> str:
    """The first mistake of a pydantic error, in our words."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    location = [str(part) for part in first["loc"]]
    if len(location) < 2:  # a check over several fields names them itself
        return message + more
    name = location[1]
    origin = (
        f"--{name.replace('_', '-')}"
        if name in flags
        else f"{'.'.join(location[:2])}" + (f" in {where}" if where else "")
    )
    _, field = fields()[name]
    return f"{origin}: got {first['input']!r}; {message[0].lower()}{message[1:]} ({field.description}){more}"


def _checked_section(
    section: str, content: Any, known: Mapping[str, tuple[str, FieldInfo]], where: str
) -> Mapping[str, Any]:
    origin = f" in {where}" if where else ""
    names = [name for name, _ in sections()]
    if section == "deepspeed":
        raise ValueError(
            f"section deepspeed{origin}: what DeepSpeed decides stands in ds_config.json (--ds-config FILE)"
        )
    if section not in names:
        hint = f"it belongs in section {known[section][0]}" if section in known else nearest(section, names)
        raise ValueError(f"unknown section {section!r}{origin}: {hint}")
    if not isinstance(content, Mapping):
        raise ValueError(f"section {section}{origin} holds {content!r}, not a table of fields")
    for name in content:
        if name not in known or known[name][0] != section:
            hint = f"it belongs in section {known[name][0]}" if name in known else nearest(name, list(known))
            raise ValueError(f"unknown key {section}.{name}{origin}: {hint}")
    return content
