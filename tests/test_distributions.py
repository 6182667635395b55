"""Drawn parameters come in torchvision's distribution, or the one that is stated (Kolmogorov and Smirnov)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from shards.colours import ColorJitter, GaussianBlur
from shards.draws import DrawKeys
from shards.levels import Gamma
from shards.operators import More, Normalize, Operator, Params, RandomCrop
from shards.stains import StainJitter
from shards.transforms import Views
from shards.views import MultiCrop
from shards.warps import Affine, Perspective, Rotation

COUNT, HEIGHT, WIDTH = 2000, 120, 200
Columns = Callable[[Any], list[Any]]


def crop_of(params: dict[str, Any]) -> list[int]:
    """`make_params` pads first and counts from the padded image's corner, as `window` does."""
    return [params["top"], params["left"]]


def jitter_of(params: dict[str, Any]) -> list[float]:
    places = torch.argsort(params["fn_idx"]).tolist()
    return [*(float(params[f"{name}_factor"]) for name in ("brightness", "contrast", "saturation", "hue")), *places]


CASES: list[tuple[Operator, v2.Transform, Callable[[Params], np.ndarray], Columns]] = [
    (
        Rotation(degrees=(-30.0, 70.0)),
        v2.RandomRotation((-30.0, 70.0)),
        lambda ours: ours["angle"][:, None],
        lambda theirs: [theirs["angle"]],
    ),
    (
        Affine(degrees=(-20.0, 20.0), translate=(0.1, 0.3), scale=(0.5, 1.5), shear=(-10.0, 10.0, 0.0, 30.0)),
        v2.RandomAffine((-20.0, 20.0), (0.1, 0.3), (0.5, 1.5), (-10.0, 10.0, 0.0, 30.0)),
        lambda ours: np.column_stack([ours[name] for name in ("angle", "shift", "scale", "shear")]),
        lambda theirs: [theirs["angle"], *theirs["translate"], theirs["scale"], *theirs["shear"]],
    ),
    (
        Perspective(p=1.0, distortion_scale=0.6),
        v2.RandomPerspective(0.6, p=1.0),
        lambda ours: ours["matrix"].reshape(-1, 9)[:, :8],
        lambda theirs: theirs["coefficients"],
    ),
    (
        RandomCrop(100, padding=10),
        v2.RandomCrop(100, padding=10),
        lambda ours: ours["window"][:, :2] + 10,
        crop_of,
    ),
    (
        ColorJitter(1.0, 0.4, 1.5, 0.2, 0.1),
        v2.ColorJitter(0.4, 1.5, 0.2, 0.1),
        lambda ours: np.column_stack(
            [*(ours[name] for name in ("brightness", "contrast", "saturation", "hue")), np.argsort(ours["order"])]
        ),
        jitter_of,
    ),
    (
        GaussianBlur(1.0, 23, (0.1, 2.0)),
        v2.GaussianBlur(23, (0.1, 2.0)),
        lambda ours: ours["sigma"][:, None],
        lambda theirs: [theirs["sigma"][0]],
    ),
]


@pytest.mark.parametrize(("ours", "theirs", "own", "other"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_parameters_are_distributed_as_torchvisions(
    ours: Operator, theirs: v2.Transform, own: Callable[[Params], np.ndarray], other: Columns
) -> None:
    name, zeros = type(ours).__name__, np.zeros(COUNT, np.int64)
    keys = DrawKeys(0, zeros, np.arange(COUNT, dtype=np.uint64), zeros)
    sizes = np.tile([HEIGHT, WIDTH], (COUNT, 1))
    drawn = own(ours.draw(keys.uniform(name, ours.uniforms), sizes, More(keys, name))[0])
    torch.manual_seed(0)
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    expected = np.array([other(theirs.make_params([image])) for _ in range(COUNT)])
    assert drawn.shape == expected.shape
    for ours_column, theirs_column in zip(drawn.T, expected.T, strict=True):
        assert stats.ks_2samp(ours_column, theirs_column).pvalue > 1e-3


def test_stains_and_gamma_are_uniform_as_stated_and_independent() -> None:
    zeros = np.zeros(COUNT, np.int64)
    keys = DrawKeys(0, zeros, np.arange(COUNT, dtype=np.uint64), zeros)
    sizes = np.tile([HEIGHT, WIDTH], (COUNT, 1))

    def drawn(operator: Operator) -> Params:
        name = type(operator).__name__
        return operator.draw(keys.uniform(name, operator.uniforms), sizes, More(keys, name))[0]

    stains, gamma = drawn(StainJitter(0.7, 0.1, 0.04)), drawn(Gamma(0.4, (0.5, 3.0)))
    columns = [*((stains["alpha"][:, i], 0.9, 1.1) for i in range(3))]
    columns += [*((stains["beta"][:, i], -0.04, 0.04) for i in range(3))]
    columns += [(np.log(gamma["gamma"]), np.log(0.5), np.log(3.0))]
    for column, low, high in columns:
        assert stats.kstest(column, "uniform", (low, high - low)).pvalue > 1e-3
    pairs = np.corrcoef(np.stack([*(column for column, _, _ in columns), stains["active"], gamma["active"]]))
    assert abs(pairs[np.triu_indices(len(pairs), 1)]).max() < 5 / np.sqrt(COUNT)
    for active, p in ((stains["active"], 0.7), (gamma["active"], 0.4)):
        assert stats.binomtest(int(active.sum()), COUNT, p).pvalue > 1e-3


def test_crops_of_views_are_distributed_as_torchvisions() -> None:
    """With the study's sizes and scales, and one above 1; each view of each size by itself."""
    scales = ((0.4, 1.0), (0.05, 0.4), (0.8, 1.2))
    views = Views((MultiCrop((2, 2, 1), (224, 96, 64), scales), Normalize((0.5,) * 3, (0.5,) * 3)))
    zeros = np.zeros(COUNT, np.int64)
    keys = DrawKeys(0, zeros, np.arange(COUNT, dtype=np.uint64), zeros)
    drawn = views.draw(keys, np.full(COUNT, HEIGHT), np.full(COUNT, WIDTH)).views
    torch.manual_seed(0)
    image = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    names = ("top", "left", "height", "width")
    for scale, numbers in zip(scales, ((0, 1), (2, 3), (4,)), strict=True):
        crop = v2.RandomResizedCrop(32, scale)
        theirs = np.array([[params[n] for n in names] for params in (crop.make_params([image]) for _ in range(COUNT))])
        for number in numbers:
            ours = drawn[number]["RandomResizedCrop"]["window"]
            for own, other in zip(ours.T, theirs.T, strict=True):
                assert stats.ks_2samp(own, other).pvalue > 1e-3
