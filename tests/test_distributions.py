"""Angles, shifts, factors and corners come in torchvision's distribution (Kolmogorov and Smirnov on two samples)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from shards.colours import ColorJitter, GaussianBlur
from shards.draws import DrawKeys
from shards.operators import More, Operator, Params, RandomCrop
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
