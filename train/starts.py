"""Starts of a training: WT, ST, RI, and WT up to a layer group with ST beyond (WT-ST-n).

WT keeps the pretrained weights. ST redraws every tensor of the backbone from a normal with that tensor's own mean and
standard deviation: the scale of each layer survives, its features do not (Raghu et al. 2019, "Transfusion"; Matsoukas
et al. 2022). RI is the model's default initialisation. The classifier is fresh in all of them, with the same values
for the same seed.
"""

import hashlib
import re
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from train.layers import classifier_keys, group_index, layer_groups
from train.models import build, recipe_of, report_of

Start = Literal["wt", "st", "ri"]
Variant = Literal["full", "study"]
STARTS = ("wt", "st", "ri")
VARIANTS = ("full", "study")
_STANDARD_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class StartReport(NamedTuple):
    """What a start did: names of groups that stayed, and state-dict keys by what became of them."""

    start: str
    kept_groups: tuple[str, ...]
    redrawn_groups: tuple[str, ...]
    redrawn: tuple[str, ...]
    reset: tuple[str, ...]  # norms
    kept: tuple[str, ...]  # pretrained values: WT groups, constant and one-element tensors, tables that are not learned
    fresh: tuple[str, ...]  # default initialisation: the classifier; everything in RI

    def text(self) -> str:
        """One line for the log."""
        bounds = f", WT up to {self.kept_groups[-1]}, ST beyond" if self.kept_groups and self.redrawn_groups else ""
        return (
            f"start {self.start}{bounds}: {len(self.kept)} tensors kept, {len(self.redrawn)} redrawn, "
            f"{len(self.reset)} of norms reset, {len(self.fresh)} fresh"
        )


def make_start(
    model: nn.Module,
    start: Start,
    *,
    seed: int,
    wt_until: str | int | None = None,
    st_variant: Variant = "full",
    loaded: bool | None = None,
) -> StartReport:
    """Bring a model made by `create` into its start, in place.

    `wt_until` (with "st") keeps the pretrained weights up to and including a layer group, by name, or in the first n
    groups: 0 is ST, the number of groups is WT. Draws are keyed by seed and tensor name, so the starts of one seed
    are nested. `st_variant="study"` redraws only convolutions and linear layers, as the published study did: class
    token, position embeddings, relative position tables and layer scales stay pretrained. `loaded` says that the
    model holds pretrained weights where `create` did not put them there.

    Raises ValueError for an unknown start or group, and for "wt" or "st" of a model without pretrained weights.
    """
    _check(model, start, wt_until, st_variant, loaded)
    groups = layer_groups(model)
    fresh = build(recipe_of(model), seed).state_dict()
    if start == "ri":
        model.load_state_dict(fresh)
        return StartReport("ri", (), (), (), (), (), tuple(fresh))
    names = list(groups)
    stays = len(names) if start == "wt" else group_index(names, 0 if wt_until is None else wt_until)
    state, head = model.state_dict(), set(classifier_keys(model))
    beyond = {key for name in names[stays:] for key in groups[name]} - head
    changed = redraw(model, beyond, seed, fresh=fresh, variant=st_variant)
    model.load_state_dict({**state, **{key: fresh[key] for key in head}, **changed.values})
    touched = {*changed.redrawn, *changed.reset, *head}
    return StartReport(
        start,
        tuple(names[:stays]),
        tuple(names[stays:]),
        changed.redrawn,
        changed.reset,
        tuple(key for key in state if key not in touched),
        tuple(key for key in state if key in head),
    )


class Redrawn(NamedTuple):
    """New values by key, and which of them were drawn and which are norms put back."""

    values: dict[str, Tensor]
    redrawn: tuple[str, ...]
    reset: tuple[str, ...]


def redraw(
    model: nn.Module, keys: set[str], seed: int, *, fresh: dict[str, Tensor], variant: Variant = "full"
) -> Redrawn:
    """ST values of some state-dict keys; the model itself is not changed.

    `fresh` is a default initialisation of the same architecture, for norms other than torch's. Constant and one-element
    tensors, and buffers outside norms (index tables, frequencies), have no entry: they stay. A tensor that several
    modules share (CoaT's position encodings) belongs to the first of them.
    """
    state = model.state_dict()
    norms, owner = norm_values(model, fresh), _owners(model)
    drawable = set(owner) if variant == "full" else _of_convolutions_and_linears(model)
    values: dict[str, Tensor] = {}
    for key in state:
        if owner.get(key, key) not in keys:
            continue
        if key in norms:
            values[key] = norms[key]
        elif key in drawable and not is_constant(state[key]):
            values[key] = drawn_like(state[key], seed, owner.get(key, key), _moments(model, key, variant))
    return Redrawn(values, tuple(k for k in values if k not in norms), tuple(k for k in values if k in norms))


def _owners(model: nn.Module) -> dict[str, str]:
    """Name of every parameter -> the first name of the same tensor."""
    first: dict[int, str] = {}
    named = model.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(parameter), name) for name, parameter in named}


def drawn_like(tensor: Tensor, seed: int, name: str, moments: tuple[float, float] | None = None) -> Tensor:
    """A tensor of the same shape and type from N(mean, std) of `tensor` (or of `moments`), keyed by seed and name."""
    exact = tensor.detach().double()
    mean, std = moments or (exact.mean().item(), exact.std().item())
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=16, person=b"medshard-start").digest())
    normal = np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(tensor.shape))
    return (torch.from_numpy(np.asarray(normal)) * std + mean).to(dtype=tensor.dtype, device=tensor.device)


def is_constant(tensor: Tensor) -> bool:
    """Whether a tensor has no spread to draw from: one value, or all values equal."""
    return tensor.numel() < 2 or bool((tensor == tensor.flatten()[0]).all())


def norm_values(model: nn.Module, fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """State-dict keys of all normalisation layers with their reset values: 1 and 0, running mean 0 and variance 1.

    Families' own norms (by class name, with parameters of their own) go back to their default initialisation.
    """
    values: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if not is_norm(module):
            continue
        own = {**module._parameters, **module._buffers}
        for tensor_name in (key for key, tensor in own.items() if tensor is not None):
            key = f"{name}.{tensor_name}" if name else tensor_name
            if key in fresh:
                values[key] = _reset_value(module, tensor_name, fresh[key])
    return values


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises: torch's norms and what a family calls one, if it has parameters of its own."""
    if isinstance(module, _STANDARD_NORMS):
        return True
    return bool(module._parameters) and re.search(r"Norm|Affine", type(module).__name__) is not None


def _reset_value(module: nn.Module, name: str, fresh: Tensor) -> Tensor:
    """A default initialisation may set a branch's last norm to zero; a reset one scales by 1, as torch's own reset."""
    if isinstance(module, _STANDARD_NORMS) and name == "weight":
        return torch.ones_like(fresh)
    return fresh.clone()


def _moments(model: nn.Module, key: str, variant: Variant) -> tuple[float, float] | None:
    """The study redraws before it adapts the first layer, so that layer's moments are those of three channels."""
    report = report_of(model)
    return report.first_conv.get(key) if variant == "study" and report is not None else None


def _of_convolutions_and_linears(model: nn.Module) -> set[str]:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return {
        f"{name}.{tensor}"
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        for tensor in module._parameters
    }


def _check(model: nn.Module, start: str, wt_until: str | int | None, variant: str, loaded: bool | None) -> None:
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}; known: {', '.join(STARTS)}")
    if variant not in VARIANTS:
        raise ValueError(f"unknown st_variant {variant!r}; known: {', '.join(VARIANTS)}")
    if wt_until is not None and start != "st":
        raise ValueError(f"wt_until={wt_until!r} goes with start 'st', got start {start!r}")
    has_weights = report_of(model) is not None if loaded is None else loaded
    if start != "ri" and not has_weights:
        raise ValueError(
            f"start {start!r} needs pretrained weights: create the model with pretrained=True or --weights FILE"
        )
