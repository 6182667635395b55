"""How far the weights went: L2 distances between two states of one model, layer group by layer group.

Weights, biases, norm layers and buffers are told apart, because they live on different scales: a norm's gain starts
at 1, a bias at 0, and running statistics follow the data, not the gradient. Every distance is that of its own tensors
alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from train.starts import is_norm

KINDS = ("weights", "biases", "norms", "buffers")
TRAINED = ("weights", "biases", "norms")


class Change(NamedTuple):
    """What became of some tensors. Norms are Euclidean over all their values together."""

    parameters: int
    absolute: float  # |end - start|
    relative: float  # |end - start| / |start|, NaN where the start is all zero
    per_sqrt_parameter: float  # |end - start| / sqrt(parameters): root mean square change of a value
    cosine: float  # cosine of end and start, NaN where one of them is all zero
    start_norm: float
    end_norm: float
    study: float  # mean over tensors of |end - start| / (values of the tensor), the published study's measure


def kinds_of_keys(model: nn.Module) -> dict[str, str]:
    """State-dict key -> "weights", "biases", "norms" (gain and bias of a normalisation layer) or "buffers"."""
    modules, parameters = (
        dict(model.named_modules()),
        {name for name, _ in model.named_parameters(remove_duplicate=False)},
    )
    kinds = {}
    for key in model.state_dict():
        owner, _, leaf = key.rpartition(".")
        if key not in parameters:
            kinds[key] = "buffers"
        elif is_norm(modules[owner]):
            kinds[key] = "norms"
        else:
            kinds[key] = "biases" if leaf == "bias" or leaf.endswith("_bias") else "weights"
    return kinds


def change(start: Sequence[Tensor], end: Sequence[Tensor]) -> Change:
    """Return the change from `start` to `end`, lists of tensors of equal shapes; sums run in float64.

    Raises ValueError for tensors of unequal shapes.
    """
    squares = {"difference": 0.0, "start": 0.0, "end": 0.0, "product": 0.0}
    count, study = 0, []
    for before, after in zip(start, end, strict=True):
        if before.shape != after.shape:
            raise ValueError(f"tensors of shapes {tuple(before.shape)} and {tuple(after.shape)} cannot be compared")
        first, last = (tensor.detach().double().flatten() for tensor in (before, after))
        distance = float(torch.dot(last - first, last - first))
        squares["difference"] += distance
        squares["start"] += float(torch.dot(first, first))
        squares["end"] += float(torch.dot(last, last))
        squares["product"] += float(torch.dot(first, last))
        count += before.numel()
        study.append(np.sqrt(distance) / before.numel())
    absolute, start_norm, end_norm = (float(np.sqrt(squares[name])) for name in ("difference", "start", "end"))
    nan = float("nan")
    return Change(
        parameters=count,
        absolute=absolute,
        relative=absolute / start_norm if start_norm else nan,
        per_sqrt_parameter=absolute / np.sqrt(count) if count else nan,
        cosine=squares["product"] / (start_norm * end_norm) if start_norm and end_norm else nan,
        start_norm=start_norm,
        end_norm=end_norm,
        study=float(np.mean(study)) if study else nan,
    )


def study_distance(start: Mapping[str, Tensor], end: Mapping[str, Tensor]) -> float:
    """Return the published study's measure: the mean over all tensors of |end - start| / (values of the tensor).

    Its code passes the whole state for every layer, counters and index tables too, so all layers get this number.
    """
    return float(np.mean([_study(start[key], end[key]) for key in start]))


def _study(before: Tensor, after: Tensor) -> float:
    # In the type of the weights, as there: float32 sums.
    difference = after - before if after.is_floating_point() else after.float() - before.float()
    return float(np.linalg.norm(difference.cpu().numpy())) / max(1, before.numel())


def changes(
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    groups: Mapping[str, Iterable[str]],
    kinds: Mapping[str, str],
) -> dict[str, dict[str, Change]]:
    """Return {group: {"all": ..., kind: ...}} for the kinds a group has; "all" is what training moves (no buffers).

    Integer and boolean buffers (counters, index tables) have no distance and are left out.
    Raises ValueError where the two states have different keys, naming the first.
    """
    if start.keys() != end.keys():
        odd = sorted(start.keys() ^ end.keys())
        raise ValueError(f"the two states differ in {len(odd)} keys ({odd[0]!r} first): are they of one model?")
    table = {}
    for group, keys in groups.items():
        floating = [key for key in keys if start[key].is_floating_point()]
        chosen = {"all": [key for key in floating if kinds[key] in TRAINED]}
        chosen |= {kind: [key for key in floating if kinds[key] == kind] for kind in KINDS}
        table[group] = {
            name: change([start[key] for key in some], [end[key] for key in some])
            for name, some in chosen.items()
            if some or name == "all"
        }
    return table
