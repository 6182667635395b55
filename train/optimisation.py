"""Parameter groups, optimizers by name, and learning rates as pure functions of the step."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from train.config import Optimizer, Schedule

DEFAULT_WARMUP_STEPS = 1000  # the study's
# Safe under ZeRO >= 1, which flattens and cuts tensors: LARS, LAMB, Muon, Adafactor, the "cautious" family (names in c)
# and others use the norm, the shape or the mean of a whole tensor, and would silently become something else.
ELEMENTWISE = (
    "adabelief", "adadelta", "adagrad", "adam", "adamax", "adamw", "adopt", "asgd", "lion", "madgrad", "momentum",
    "nadam", "nadamw", "radam", "rmsprop", "rmsproptf", "rprop", "sgd",
)  # fmt: skip
SKIPPED = {"optimizer", "lbfgs", "sparseadam"}  # need a closure or sparse gradients


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, layers: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters by layer and by decay; none for biases and 1-d tensors.

    Each group holds `params`, `weight_decay`, `lr_scale` (layer_decay ** number of layer groups above) and `names`.
    `layers` (group name -> state-dict keys, from the input to the head) is needed where layer_decay is below 1.
    """
    depth = {key: number for number, keys in enumerate((layers or {}).values()) for key in keys}
    top = max(depth.values(), default=0)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or name.endswith(".bias") else weight_decay
        scale = layer_decay ** (top - depth[name]) if layer_decay < 1 else 1.0
        group = groups.setdefault((scale, decay), {"params": [], "names": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def optimizer_names() -> list[str]:
    """Names that `build_optimizer` knows: torch's, then timm's."""
    from timm.optim import list_optimizers

    return sorted({*_torch_optimizers(), *(str(name) for name in list_optimizers())})


def build_optimizer(
    name: str, groups: list[dict[str, Any]], lr: float, args: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of torch (which wins) or timm over parameter groups.

    Raises ValueError for an unknown name (nearest offered) or arguments that the optimizer does not take.
    """
    from timm.optim import list_optimizers
    from timm.optim._optim_factory import default_registry

    own = _torch_optimizers()
    kind: Any
    settings: dict[str, Any]
    if name in own:
        kind, settings = own[name], {"lr": lr, **args}
    elif name in list_optimizers():
        kind = default_registry.get_optimizer_class(name, bind_defaults=True)
        settings = {"lr": lr, **args}
    else:
        close = difflib.get_close_matches(name.lower(), optimizer_names(), n=4, cutoff=0.5)
        raise ValueError(f"unknown optimizer {name!r}; nearest: {', '.join(close or sorted(own))}")
    plain = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    try:
        return kind(plain, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(f"optimizer {name} with {dict(args)}: {error}: see --optimizer-args") from None


def make_optimizer(
    config: Optimizer,
    model: nn.Module,
    *,
    lr: float,
    stage: int,
    layers: Mapping[str, Sequence[str]] | None = None,
    batch: int = 0,
) -> torch.optim.Optimizer:
    """The optimizer of a config at a global batch; ValueError where ZeRO `stage` would silently make it another."""
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, layers)
    optimizer = build_optimizer(config.optimizer, groups, lr, config.optimizer_args)
    if stage >= 1 and config.optimizer not in ELEMENTWISE:
        raise ValueError(
            f"optimizer {config.optimizer} is not known to treat each number by itself, and ZeRO stage {stage} "
            f"flattens and cuts tensors: take ZeRO stage 0 (--zero-stage 0), or one of {', '.join(ELEMENTWISE)}"
        )
    if config.lars and batch >= config.lars_from_batch:
        if stage >= 1:
            raise ValueError(f"lars takes norms of whole tensors, which ZeRO stage {stage} cuts: take --zero-stage 0")
        add_lars(optimizer, config.lars_trust, config.lars_eps)
    return optimizer


def scaled(config: Optimizer, lr: float, batch: int) -> float:
    """A rate as it holds at a global batch: times batch / 256 where that was asked for (Goyal et al. 2017)."""
    return lr * (batch / 256 if config.autoscale_lr else 1)


def add_lars(optimizer: torch.optim.Optimizer, trust: float, eps: float) -> None:
    """Layer-wise adaptive rate scaling around any optimizer: before each step, of every tensor,

        g ← (g + λ w) · trust · |w| / (|g| + λ |w| + eps)

    with its weight decay λ, which then is left to no one else; tensors or gradients that are zero stay as they are
    (You, Gitman and Ginsburg 2017, "Large Batch Training of Convolutional Networks", equation 6).
    """
    decays = [float(group.get("weight_decay", 0.0)) for group in optimizer.param_groups]

    @torch.no_grad()
    def scale(*_: Any) -> None:
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = 0.0
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                size, slope = weight.norm(), weight.grad.norm()
                ratio = torch.where((size > 0) & (slope > 0), trust * size / (slope + decay * size + eps), 1.0)
                weight.grad.add_(weight, alpha=decay).mul_(ratio)

    def restore(*_: Any) -> None:
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay

    optimizer.register_step_pre_hook(scale)
    optimizer.register_step_post_hook(restore)


def _torch_optimizers() -> dict[str, type[torch.optim.Optimizer]]:
    found = {}
    for name in sorted(vars(torch.optim)):
        kind = getattr(torch.optim, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name.lower() not in SKIPPED:
            found[name.lower()] = kind
    return found


@dataclass(frozen=True)
class Rates:
    """The learning rate of every step of a run, after a linear warm-up: a pure function.

    `base`: rate after the warm-up. `epoch_steps`: steps an epoch, a fraction where batches straddle epochs.
    """

    schedule: Schedule
    base: float
    total_steps: int
    epoch_steps: float

    @property
    def warmup(self) -> int:
        """Steps of warm-up."""
        if self.schedule.warmup_epochs is not None:
            return round(self.schedule.warmup_epochs * self.epoch_steps)
        if self.schedule.warmup_steps is not None:
            return self.schedule.warmup_steps
        return min(DEFAULT_WARMUP_STEPS, self.total_steps // 10)

    def at(self, step: int, history: Sequence[float] = ()) -> float:
        """Rate of step 0, 1, …; `history`: the target metric of the validations before it (plateau alone reads it)."""
        if step < self.warmup:
            return self.base * (step + 1) / self.warmup
        after, rest = step - self.warmup, max(self.total_steps - self.warmup, 1)
        kind = self.schedule.schedule
        if kind == "cosine":
            return cosine(after, rest, self.base, self.schedule.min_lr)
        if kind == "onecycle":
            return onecycle(after, rest, self.base, self.schedule)
        if kind == "multistep":
            passed = sum(step >= milestone * self.epoch_steps for milestone in self.schedule.milestones)
            return self.base * self.schedule.gamma**passed
        if kind == "plateau":
            return plateau(history, self.base, self.schedule)
        return self.base


def cosine(step: int, steps: int, base: float, end: float) -> float:
    """Half a cosine from `base` at 0 to `end` at `steps` (Loshchilov and Hutter 2017, without restarts)."""
    return end + (base - end) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2


def onecycle(step: int, steps: int, peak: float, schedule: Schedule) -> float:
    """Up to `peak` and down, each half a cosine or a line (Smith and Topin 2018), as torch's OneCycleLR."""
    bend = _half_cosine if schedule.anneal == "cos" else float
    start = peak / schedule.div_factor
    end = start / schedule.final_div_factor
    top = float(schedule.pct_start * steps) - 1
    last = steps - 1
    if step <= top and top > 0:
        return start + (peak - start) * bend(step / top)
    share = min((step - top) / (last - top), 1.0) if last > top else 1.0
    return peak + (end - peak) * bend(share)


def _half_cosine(share: float) -> float:
    return (1 - math.cos(math.pi * share)) / 2


def plateau(history: Sequence[float], base: float, schedule: Schedule) -> float:
    """The rate after these validations (higher is better): times factor after each run of patience + 1 without gain.

    A gain is a relative one of 1e-4, as in torch's ReduceLROnPlateau(mode="max"), but for negative values (kappa), of
    which torch takes an equal one for a gain; NaN is none.
    """
    rate, best, bad = base, -math.inf, 0
    for value in history:
        if value > best * (1 + 1e-4 if best > 0 else 1 - 1e-4) if math.isfinite(best) else value > best:
            best, bad = value, 0
        else:
            bad += 1
        if bad > schedule.plateau_patience:
            rate, bad = max(rate * schedule.plateau_factor, schedule.min_lr), 0
    return rate
