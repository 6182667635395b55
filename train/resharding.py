"""A ZeRO checkpoint on another number of ranks: its pieces put together by name, and cut again.

At stages 1 and 2 each rank keeps the moments of one stretch of all parameters of a group laid end to end, and says
which stretch of which parameter that is. At stage 3 each rank keeps an equal part of every parameter, the last padded.
(Stage 0 needs none of this: every rank keeps all.)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from train.engine import data_alone


@dataclass(frozen=True)
class Whole:
    """What the pieces of all ranks say together."""

    weights: dict[str, Tensor]  # trained parameters and buffers, by name
    moments: dict[str, dict[str, Tensor]]  # parameter -> key of the optimizer's state -> flat values
    scalars: dict[str, Any]  # of the optimizer's state, the same for all parameters: its own count of steps
    loss_scaler: Any  # of fp16


def read_whole(folder: Path, world: int, stage: int) -> Whole:
    """Put together a checkpoint that `world` ranks wrote at ZeRO stage 1, 2 or 3. Raises ValueError where it cannot."""
    first = "zero_pp_rank_0_mp_rank_00_model_states.pt" if stage == 3 else "mp_rank_00_model_states.pt"
    model = _read(folder / first)
    shapes = {name: shape for group in model["param_shapes"] for name, shape in group.items()}
    pieces = [
        _read(folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
        for rank in range(world)
    ]
    join = _joined_equal_parts if stage == 3 else _joined_stretches
    states = [piece["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]["state"] for piece in pieces]
    first_group = states[0].get(0, {})  # plain SGD keeps nothing
    keys = [key for key, value in first_group.items() if isinstance(value, Tensor) and value.dim()]
    scalars = {key: value for key, value in first_group.items() if key not in keys}
    moments: dict[str, dict[str, Tensor]] = {name: {} for name in shapes}
    for key in keys:
        parts = [[state[group][key].flatten() for group in sorted(state)] for state in states]
        for name, values in join(parts, pieces, shapes).items():
            moments[name][key] = values
    if stage == 3:
        masters = join([[flat.flatten() for flat in piece["fp32_flat_groups"]] for piece in pieces], pieces, shapes)
        weights = {name: masters[name].view(shape) for name, shape in shapes.items()}
        weights |= {name: model["module"][name] for name in model["buffer_names"]}
    else:
        weights = dict(model["module"])
    return Whole(weights, moments, scalars, pieces[0]["loss_scaler"])


def load_weights(model: nn.Module, whole: Whole) -> None:
    """Put the weights into a model that no engine has taken yet; frozen parameters stay those of the start."""
    missing, unexpected = model.load_state_dict(whole.weights, strict=False)
    lost = {name for name, each in model.named_parameters() if each.requires_grad} & set(missing)
    assert not lost and not unexpected, f"the checkpoint does not fit the model: {lost or unexpected}"


def load_optimizer(engine: Any, whole: Whole, rank: int, world: int) -> None:
    """Put the moments into the optimizer of an engine of ZeRO stage 1, 2 or 3, each rank its own part."""
    zero = engine.optimizer
    for key in next(iter(whole.moments.values())):
        if engine.zero_optimization_stage() == 3:
            flats = zero.fp32_partitioned_groups_flat
            values = _cut_equal_parts(flats, whole, key, rank, world)
        else:
            flats = zero.single_partition_of_fp32_groups
            values = _cut_stretches(
                flats, whole, key, dict(engine.module.named_parameters()), zero._param_slice_mappings
            )
        for flat, value in zip(flats, values, strict=True):
            zero.optimizer.state[flat][key] = value
    for state in zero.optimizer.state.values():
        for key, value in whole.scalars.items():
            state[key] = value.clone() if isinstance(value, Tensor) else value
    zero.loss_scaler = whole.loss_scaler


def _joined_stretches(parts: list[list[Tensor]], pieces: list[Any], shapes: dict[str, Any]) -> dict[str, Tensor]:
    """Whole flat values by name; parts: flat values by rank and group."""
    found: dict[str, list[Tensor]] = {name: [] for name in shapes}
    for flats, piece in zip(parts, pieces, strict=True):
        for flat, addresses in zip(flats, piece["param_slice_mappings"], strict=True):
            for name, address in addresses.items():
                found[name].append(flat.narrow(0, address.start, address.numel))
    whole = {name: torch.cat(each) for name, each in found.items()}
    for name, values in whole.items():
        assert values.numel() == shapes[name].numel(), f"pieces of {name} are missing"
    return whole


def _joined_equal_parts(parts: list[list[Tensor]], pieces: list[Any], shapes: dict[str, Any]) -> dict[str, Tensor]:
    """As above; every parameter lies on every rank, in the order of `shapes`."""
    lines, start, whole = [torch.cat(each) for each in parts], 0, {}
    for name, shape in shapes.items():
        length = -(-shape.numel() // len(lines))
        whole[name] = torch.cat([line.narrow(0, start, length) for line in lines])[: shape.numel()]
        start += length
    assert all(start <= line.numel() for line in lines)
    return whole


def _cut_stretches(
    flats: list[Tensor], whole: Whole, key: str, parameters: dict[str, Any], mappings: list[Any]
) -> list[Tensor]:
    """This rank's stretch of each group; `mappings`: what of which parameter lies where in it."""
    cut = [torch.zeros_like(flat) for flat in flats]
    for target, addresses in zip(cut, mappings, strict=True):
        for name, address in addresses.items():
            begin = parameters[name]._hp_mapping.lp_fragment_address.start
            target.narrow(0, address.start, address.numel).copy_(
                whole.moments[name][key].narrow(0, begin, address.numel)
            )
    return cut


def _cut_equal_parts(flats: list[Tensor], whole: Whole, key: str, rank: int, world: int) -> list[Tensor]:
    """This rank's part of every parameter, in groups of the sizes of `flats`."""
    parts = []
    for moments in whole.moments.values():
        length = -(-moments[key].numel() // world)
        padded = nn.functional.pad(moments[key], (0, length * world - moments[key].numel()))
        parts.append(padded.narrow(0, rank * length, length))
    pieces = torch.cat(parts).split([flat.numel() for flat in flats])
    return [piece.to(flat.device).view_as(flat).clone() for piece, flat in zip(pieces, flats, strict=True)]


def _read(path: Path) -> Any:
    with data_alone():
        return torch.load(path, map_location="cpu", weights_only=True)
