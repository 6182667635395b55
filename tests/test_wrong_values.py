"""A generator of wrong values over every field of every operator: one line before anything starts, by every door.

Run: pytest tests/test_wrong_values.py
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_transforms import keys

from shards.operators import More
from shards.shardset import ShardSet
from shards.transforms import OPERATORS, operator_of, transform_of
from shards.view import main as view
from shards.warps import Perspective
from train.config_file import load, read_file
from train.run import main as train

# Right for no field: other kinds, what is not finite, what is beyond all bounds.
NEVER: list[Any] = [
    None, "", "a", "0.5", {}, {"a": 1}, [], [[]], [None], ["a", "b"], [True, True], math.nan, math.inf, -math.inf,
    -1e9, 1e30, 10**400, [1e30, 1e31], [10**400, 10**400], [math.nan, 1.0], [[math.nan]], [1.0, [2.0, 3.0]], [-1e30],
]  # fmt: skip
BEYOND: list[tuple[str, str, Any]] = [
    ("Resize", "size", 16385),
    ("RandomCrop", "padding", 16385),
    ("RandomResizedCrop", "scale", [0.1, 1001]),
    ("RandomResizedCrop", "ratio", [1e-4, 1]),
    ("MultiCrop", "scales", [[0.1, 1001], [0.1, 1]]),
    ("MultiCrop", "counts", [60, 5]),
    ("Affine", "scale", [1, 1001]),
    ("Affine", "shear", [0, 0, 0, 90]),
    ("Rotation", "degrees", [-361, 0]),
    ("Perspective", "distortion_scale", 1.01),
    ("ColorJitter", "brightness", 101),
    ("GaussianBlur", "kernel_size", 1001),
    ("GaussianBlur", "sigma", [1, 1000]),
    ("Solarize", "threshold", 257),
    ("Clahe", "clip_limit", 256.5),
    ("Normalize", "std", [0]),
    ("Normalize", "mean", [[0.5]]),
    ("Erasing", "value", 65505),
    ("Window", "centers", [2**21]),
]  # fmt: skip


def wrong() -> Iterator[tuple[str, str, Any]]:
    for name, kind in OPERATORS.items():
        for field in fields(kind):
            yield from ((name, field.name, value) for value in (*NEVER, *([] if field.name == "rounded" else [True])))
    yield from BEYOND


def refused(call: Callable[[], Any], name: str, field: str, value: Any) -> str:
    """The line; it names the operator."""
    with pytest.raises(ValueError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300 and name in text, (field, value, text)
    return text


def test_every_field_refuses_what_is_right_for_none() -> None:
    count = 0
    for name, field, value in wrong():
        text = refused(lambda: operator_of({"op": name, field: value}), name, field, value)  # noqa: B023
        assert text.startswith(f"{name}: "), text
        count += 1
    assert count > 1500


def test_defaults_are_taken_by_every_field() -> None:
    for name, kind in OPERATORS.items():
        made = kind()
        for field in fields(kind):
            value = json.loads(json.dumps(field.default))
            assert operator_of({"op": name, field.name: value}) == made


@pytest.mark.parametrize("which", ["train_operators", "eval_operators"])
def test_the_trainers_doors_refuse_them(which: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for name, field, value in wrong():
        if value in (None, 10**400, "a"):
            steps = [{"op": name, field: value}]
            file.write_text(json.dumps({"data": {which: steps}}))
            refused(lambda: load({}, {which: json.dumps(steps)}), name, field, value)  # noqa: B023
            refused(lambda: load(read_file(file)), name, field, value)


@pytest.mark.parametrize(("name", "field", "value"), BEYOND, ids=range(len(BEYOND)))
def test_views_and_trainings_leave_nothing_behind(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, field: str, value: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = json.dumps([{"op": name, field: value}])
    refused(lambda: view([str(tiny_set), "--operators", steps]), name, field, value)
    refused(lambda: train(["--shards", str(tiny_set), "--train-operators", steps]), name, field, value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["[" * 5000, f"[{'9' * 5000}]", "{", "7", '["HorizontalFlip"]'])
def test_text_that_is_no_list_of_operators(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--operators is"):
        view([str(tiny_set), "--operators", text])
    with pytest.raises(ValueError, match=r"train.operators"):
        load({}, {"train_operators": text})
    (tmp_path / "c.json").write_text(f'{{"data": {{"train_operators": {text}}}}}')
    with pytest.raises(ValueError):
        load(read_file("c.json"))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_means_that_are_not_one_a_channel_are_refused_before_anything_starts(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = [0.5] * count
    steps = json.dumps([{"op": "Resize", "size": [32, 32]}, {"op": "Normalize", "mean": numbers, "std": numbers}])
    message = f"normalises {count} channels, the images of tiny have 3: give a mean and a std for each"
    with pytest.raises(ValueError, match=message):
        view([str(tiny_set), "--operators", steps])
    flags = ["--shards", str(tiny_set), "--model", "test_vit", "--start", "ri", "--image-size", "32"]
    told = ",".join(map(str, numbers))
    for more in (["--train-operators", steps], ["--eval-operators", steps], ["--mean", told, "--std", told]):
        with pytest.raises(ValueError, match=message):
            train([*flags, *more])
    assert not list(tmp_path.iterdir())


def test_whatever_is_accepted_draws_finite_numbers_on_any_image() -> None:
    """Bounds, and images of one pixel, one line, one column: no draw fails, or warns."""
    extremes: list[dict[str, Any]] = [
        {"op": "RandomResizedCrop", "size": 8, "scale": [1e-9, 1000], "ratio": [1e-3, 1000]},
        {"op": "Affine", "translate": [1, 1], "scale": [1e-3, 1000], "shear": [-89, 89, -89, 89]},
        {"op": "Perspective", "distortion_scale": 1.0, "p": 1.0},
        {"op": "ColorJitter", "brightness": 100, "contrast": 100, "saturation": 100, "hue": 0.5},
        {"op": "Erasing", "p": 1.0, "scale": [0, 1], "ratio": [1e-3, 1000], "value": -65504},
        {"op": "Gamma", "gamma": [0.01, 100]},
        {"op": "GaussianBlur", "sigma": [1e-3, 999]},
        {"op": "StainJitter", "strength": 1, "bias": 2},
        *({"op": name} for name in ("Rotation", "Rotate90", "TrivialAugment", "RandAugment", "Solarize", "Clahe")),
    ]  # fmt: skip
    shapes = np.array([[1, 1], [1, 300], [300, 1], [2, 2], [3, 5], [16384, 16384]])
    sizes = np.repeat(shapes, 100, axis=0)
    all_keys = keys(len(sizes))
    for step in extremes:
        operator = operator_of(step)
        u = all_keys.uniform(step["op"], operator.uniforms)
        drawn, after = operator.draw(u, sizes, More(all_keys, step["op"]))
        assert (after > 0).all() and all(np.isfinite(column).all() for column in drawn.values()), step
        if "window" in drawn:
            top, left, height, width = drawn["window"].T
            assert (np.minimum.reduce([top, left, height, width]) >= 0).all(), step
            assert (top + height <= sizes[:, 0]).all() and (left + width <= sizes[:, 1]).all(), step


def test_corners_in_one_line_do_not_change_their_neighbours() -> None:
    sizes, operator, chosen = np.array([[1, 1], [40, 50], [1, 30], [60, 60]]), Perspective(1.0), keys(4)
    u = chosen.uniform("Perspective", operator.uniforms)
    together = operator.draw(u, sizes, More(chosen, "Perspective"))[0]["matrix"]
    for row in (1, 3):
        alone = operator.draw(u[[row]], sizes[[row]], More(chosen.rows(np.array([row])), "Perspective"))[0]["matrix"]
        np.testing.assert_array_equal(together[row], alone[0])


def test_a_set_of_one_channel_takes_no_colours(make_set: Callable[..., ShardSet], tmp_path: Path) -> None:
    grey = make_set(tmp_path / "grey", channels=1, train=6, val=2, test=2, name="grey").path
    steps = json.dumps([{"op": "CenterCrop", "size": 32}, {"op": "StainJitter"}])
    for call in (
        lambda: view([str(grey), "--operators", steps]),
        lambda: train(["--shards", str(grey), "--model", "test_vit", "--start", "ri", "--train-operators", steps]),
    ):
        refused(call, "StainJitter", "", "")
    assert transform_of(json.loads(steps), (0.5,) * 3, (0.5,) * 3).channels == 3
