"""Every choice of a training run: one frozen config, checked where it is built (train/config_file.py builds it).

A file (JSON or TOML) has the sections of `Config`; a flag is the bare name of a field (`--lr 3e-4`) and wins over the
file. What DeepSpeed decides (global batch, precision, ZeRO stage, clipping) lives in ds_config.json: see
train/ds_settings.py.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from train.data_config import Count, Data, Fraction, JSONScalars, Positive, Section


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
        default=0, description="seed of order, crops, start and dropout"
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
    out: str = Field(default="runs", description="where the run directories go")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._+-]{1,120}$")] | None = Field(
        default=None, description="name of the run; none: set-model-start-seed"
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
    """All of it. Build with `config_file.load`."""

    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    finder: Finder = Finder()

    def public(self) -> Self:
        """The same as it may be written down: URLs without user, password and query."""
        return self.model_copy(update={"data": self.data.public()})


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


def changed(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Field name -> (old, new) where two configs differ."""
    return {
        name: (a, b)
        for name, (section, _) in fields().items()
        if (a := getattr(getattr(old, section), name)) != (b := getattr(getattr(new, section), name))
    }
