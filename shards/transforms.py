"""Transforms by name: the operators that a configuration may name, and the transforms of training and evaluation.

The operators and what they mean stand in `shards.operators`, `shards.warps` and `shards.colours`, the chain that they
make in `shards.chain`, several views of an image in `shards.views`.
"""

import difflib
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

from shards.chain import UNTOUCHED, Drawn, Transform, too_large
from shards.colours import ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.levels import Clahe, Gamma
from shards.operators import (
    CenterCrop,
    Erasing,
    HorizontalFlip,
    Normalize,
    Operator,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    Size,
    VerticalFlip,
    as_size,
    require,
)
from shards.policies import RandAugment, TrivialAugment
from shards.presets import PRESETS, preset_of
from shards.stains import StainJitter
from shards.views import AnyDrawn, AnyTransform, MultiCrop, Views, made_of
from shards.warps import Affine, Perspective, Rotation
from shards.windows import Window

__all__ = ["OPERATORS", "PRESETS", "AnyDrawn", "AnyTransform", "Drawn", "Transform", "Views"]

# What a configuration may name.
OPERATORS: dict[str, type[Operator]] = {
    kind.__name__: kind
    for kind in (
        *(Resize, CenterCrop, RandomCrop, RandomResizedCrop, MultiCrop, VerticalFlip, HorizontalFlip, Rotate90),
        *(Rotation, Affine, Perspective, ColorJitter, Grayscale, GaussianBlur, Solarize, Gamma, Clahe, StainJitter),
        *(Window, TrivialAugment, RandAugment, Normalize, Erasing),
    )
}


def train_transform(
    size: int | Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    scale: tuple[float, float] | None = None,
    preset: str = "light",
    window: Window | None = None,
) -> Transform:
    """The training transform of a preset; `scale` takes the place of its crop's own share of the area.

    window: stands before it; three windows are no colours, and what is of colours is left out as on one channel.

    Raises:
        ValueError: an unknown preset, or a parameter out of range.
    """
    channels = len(mean) if window is None or window.count == 1 else 1
    steps = preset_of(preset).steps(as_size("train_transform", size), channels, scale)
    return one_view(transform_of(steps, mean, std, window))


def eval_transform(
    size: int | Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    resize: int | Size | None = None,
    window: Window | None = None,
) -> Transform:
    """Short side resized to `resize` (none: size * 256 / 224; a pair squashes), the central crop, normalisation.

    Nothing is rounded on the way, so that both executors give the same pixels to a thousandth of a level.

    window: stands before all of it.
    """
    target = as_size("eval_transform", size)
    before = round(max(target) * 256 / 224) if resize is None else resize
    if isinstance(before, int):
        require(before >= max(target), too_large("CenterCrop", target, str(before)))
    first = () if window is None else (window,)
    return Transform((*first, Resize(before, rounded=False), CenterCrop(target), Normalize(tuple(mean), tuple(std))))


def transform_of(
    steps: Sequence[Mapping[str, Any]], mean: Sequence[float], std: Sequence[float], window: Window | None = None
) -> AnyTransform:
    """A transform from data: `[{"op": "RandomResizedCrop", "size": 224}, {"op": "HorizontalFlip", "p": 0.5}]`.

    `op` is one of OPERATORS, the rest its parameters, lists for tuples. Normalize need not be named: it stands at the
    end, or before Erasing. window: stands before them.

    Raises:
        ValueError: an unknown operator or parameter (with the known ones), or what `Transform` refuses.
    """
    operators = [*([] if window is None else [window]), *(operator_of(step) for step in steps)]
    if not any(isinstance(operator, Normalize) for operator in operators):
        place = next((i for i, operator in enumerate(operators) if isinstance(operator, Erasing)), len(operators))
        operators.insert(place, Normalize(tuple(mean), tuple(std)))
    return made_of(operators)


def unrounded(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Steps as evaluation takes them: a Resize behind which pixels are only moved does not round, unless it says so."""
    moved = [any(step.get("op") == kind.__name__ for kind in UNTOUCHED) for step in steps]
    return [
        {"rounded": False} | dict(step) if step.get("op") == "Resize" and all(moved[at + 1 :]) else step
        for at, step in enumerate(steps)
    ]


def one_view(transform: AnyTransform) -> Transform:
    """A transform of which evaluation can be made. ValueError for several views."""
    if isinstance(transform, Views):
        raise ValueError("evaluation takes one view of an image: leave MultiCrop out of its operators")
    return transform


def operator_of(step: Mapping[str, Any]) -> Operator:
    """One operator from data, as `transform_of` takes it.

    Raises:
        ValueError: an unknown operator or parameter, or a value out of range.
    """
    if not isinstance(step, Mapping):
        raise ValueError(f'{step!r} is no operator; write a table, {{"op": "HorizontalFlip"}}')
    name = step.get("op")
    if not isinstance(name, str) or name not in OPERATORS:
        raise ValueError(f"unknown operator {name!r}{_nearest(name, OPERATORS)}; known: {', '.join(OPERATORS)}")
    kind = OPERATORS[name]
    known = {each.name: each for each in fields(kind)}
    given = {key: _frozen(value) for key, value in step.items() if key != "op"}
    for key, value in given.items():
        if key not in known:
            raise ValueError(
                f"{name} has no parameter {key!r}{_nearest(key, known)}; it has {', '.join(known) or 'none'}"
            )
        _check_kind(name, known[key], value)
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None


def _nearest(word: Any, known: Mapping[str, Any]) -> str:
    """`: did you mean X?`, or nothing where none is near or holds it; torchvision's names begin with Random."""
    by_letters, letters = {each.lower(): each for each in known}, str(word).lower().removeprefix("random")
    near = difflib.get_close_matches(letters, by_letters, n=1) or [each for each in by_letters if letters in each]
    return f": did you mean {by_letters[near[0]]}?" if near else ""


def _check_kind(name: str, parameter: Field[Any], value: Any) -> None:
    """Refuse what is of another kind than the parameter's default, and numbers that are not finite."""
    default, several = list(_leaves(parameter.default)), isinstance(parameter.default, tuple)
    if isinstance(default[0], bool | str):
        return  # the operator itself says which it knows
    whole = all(isinstance(each, int) for each in default)
    kinds = int if whole else int | float
    fine = all(isinstance(x, kinds) and not isinstance(x, bool) and _finite(x) for x in _leaves(value))
    if parameter.name == "sizes":
        fine = fine and isinstance(value, tuple)
    elif parameter.name != "size":  # a size is one number or two
        fine = fine and _as_deep(value, parameter.default)
    wanted = f"{'a list of' if several else 'a'} {'whole' if whole else 'finite'} number{'s' if several else ''}"
    require(fine, f"{name}: {parameter.name} is {reprlib.repr(value)}; give {wanted}, such as {parameter.default}")


def _finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # JSON's whole numbers have no end, floats have
        return False


def _as_deep(value: Any, default: Any) -> bool:
    """Whether there are tuples where the default has them, none of them empty."""
    if isinstance(default, tuple):
        return isinstance(value, tuple) and len(value) > 0 and all(_as_deep(each, default[0]) for each in value)
    return not isinstance(value, tuple)


def _leaves(value: Any) -> Iterator[Any]:
    """What stands in tuples, however deep; anything else by itself."""
    if isinstance(value, tuple):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(_frozen(each) for each in value) if isinstance(value, list | tuple) else value
