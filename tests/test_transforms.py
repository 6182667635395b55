"""Parameters are drawn as torchvision draws them, in its distribution, and wrong ones are refused."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from shards.colours import ColorJitter, GaussianBlur
from shards.draws import DrawKeys
from shards.operators import (
    CenterCrop,
    Erasing,
    HorizontalFlip,
    More,
    Normalize,
    Operator,
    Params,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    VerticalFlip,
)
from shards.transforms import PRESETS, Drawn, Transform, eval_transform, train_transform, transform_of
from shards.views import MultiCrop, Views


def keys(count: int, seed: int = 0) -> DrawKeys:
    zeros = np.zeros(count, np.int64)
    return DrawKeys(seed, zeros, np.arange(count, dtype=np.uint64), zeros)


def draw(operator: Operator, keys: DrawKeys, heights: np.ndarray, widths: np.ndarray) -> Params:
    name = type(operator).__name__
    u = keys.uniform(name, operator.uniforms)
    return operator.draw(u, np.stack([heights, widths], axis=1), More(keys, name))[0]


@pytest.mark.parametrize(
    ("scale", "ratio", "height", "width"),
    [((0.08, 1.0), (3 / 4, 4 / 3), 200, 300), ((0.8, 1.2), (3 / 4, 4 / 3), 256, 256), ((0.5, 1), (0.9, 1.1), 80, 400)],
)
def test_windows_are_distributed_as_torchvisions(
    scale: tuple[float, float], ratio: tuple[float, float], height: int, width: int
) -> None:
    count = 4000
    ours = draw(RandomResizedCrop((64, 64), scale, ratio), keys(count), np.full(count, height), np.full(count, width))
    torch.manual_seed(0)
    theirs_of = v2.RandomResizedCrop(64, scale, ratio)
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    theirs = np.array([[p[n] for n in ("top", "left", "height", "width")] for p in
                       (theirs_of.make_params([image]) for _ in range(count))])  # fmt: skip
    for ours_column, theirs_column in zip(ours["window"].T, theirs.T, strict=True):
        assert stats.ks_2samp(ours_column, theirs_column).pvalue > 1e-3


def test_windows_lie_within_the_image_and_the_fall_back_is_torchvisions() -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 400, 3000), rng.integers(1, 400, 3000)
    windows = draw(RandomResizedCrop((8, 8)), keys(3000), heights, widths)["window"]
    assert (windows[:, :2] >= 0).all() and (windows[:, 2:] >= 1).all()
    assert (windows[:, 0] + windows[:, 2] <= heights).all() and (windows[:, 1] + windows[:, 3] <= widths).all()
    # A scale of 4 never fits, so every window is the fall-back, which draws nothing.
    for height, width in [(100, 300), (300, 100), (100, 110)]:
        window = draw(RandomResizedCrop((8, 8), (4, 4)), keys(1), np.array([height]), np.array([width]))["window"][0]
        theirs = v2.RandomResizedCrop(8, (4, 4)).make_params([torch.zeros(1, height, width)])
        assert window.tolist() == [theirs[name] for name in ("top", "left", "height", "width")]


@pytest.mark.parametrize("resize", [37, 48, (48, 40)])
def test_evaluation_places_its_crop_as_torchvision(resize: int | tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    heights, widths = rng.integers(20, 300, 50), rng.integers(20, 300, 50)
    drawn = eval_transform((33, 32), (0.5,), (0.2,), resize=resize).draw(keys(50), heights, widths)
    for i in range(50):
        grid = torch.arange(heights[i] * widths[i]).reshape(1, heights[i], widths[i]).float()
        resized = functional.resize(grid, [resize] if isinstance(resize, int) else list(resize))
        assert drawn["Resize"]["size"][i].tolist() == list(resized.shape[1:])
        top, left = drawn["CenterCrop"]["window"][i, :2]
        assert torch.equal(functional.center_crop(resized, [33, 32]), resized[:, top : top + 33, left : left + 32])


def test_an_operator_does_not_move_anothers_draws() -> None:
    sizes, few = np.full(100, 64), (RandomResizedCrop(32), HorizontalFlip(), Normalize())
    more = (few[0], VerticalFlip(0.9), ColorJitter(brightness=0.3), GaussianBlur(), few[1], few[2], Erasing())
    plain, rich = (Transform(operators).draw(keys(100), sizes, sizes) for operators in (few, more))
    for name in ("RandomResizedCrop", "HorizontalFlip"):
        for key, column in plain[name].items():
            np.testing.assert_array_equal(column, rich[name][key])
    assert rich["VerticalFlip"]["active"].mean() > 0.8


def test_draws_are_those_of_the_sample_however_batched() -> None:
    transform = train_transform(32, (0.5,) * 3, (0.2,) * 3, preset="study")
    sizes, all_keys = np.full(50, 64), keys(50)
    whole = transform.draw(all_keys, sizes, sizes)
    rows = np.array([7, 3, 41])
    part = transform.draw(all_keys.rows(rows), sizes[rows], sizes[rows])
    wanted: Drawn = whole.rows(rows)
    for (_, _, found), (_, _, expected) in zip(part.steps, wanted.steps, strict=True):
        for key, column in expected.items():
            np.testing.assert_array_equal(found[key], column)


def test_erasing_boxes_are_distributed_as_torchvisions() -> None:
    count = 3000
    ours = draw(Erasing(1.0), keys(count), np.full(count, 64), np.full(count, 96))
    torch.manual_seed(0)
    theirs_of, image = v2.RandomErasing(1.0), torch.zeros(3, 64, 96)
    drawn = [theirs_of.make_params([image]) for _ in range(count)]
    theirs = np.array([[p[n] for n in ("i", "j", "h", "w")] for p in drawn if p["v"] is not None])
    for ours_column, theirs_column in zip(ours["window"][ours["active"]].T, theirs.T, strict=True):
        assert stats.ks_2samp(ours_column, theirs_column).pvalue > 1e-3


def test_flips_come_as_often_as_asked_and_presets_describe_themselves() -> None:
    sizes = np.full(4000, 64)
    drawn = Transform((RandomResizedCrop(32), HorizontalFlip(0.25), Normalize())).draw(keys(4000), sizes, sizes)
    assert 0.22 < drawn["HorizontalFlip"]["active"].mean() < 0.28
    for preset in PRESETS:
        for mean in ((0.5,), (0.5,) * 3):
            drawn = train_transform(32, mean, mean, preset=preset).draw(keys(9), sizes[:9], sizes[:9])
            assert any(line.startswith("RandomResizedCrop window") for line in drawn.describe(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomResizedCrop((0, 5)), "size is (0, 5); give one or two whole numbers of 1 to 16384 pixels"),
        (lambda: RandomResizedCrop((5, 5), (0.5, 0.1)), "scale is (0.5, 0.1); give two ascending numbers"),
        (lambda: RandomCrop(5, -1), "padding is -1"),
        (lambda: GaussianBlur(kernel_size=4), "kernel_size is 4; give an odd number"),
        (lambda: ColorJitter(hue=0.6), "hue is 0.6; give a strength within 0..0.5"),
        (
            lambda: Transform((Resize((8, 8), rounded=False), HorizontalFlip(), ColorJitter(), Normalize())),
            "ColorJitter behind a Resize that does not round: leave its rounded at true",
        ),
        (
            lambda: Views((Resize((8, 8), rounded=False), MultiCrop((1,), (8,), ((0.4, 1.0),)), Normalize())),
            "MultiCrop behind a Resize that does not round",
        ),
        (lambda: Resize(8, rounded=1), "rounded is 1; give true or false"),  # type: ignore[arg-type]
        (lambda: Transform((Resize(8), Normalize())), "mixed sizes"),
        (lambda: Transform((Resize((8, 8)), RandomCrop(9), Normalize())), "crop 9 x 9 is larger than the image"),
        (lambda: Transform((CenterCrop(8),)), "needs one Normalize, this has 0"),
        (lambda: Transform((CenterCrop(8), Normalize(), HorizontalFlip())), "HorizontalFlip stands behind Normalize"),
        (lambda: train_transform(8, (0.5,), (0.5,), preset="dark"), "unknown augmentation preset 'dark'; known: light"),
        (lambda: HorizontalFlip(1.5), "p is 1.5; give a probability within 0..1"),
        (
            lambda: eval_transform(20, (0.5,), (0.5,), resize=10),
            "the crop 20 x 20 is larger than the image resized to 10",
        ),
        (lambda: Normalize((0.5,), (0.0,)), "std is (0.0,); give numbers above 0"),
        (lambda: eval_transform(64, (0.5, 0.5), (1.0,)), "2 means and 1 stds"),
    ],
)
def test_wrong_parameters_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (7, "7 is no operator; write a table"),
        ({"op": ["Resize"]}, "unknown operator ['Resize']"),
        ({"op": "HorizontlFlip"}, "unknown operator 'HorizontlFlip': did you mean HorizontalFlip?"),
        ({"op": "RandomRotation"}, "did you mean Rotation?"),
        ({"op": "ColorJitter", "brigthness": 0.5}, "no parameter 'brigthness': did you mean brightness?"),
        ({"op": "RandomResizedCrop", "size": True}, "size is True; give a whole number"),
        ({"op": "RandomResizedCrop", "size": None}, "size is None; give a whole number"),
        ({"op": "RandomResizedCrop", "scale": [0.1, np.inf]}, "scale is (0.1, inf); give a list of finite numbers"),
        ({"op": "HorizontalFlip", "p": True}, "p is True; give a finite number"),
        ({"op": "HorizontalFlip", "p": "0.5"}, "p is '0.5'; give a finite number"),
        ({"op": "Rotation", "degrees": 45}, "degrees is 45; give a list of finite numbers, such as (-180.0, 180.0)"),
        ({"op": "RandomCrop", "size": 65, "padding": 1.5}, "padding is 1.5; give a whole number"),
        ({"op": "GaussianBlur", "kernel_size": 3.0}, "kernel_size is 3.0; give a whole number"),
        ({"op": "Erasing", "value": np.nan}, "value is nan; give a finite number"),
        ({"op": "Normalize", "mean": ["a"], "std": [0.5]}, "mean is ('a',); give a list of finite numbers"),
    ],
)
def test_wrong_data_are_refused(step, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        transform_of([{"op": "RandomResizedCrop", "size": 64}, step], (0.5,), (0.5,))
    assert message in str(caught.value)


@pytest.mark.parametrize("crop", ["CenterCrop", "RandomCrop"])
def test_a_crop_larger_than_the_short_side_is_refused(crop: str) -> None:
    with pytest.raises(ValueError, match="the crop 65 x 65 is larger than the image resized to a short side of 64"):
        transform_of([{"op": "Resize", "size": 64}, {"op": crop, "size": 65}], (0.5,), (0.5,))
    assert transform_of([{"op": "Resize", "size": 64}, {"op": crop, "size": [64, 65]}], (0.5,), (0.5,)).size == (64, 65)
