"""Weights from a file into a timm model: read, rename, adapt, and say what fitted.

A file is .safetensors, or a torch file read with weights_only=True. Nested state dicts and name prefixes ("module.",
"backbone.") are undone, timm's own filter of the family is applied where names or shapes differ (foreign names,
position tables of another image size), the first convolution is adapted to the model's channels, and a classifier of
another class count is left out.
"""

import pickle
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from shards.errors import first_line
from train.layers import classifier_keys

FirstConv = Literal["sum", "red"]
_NESTS = ("state_dict", "model", "model_state_dict", "module", "teacher", "student", "net")
_ENOUGH = 0.9


@dataclass(frozen=True)
class LoadReport:
    """What of a set of pretrained weights went into a model."""

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()  # keys of the model that keep their fresh values
    unexpected: tuple[str, ...] = ()  # keys of the file that the model has no place for
    fresh_head: bool = False  # the file has no classifier of this class count
    adapted: tuple[str, ...] = ()  # first convolutions brought to another number of channels
    first_conv: dict[str, tuple[float, float]] = field(default_factory=dict)  # their mean and std before that

    def text(self) -> str:
        """One paragraph for the log."""
        parts = [f"weights from {self.source}: {len(self.matched)} tensors matched"]
        parts += [f"{len(self.missing)} missing ({_examples(self.missing)})"] if self.missing else []
        parts += [f"{len(self.unexpected)} unexpected ({_examples(self.unexpected)})"] if self.unexpected else []
        parts += [f"first layer adapted: {', '.join(self.adapted)}"] if self.adapted else []
        return "; ".join([*parts, "classifier fresh" if self.fresh_head else "classifier loaded"])


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Raises ValueError where the file is missing, of another kind, or would have to run code to be read.
    """
    if (best := path / "weights" / "best.safetensors").is_file():
        path = best  # of a run directory
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError) as error:
        raise ValueError(
            f"weights file {path} cannot be read safely ({first_line(error)}); give a .safetensors file or a plain "
            "state dict"
        ) from error
    return _tensors(loaded, path)


def load_weights(
    model: nn.Module, state: dict[str, Tensor], source: str, *, first_conv: FirstConv = "sum"
) -> LoadReport:
    """Put `state` into `model` in place and report what matched.

    Raises ValueError, with counts and examples and the model untouched, where under 90 % of the backbone's keys fit.
    """
    own = model.state_dict()
    head = set(classifier_keys(model))
    state = fitting_names(state, model)
    state, adapted = _adapt_first_conv(state, model, first_conv)
    matched = [key for key in own if key in state and state[key].shape == own[key].shape]
    if not head.issubset(matched):
        matched = [key for key in matched if key not in head]
    taken = set(matched)
    counted = [key for key in own if key not in head and not key.endswith("num_batches_tracked")]
    missing = tuple(key for key in own if key not in taken and key not in head)
    unexpected = tuple(key for key in state if key not in own)
    fitting = sum(key in taken for key in counted)
    if fitting < _ENOUGH * len(counted):
        lost = [key for key in counted if key not in taken]
        other = tuple(key for key in lost if key in state)
        absent = tuple(key for key in lost if key not in state)
        raise ValueError(
            f"the weights of {source} do not fit {type(model).__name__}: {fitting} of its {len(counted)} backbone "
            f"tensors match; missing {len(absent)} ({_examples(absent)}), other shape {len(other)} "
            f"({_examples(other)}), "
            f"unexpected {len(unexpected)} ({_examples(unexpected)}): choose the model they are of"
        )
    model.load_state_dict({key: state[key] for key in matched}, strict=False)
    return LoadReport(source, tuple(matched), missing, unexpected, not head.issubset(taken), tuple(adapted), adapted)


def _tensors(loaded: object, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(loaded, dict):
            break
        if any(isinstance(value, Tensor) for value in loaded.values()):
            return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}
        loaded = next((loaded[nest] for nest in _NESTS if isinstance(loaded.get(nest), dict)), None)
    raise ValueError(f"weights file {path} holds no state dict (looked for tensors and for {', '.join(_NESTS)})")


def fitting_names(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state under the model's names: the best-fitting prefix dropped, then timm's filter of the family applied."""
    own = model.state_dict()
    prefixes = {""} | {
        ".".join(key.split(".")[:depth]) + "." for key in state for depth in (1, 2) if key.count(".") >= depth
    }

    def stripped(prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    best = max(sorted(prefixes, key=len), key=lambda prefix: sum(key in own for key in stripped(prefix)))
    if sum(key in own for key in stripped(best)) > sum(key in own for key in state):
        state = stripped(best)
    head = set(classifier_keys(model))
    if all(key in state and state[key].shape == own[key].shape for key in own if key not in head):
        return state
    family = sys.modules.get(type(model).__module__)
    if not hasattr(family, "checkpoint_filter_fn"):
        return state
    try:
        return dict(family.checkpoint_filter_fn(dict(state), model))  # type: ignore[union-attr]
    except (KeyError, RuntimeError, IndexError, AttributeError, AssertionError):
        return state  # weights of another family: the counts that follow say so


def _adapt_first_conv(
    state: dict[str, Tensor], model: nn.Module, how: FirstConv
) -> tuple[dict[str, Tensor], dict[str, tuple[float, float]]]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    state, own, adapted = dict(state), model.state_dict(), {}
    for name in (names,) if isinstance(names, str) else names:
        key = f"{name}.weight"
        if key not in state or key not in own or state[key].ndim != 4 or state[key].shape[1] == own[key].shape[1]:
            continue
        weight = state[key]
        adapted[key] = (weight.double().mean().item(), weight.double().std().item())
        state[key] = adapt_channels(weight, own[key].shape[1], how)
    return state, adapted


def adapt_channels(weight: Tensor, in_chans: int, how: FirstConv = "sum") -> Tensor:
    """A first convolution [out, channels, h, w] for another number of channels.

    "sum" is timm's rule: three to one sums the channels, more repeat and rescale them. "red" keeps the first channel,
    as the published study does, for one-channel images. A one-channel weight is spread evenly, so that a grey image
    gives the same answer.
    """
    if how == "red" and in_chans == 1:
        return weight[:, :1].clone()
    if weight.shape[1] == 1:
        return weight.repeat(1, in_chans, 1, 1) / in_chans
    return adapt_input_conv(in_chans, weight)


def _examples(keys: tuple[str, ...], number: int = 3) -> str:
    return ", ".join(keys[:number]) + (", …" if len(keys) > number else "") if keys else "none"
