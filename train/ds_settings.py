"""ds_config.json: what DeepSpeed decides, read once and checked (DeepSpeed itself lets unknown keys pass).

Global batch, precision, ZeRO stage and gradient clipping are written there and nowhere else; flags change them in
the resolved copy that config.json records. The loader's batch and the autocast of evaluation are read from here.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from train.config_file import nearest

DEFAULT_FILE = Path(__file__).with_name("ds_config.json")  # a link to the root's, so that a wheel carries it
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
OFFLOADS: dict[str, tuple[str, ...]] = {
    "none": (), "optimizer": ("offload_optimizer",), "parameters": ("offload_optimizer", "offload_param"),
}  # fmt: skip
Precision = Literal["fp32", "bf16", "fp16"]

# Handed to DeepSpeed as they are.
PASSED_ON = (
    "activation_checkpointing", "aio", "checkpoint", "comms_logger", "communication_data_type", "compile",
    "data_types", "disable_allgather", "dump_state", "flops_profiler", "gradient_predivide_factor",
    "memory_breakdown", "prescale_gradients", "steps_per_print", "wall_clock_breakdown",
    "zero_force_ds_cpu_optimizer",
)  # fmt: skip
REFUSED = {
    "optimizer": "the trainer builds it: --optimizer, --lr, --weight-decay",
    "scheduler": "the trainer sets the rate of every step: --schedule, --warmup-steps",
    "bf16": 'BatchNorm fails under it on the CPU and stage 0 drifts: "torch_autocast": {"enabled": true, "dtype": '
    '"bfloat16"}, or --precision bf16',
    "fp16": 'take "torch_autocast": {"enabled": true, "dtype": "float16"}, or --precision fp16',
    "amp": 'take "torch_autocast"',
    "tensorboard": "the trainer writes its own: --tensorboard",
    "wandb": "the trainer writes metrics.jsonl and TensorBoard",
    "csv_monitor": "the trainer writes metrics.jsonl",
    "zero_allow_untested_optimizer": "the trainer sets it",
    "elasticity": "this release has none; --resume takes another number of ranks",
}


class Autocast(BaseModel):
    """torch_autocast of DeepSpeed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    enabled: bool
    dtype: Literal["bfloat16", "float16"] = "bfloat16"


class DeepSpeedSettings(BaseModel):
    """The checked content of ds_config.json. Build with `read`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    train_batch_size: int = Field(ge=1, le=2**20, description="images a step over all ranks")
    train_micro_batch_size_per_gpu: int | None = Field(
        default=None, ge=1, description="images a forward pass on a rank"
    )
    gradient_accumulation_steps: int | None = Field(default=None, ge=1, description="forward passes a step")
    gradient_clipping: float = Field(ge=0, description="largest norm of the gradient; 0: no clipping")
    zero_optimization: dict[str, Any]
    torch_autocast: Autocast = Autocast(enabled=False)
    passed_on: dict[str, Any] = Field(default_factory=dict)

    @property
    def stage(self) -> int:
        """ZeRO stage, 0-3."""
        return int(self.zero_optimization["stage"])

    @property
    def precision(self) -> Precision:
        """Of the forward pass."""
        if not self.torch_autocast.enabled:
            return "fp32"
        return "bf16" if self.torch_autocast.dtype == "bfloat16" else "fp16"

    def micro_batch(self, world: int) -> int:
        """Images a forward pass on one of `world` ranks.

        Raises ValueError where global batch, micro-batch, accumulation and world contradict each other.
        """
        each, rest = divmod(self.train_batch_size, world)
        if rest:
            raise ValueError(f"global batch {self.train_batch_size} does not divide by {world} ranks")
        steps = self.gradient_accumulation_steps
        micro = self.train_micro_batch_size_per_gpu or each // (steps or 1)
        if micro * (steps or max(each // micro, 1)) != each:
            raise ValueError(
                f"train_batch_size {self.train_batch_size} is not micro-batch {micro} x accumulation {steps or 'any'} "
                f"x {world} ranks: drop train_micro_batch_size_per_gpu and gradient_accumulation_steps, or take a "
                f"micro-batch that divides {each} (--micro-batch)"
            )
        return micro

    def resolved(self, world: int) -> dict[str, Any]:
        """The dict for deepspeed.initialize on `world` ranks."""
        micro = self.micro_batch(world)
        # Our optimizer steps on the CPU where its state lies there; DeepSpeed's own would be compiled first.
        moved = {"zero_force_ds_cpu_optimizer": False} if "offload_optimizer" in self.zero_optimization else {}
        return {
            **moved,
            **self.passed_on,
            "train_batch_size": self.train_batch_size,
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": self.train_batch_size // (micro * world),
            "gradient_clipping": self.gradient_clipping,
            "zero_optimization": self.zero_optimization,
            "torch_autocast": self.torch_autocast.model_dump(),
            "zero_allow_untested_optimizer": True,
        }

    def portable(self) -> dict[str, Any]:
        """The content as a ds_config.json would hold it, for any number of ranks."""
        content = self.model_dump(exclude={"passed_on"}, exclude_none=True)
        return content | self.passed_on


def read(path: str | Path | None = None, **overrides: Any) -> DeepSpeedSettings:
    """Read a ds_config.json (default: the project's own) with overrides (`global_batch`, `micro_batch`, `precision`,
    `zero_stage`, `offload`, `gradient_clipping`; None: as the file says).

    Raises ValueError in one line for what DeepSpeed would ignore or the trainer decides.
    """  # fmt: skip
    path = Path(path or DEFAULT_FILE)
    if not path.is_file():
        raise ValueError(f"no DeepSpeed config {path}: give one with --ds-config, or drop it for the default")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    return parse(content, where=str(path), **overrides)


def parse(content: Mapping[str, Any], *, where: str = "ds_config.json", **overrides: Any) -> DeepSpeedSettings:
    """As `read`, of a content that is already here.

    Raises:
        ValueError: no object, an unknown key, or a value that does not fit.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} holds a {type(content).__name__}, not an object")
    own = [name for name in DeepSpeedSettings.model_fields if name != "passed_on"]
    for key in content:
        if key in REFUSED:
            raise ValueError(f"{key} in {where}: {REFUSED[key]}")
        if key not in own and key not in PASSED_ON:
            raise ValueError(f"unknown key {key!r} in {where}: {nearest(key, [*own, *PASSED_ON])}")
    values: dict[str, Any] = {key: content[key] for key in own if key in content}
    values["passed_on"] = {key: content[key] for key in PASSED_ON if key in content}
    _override(values, overrides)
    _check_zero(values.get("zero_optimization"), where)
    try:
        return DeepSpeedSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        hint = ': write it out ("gradient_clipping": 1.0), DeepSpeed would clip at 1.0' if "clipping" in name else ""
        raise ValueError(f"{name} in {where}: got {first.get('input')!r}; {first['msg'].lower()}{hint}") from None


def _override(values: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for name, value in overrides.items():
        if value is None:
            continue
        if name == "global_batch":
            values["train_batch_size"] = value
        elif name == "micro_batch":
            values["train_micro_batch_size_per_gpu"] = value
            values.pop("gradient_accumulation_steps", None)
        elif name == "gradient_clipping":
            values["gradient_clipping"] = value
        elif name == "zero_stage":
            values["zero_optimization"] = {**values.get("zero_optimization", {}), "stage": value}
        elif name == "offload":
            values["zero_optimization"] = _offloading(values.get("zero_optimization", {}), value)
        elif name == "precision":
            if value not in ("fp32", *DTYPES):
                raise ValueError(f"--precision: got {value!r}; allowed: fp32, {', '.join(DTYPES)}")
            values["torch_autocast"] = {"enabled": value != "fp32", "dtype": DTYPES.get(value, "bfloat16")}
        else:
            raise AssertionError(name)


def _offloading(zero: Mapping[str, Any], what: str) -> dict[str, Any]:
    """ZeRO's section with its states in the machine's memory. Raises ValueError for an unknown choice."""
    if what not in OFFLOADS:
        raise ValueError(f"--offload: got {what!r}; allowed: {', '.join(OFFLOADS)}")
    kept = {name: value for name, value in zero.items() if not name.startswith("offload_")}
    return kept | {name: {"device": "cpu"} for name in OFFLOADS[what]}


def _check_zero(zero: Any, where: str) -> None:
    if not isinstance(zero, Mapping) or zero.get("stage") not in (0, 1, 2, 3):
        got = zero.get("stage") if isinstance(zero, Mapping) else zero
        raise ValueError(
            f"zero_optimization.stage in {where}: got {got!r}; allowed: 0, 1, 2, 3 (0: plain data parallel)"
        )
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):
        if zero.get(name, {}).get("device", "none") != "none" and zero["stage"] < least:
            raise ValueError(
                f"zero_optimization.{name} in {where}: ZeRO stage {zero['stage']} has nothing to move there: take "
                f"--zero-stage {least}{' or above' if least < 3 else ''}, or --offload none"
            )
