"""Schedules against torch, parameter groups, optimizers by name. Run: pytest tests/test_optimisation.py"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from train.config import Optimizer, Schedule
from train.optimisation import ELEMENTWISE, Rates, build_optimizer, make_optimizer, parameter_groups, plateau


def torch_rates(make: Callable[[torch.optim.Optimizer], Any], steps: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(schedule: Schedule, steps: int, epoch_steps: float = 10.0) -> list[float]:
    rates = Rates(schedule, 0.1, steps, epoch_steps)
    return [rates.at(step) for step in range(steps)]


def test_cosine_is_torchs() -> None:
    schedule = Schedule(schedule="cosine", warmup_steps=0, min_lr=0.01)
    expected = torch_rates(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 50, 0.01), 50)
    assert ours(schedule, 50) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("pct_start", [0.3, 0.0, 0.5])
def test_onecycle_is_torchs(pct_start: float) -> None:
    schedule = Schedule(schedule="onecycle", warmup_steps=0, pct_start=pct_start, div_factor=10, final_div_factor=100)
    expected = torch_rates(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            0.1,
            total_steps=40,
            pct_start=pct_start,
            div_factor=10,
            final_div_factor=100,
            cycle_momentum=False,
        ),
        40,
    )
    assert ours(schedule, 40) == pytest.approx(expected, rel=1e-9)


def test_multistep_is_torchs_by_epochs() -> None:
    schedule = Schedule(schedule="multistep", warmup_steps=0, milestones=(2, 3), gamma=0.2)
    expected = torch_rates(lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [20, 30], 0.2), 40)
    assert ours(schedule, 40, epoch_steps=10) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("patience", [0, 2])
def test_plateau_is_torchs(patience: int) -> None:
    history = [0.1, 0.3, 0.3, 0.29, 0.30001, 0.2, math.nan, 0.5, 0.4, 0.4, 0.4, 0.1, -0.2, 0.6]
    schedule = Schedule(schedule="plateau", plateau_patience=patience, plateau_factor=0.5, min_lr=0.01)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    theirs = lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=patience, min_lr=0.01)
    for length, value in enumerate(history, 1):
        theirs.step(value)
        assert plateau(history[:length], 0.1, schedule) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_plateau_takes_a_fall_below_zero_for_no_gain() -> None:
    """Torch multiplies a negative best by 1 + 1e-4, and so takes an equal kappa for a gain for ever."""
    schedule = Schedule(schedule="plateau", plateau_patience=1)
    assert plateau([-0.1, -0.1, -0.1, -0.2, -0.2], 0.1, schedule) == pytest.approx(1e-3)
    assert plateau([-0.1, -0.05, -0.01, 0.2], 0.1, schedule) == 0.1


def test_warm_up_is_linear_and_epochs_win() -> None:
    rates = Rates(Schedule(warmup_steps=7, warmup_epochs=0.4), 1.0, 100, 10.0)
    assert [rates.at(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Rates(Schedule(), 1.0, 100_000, 10.0).warmup == 1000
    assert Rates(Schedule(), 1.0, 100, 10.0).warmup == 10


def test_groups_spare_biases_and_one_dimensional_tensors() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    groups = {group["weight_decay"]: set(group["names"]) for group in parameter_groups(model, 0.1)}
    assert groups == {0.1: {"0.weight", "2.weight"}, 0.0: {"0.bias", "1.weight", "1.bias", "2.bias"}}


def test_frozen_parameters_are_in_no_group_and_layers_decay() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight.requires_grad_(False)
    layers = {"a": ["0.weight"], "b": ["1.weight"], "c": ["2.weight"]}
    groups = parameter_groups(model, 0.1, 0.5, layers)
    assert {group["names"][0]: group["lr_scale"] for group in groups} == {"0.weight": 0.25, "2.weight": 1.0}


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("lamb", "Lamb"), ("lion", "Lion")]
)
def test_optimizers_by_name(name: str, kind: str) -> None:
    optimizer = build_optimizer(name, [{"params": [nn.Parameter(torch.zeros(2, 2))], "names": ["w"]}], 0.1, {})
    assert type(optimizer).__name__ == kind
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_wrong_optimizers_are_named() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))]}]
    with pytest.raises(ValueError, match=r"'adm'; nearest: .*adam"):
        build_optimizer("adm", groups, 0.1, {})
    with pytest.raises(ValueError, match=r"optimizer sgd with .*betas"):
        build_optimizer("sgd", groups, 0.1, {"betas": [0.9, 0.99]})


@pytest.mark.parametrize("name", ["lars", "lamb", "muon", "adafactor", "cadamw"])
def test_zero_refuses_what_it_would_change(name: str) -> None:
    with pytest.raises(ValueError, match="--zero-stage 0"):
        make_optimizer(Optimizer(optimizer=name), nn.Linear(2, 2, bias=False), lr=0.1, stage=1)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_optimizers_do_not_feel_a_cut(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(33, 40, generator=generator), torch.randn(48, 32, generator=generator) * 5]
    pulls = [
        [torch.randn(t.shape, generator=generator) * s for t, s in zip(start, (1, 20), strict=True)] for _ in "abc"
    ]

    def flat(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        return list(torch.cat([tensor.flatten() for tensor in tensors]).split(1000))

    def run(tensors: list[torch.Tensor], gradients: list[list[torch.Tensor]]) -> torch.Tensor:
        parameters = [nn.Parameter(tensor.clone()) for tensor in tensors]
        optimizer = build_optimizer(name, [{"params": parameters, "weight_decay": 0.01}], 0.01, {})
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    torch.testing.assert_close(run(start, pulls), run(flat(start), [flat(p) for p in pulls]), rtol=1e-4, atol=1e-6)
