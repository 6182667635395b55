"""Re-initialisation: a group's change touches its own keys, and the cached beginning changes no digit."""

from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn

from analysis.replay import Replay, exchanged
from train.layers import layer_groups

SMALL = {"deit_tiny_patch16_224": {"img_size": 32}, "resnet18": {}, "tf_efficientnet_lite0": {}}
ALL = {
    "resnet50": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64},
    "inception_v3": {},
    "convnext_atto": {},
    "focalnet_tiny_srf": {},
}


def model_pair(name: str, options: dict) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    other = timm.create_model(name, num_classes=3, **options).state_dict()
    return timm.create_model(name, num_classes=3, **options).eval(), other


def exchanges(model: nn.Module, other: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    return {group: {key: other[key] for key in keys} for group, keys in layer_groups(model).items()}


def check_replay(name: str, options: dict) -> None:
    model, other = model_pair(name, options)
    groups, swaps = layer_groups(model), exchanges(model, other)
    replay, plain = Replay(model, groups), Replay(model, groups, reuse=False)
    side = 299 if name.startswith("inception") else options.get("img_size", 64)
    for batch in torch.randn(2, 2, 3, side, side, generator=torch.Generator().manual_seed(0)):
        fast, slow = list(replay.run(batch, swaps)), list(plain.run(batch, swaps))
        assert [group for group, _ in fast] == [None, *groups]
        for (group, left), (_, right) in zip(fast, slow, strict=True):
            assert torch.equal(left, right), f"{name}: {group}"
        assert not torch.equal(fast[0][1], fast[1][1])
    assert not any(module._forward_hooks or "forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("name", SMALL)
def test_replay_gives_the_digits_of_plain_passes(name):
    check_replay(name, SMALL[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_replay_in_more_families(name):
    check_replay(name, ALL[name])


class Counting(nn.Module):
    """Ten blocks that count their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.blocks = nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)])
        for block in self.blocks:
            block.register_forward_pre_hook(self._count)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)

    def _count(self, module: nn.Module, inputs: tuple) -> None:
        if "forward" not in module.__dict__:
            self.calls += 1


def linear_groups(model: Counting) -> Iterator[tuple[str, list[str]]]:
    for i in range(10):
        yield f"blocks.{i}", [f"blocks.{i}.weight", f"blocks.{i}.bias"]


def test_replay_costs_half():
    model = Counting().eval()
    groups = dict(linear_groups(model))
    swaps = {group: {key: torch.zeros_like(model.state_dict()[key]) for key in keys} for group, keys in groups.items()}
    list(Replay(model, groups).run(torch.ones(1, 4), swaps))
    assert model.calls == 10 + sum(range(1, 11))


class InPlace(nn.Module):
    """Changes a unit's output in place, as some functional code does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x += 1
        return self.second(x)


def test_outputs_changed_in_place_are_kept_as_they_were():
    torch.manual_seed(0)
    model = InPlace().eval()
    groups = {name: [f"{name}.weight", f"{name}.bias"] for name in ("first", "second")}
    swaps = {group: {key: torch.ones_like(model.state_dict()[key]) for key in keys} for group, keys in groups.items()}
    images = torch.randn(3, 4)
    fast, slow = (list(Replay(model, groups, reuse=reuse).run(images, swaps)) for reuse in (True, False))
    for (_, left), (_, right) in zip(fast, slow, strict=True):
        assert torch.equal(left, right)


def test_exchange_touches_its_keys_alone_and_goes_back():
    model, other = model_pair("deit_tiny_patch16_224", {"img_size": 32})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for tensors in exchanges(model, other).values():
        with exchanged(model, tensors):
            for key, value in model.state_dict().items():
                assert torch.equal(value, (other if key in tensors else before)[key]), key
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_exchange_refuses_what_does_not_fit():
    model = nn.Linear(2, 2)
    message = r"cannot exchange 'weight': shape \(3,\), the model has \(2, 2\)"
    with pytest.raises(ValueError, match=message), exchanged(model, {"weight": torch.zeros(3)}):
        pass
    with pytest.raises(ValueError, match="no such key"), exchanged(model, {"wei": torch.zeros(3)}):
        pass
