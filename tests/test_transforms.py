"""Parameters are drawn as torchvision draws them, in its distribution, and wrong ones are refused."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from shards.draws import DrawKeys
from shards.transforms import (
    HorizontalFlip,
    Normalize,
    RandomResizedCrop,
    ResizeCenterCrop,
    eval_transform,
    train_transform,
)


def keys(count: int, seed: int = 0) -> DrawKeys:
    zeros = np.zeros(count, np.int64)
    return DrawKeys(seed, zeros, np.arange(count, dtype=np.uint64), zeros)


@pytest.mark.parametrize(
    ("scale", "ratio", "height", "width"),
    [((0.08, 1.0), (3 / 4, 4 / 3), 200, 300), ((0.8, 1.2), (3 / 4, 4 / 3), 256, 256), ((0.5, 1), (0.9, 1.1), 80, 400)],
)
def test_windows_are_distributed_as_torchvisions(
    scale: tuple[float, float], ratio: tuple[float, float], height: int, width: int
) -> None:
    count = 4000
    ours = RandomResizedCrop((64, 64), scale, ratio).geometry(
        keys(count), np.full(count, height), np.full(count, width)
    )
    torch.manual_seed(0)
    theirs_of = v2.RandomResizedCrop(64, scale, ratio)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    theirs = np.array([[p[n] for n in ("top", "left", "height", "width")] for p in
                       (theirs_of.make_params([image]) for _ in range(count))])  # fmt: skip
    for ours_column, theirs_column in zip(ours.windows.T, theirs.T, strict=True):
        assert stats.ks_2samp(ours_column, theirs_column).pvalue > 1e-3


def test_windows_lie_within_the_image_and_the_fall_back_is_torchvisions() -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 400, 3000), rng.integers(1, 400, 3000)
    windows = RandomResizedCrop((8, 8)).geometry(keys(3000), heights, widths).windows
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] >= 1).all()
    assert (windows[:, 0] + windows[:, 2] <= heights).all() and (windows[:, 1] + windows[:, 3] <= widths).all()
    # A scale of 4 never fits, so every window is the fall-back, which draws nothing.
    for height, width in [(100, 300), (300, 100), (100, 110)]:
        window = RandomResizedCrop((8, 8), (4, 4)).geometry(keys(1), np.array([height]), np.array([width])).windows[0]
        theirs = v2.RandomResizedCrop(8, (4, 4)).make_params([torch.zeros(1, height, width)])
        assert window.tolist() == [theirs[name] for name in ("top", "left", "height", "width")]


@pytest.mark.parametrize("resize", [37, 48, (48, 40)])
def test_evaluation_places_its_crop_as_torchvision(resize: int | tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    heights, widths = rng.integers(20, 300, 50), rng.integers(20, 300, 50)
    geometry = ResizeCenterCrop(resize, (33, 32)).geometry(keys(50), heights, widths)
    for i in range(50):
        grid = torch.arange(heights[i] * widths[i]).reshape(1, heights[i], widths[i]).float()
        resized = functional.resize(grid, [resize] if isinstance(resize, int) else list(resize))
        assert geometry.resized[i].tolist() == list(resized.shape[1:])
        top, left = geometry.corners[i]
        assert torch.equal(functional.center_crop(resized, [33, 32]), resized[:, top : top + 33, left : left + 32])


def test_an_operator_does_not_move_anothers_draws() -> None:
    sizes = np.full(100, 64)
    plain = train_transform(32, (0.5,), (0.2,), hflip=0.5, vflip=0.0).draw(keys(100), sizes, sizes)
    flipped = train_transform(32, (0.5,), (0.2,), hflip=0.5, vflip=0.9).draw(keys(100), sizes, sizes)
    np.testing.assert_array_equal(plain.geometry.windows, flipped.geometry.windows)
    np.testing.assert_array_equal(plain.hflip, flipped.hflip)
    assert flipped.vflip.mean() > 0.8 and not plain.vflip.any()


def test_flips_come_as_often_as_asked() -> None:
    sizes = np.full(4000, 64)
    drawn = train_transform(32, (0.5,), (0.2,), hflip=0.25, vflip=1.0).draw(keys(4000), sizes, sizes)
    assert 0.22 < drawn.hflip.mean() < 0.28 and drawn.vflip.all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop((0, 5)), "size is (0, 5); give (height, width) of 1 to 16384 pixels"),
        (lambda: RandomResizedCrop((5, 5), (0.5, 0.1)), "scale is (0.5, 0.1); give two numbers, 0 < low <= high"),
        (lambda: HorizontalFlip(1.5), "p is 1.5; give a probability within 0..1"),
        (lambda: ResizeCenterCrop(10, (20, 20)), "the crop 20 x 20 is larger than the image resized to 10"),
        (lambda: Normalize((0.5,), (0.0,)), "std is (0.0,); give numbers above 0"),
        (lambda: eval_transform(64, (0.5, 0.5), (1.0,)), "2 means and 1 stds"),
    ],
)
def test_wrong_parameters_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
