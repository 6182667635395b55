"""Transforms as data: an ordered tuple of operators, and the drawing of their parameters outside the pixels.

`Transform.draw` turns the names of b samples (seed, epoch, sample id, occurrence) and their stored sizes into arrays of
parameters. An executor then applies these; neither it nor a graph of DALI ever draws a number. The operators and what
they mean stand in `shards.operators`, `shards.warps` and `shards.colours`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from shards.colours import ColorJitter, GaussianBlur, Grayscale, Solarize
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
    Rotate90,
    Size,
    VerticalFlip,
    as_size,
    require,
)
from shards.warps import Affine, Perspective, Rotation

# What a configuration may name.
OPERATORS: dict[str, type[Operator]] = {
    kind.__name__: kind
    for kind in (
        *(Resize, CenterCrop, RandomCrop, RandomResizedCrop, VerticalFlip, HorizontalFlip, Rotate90),
        *(Rotation, Affine, Perspective, ColorJitter, Grayscale, GaussianBlur, Solarize, Normalize, Erasing),
    )
}


@dataclass(frozen=True)
class Drawn:
    """All that was drawn for b samples: of each operator its name, itself, and its arrays [b, …]."""

    steps: tuple[tuple[str, Operator, Params], ...]

    def rows(self, chosen: np.ndarray) -> "Drawn":
        """The parameters of some of the samples."""
        return Drawn(tuple((name, op, {k: v[chosen] for k, v in p.items()}) for name, op, p in self.steps))

    def __getitem__(self, name: str) -> Params:
        """The arrays of one operator."""
        return {step: params for step, _, params in self.steps}[name]

    def describe(self, row: int) -> list[str]:
        """What was drawn for one sample: a line for each operator that acts on it."""
        lines = []
        for name, _, params in self.steps:
            if params and ("active" not in params or params["active"][row]):
                shown = {k: np.round(v[row], 2).tolist() for k, v in params.items() if k not in ("active", "matrix")}
                lines.append(" ".join([name, *(f"{key} {value}" for key, value in shown.items())]))
        return lines


@dataclass(frozen=True)
class Transform:
    """Stored image -> float32[C, H, W], by operators in this order; behind the one Normalize only Erasing may stand.

    An operator's draws are named by its kind; the second of a kind is `Kind.1`.

    Raises:
        ValueError: not exactly one Normalize, an operator on its wrong side, no fixed output size, or a fixed crop
            that is larger than the fixed size before it.
    """

    operators: tuple[Operator, ...]
    names: tuple[str, ...] = field(init=False, compare=False)
    size: Size = field(init=False, compare=False)  # height and width of the output, pixels
    normalize: Normalize = field(init=False, compare=False)

    def __post_init__(self) -> None:
        kinds = [type(operator).__name__ for operator in self.operators]
        require(kinds.count("Normalize") == 1, f"a transform needs one Normalize, this has {kinds.count('Normalize')}")
        cut = kinds.index("Normalize")
        wrong = [kind for kind in kinds[cut + 1 :] if kind != "Erasing"]
        require(not wrong, f"{', '.join(wrong)} stands behind Normalize: only Erasing may")
        require("Erasing" not in kinds[:cut], "Erasing stands before Normalize: put it behind")
        names = [kind if (n := kinds[:i].count(kind)) == 0 else f"{kind}.{n}" for i, kind in enumerate(kinds)]
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "size", self._final_size())
        object.__setattr__(self, "normalize", self.operators[cut])

    def _final_size(self) -> Size:
        size: Size | None = None
        for operator in self.operators:
            if isinstance(operator, CenterCrop | RandomCrop | RandomResizedCrop):
                target, name = as_size("", operator.size), type(operator).__name__
                if size is not None and not isinstance(operator, RandomResizedCrop):
                    room = 2 * operator.padding if isinstance(operator, RandomCrop) else 0
                    fits = target[0] <= size[0] + room and target[1] <= size[1] + room
                    require(fits, _too_large(name, target, f"{size[0]} x {size[1]}"))
                size = target
            elif isinstance(operator, Resize):
                size = None if isinstance(operator.size, int) else as_size("", operator.size)
            elif isinstance(operator, Rotate90) and size is not None and size[0] != size[1]:
                size = None
        if size is None:
            raise ValueError("the images would leave in mixed sizes: end in a crop, or Resize to (height, width)")
        return size

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return len(self.normalize.mean)

    def draw(self, keys: DrawKeys, heights: np.ndarray, widths: np.ndarray) -> Drawn:
        """Parameters of b samples whose stored sizes are `heights` and `widths`, int[b], pixels."""
        sizes = np.stack([np.asarray(heights), np.asarray(widths)], axis=1).astype(np.int64)
        named = list(zip(self.names, self.operators, strict=True))
        wanted = [(name, operator.uniforms) for name, operator in named if operator.uniforms]
        uniforms = dict(zip((name for name, _ in wanted), keys.uniforms(wanted) if wanted else (), strict=True))
        steps = []
        for name, operator in named:
            u = uniforms.get(name, np.empty((len(sizes), 0)))
            params, sizes = operator.draw(u, sizes, More(keys, name))
            steps.append((name, operator, params))
        return Drawn(tuple(steps))


def _too_large(name: str, target: Size, found: str) -> str:
    return (
        f"{name}: the crop {target[0]} x {target[1]} is larger than the image resized to {found}: resize to at least "
        f"{max(target)}, or crop less"
    )


def _light(size: Size, normalize: Normalize, scale: tuple[float, float]) -> tuple[Operator, ...]:
    return RandomResizedCrop(size, scale), HorizontalFlip(), VerticalFlip(), normalize


def _colour(normalize: Normalize) -> tuple[Operator, ...]:
    """The study's colours; one channel has no saturation, hue or grey."""
    if len(normalize.mean) == 1:
        return (ColorJitter(p=0.2, brightness=0.2, contrast=0.2),)
    return ColorJitter(p=0.2, brightness=0.2, contrast=0.2, saturation=0.1, hue=0.1), Grayscale(0.2)


def _full(size: Size, normalize: Normalize, scale: tuple[float, float]) -> tuple[Operator, ...]:
    return RandomResizedCrop(size, scale), HorizontalFlip(), VerticalFlip(), *_colour(normalize), normalize


def _study(size: Size, normalize: Normalize, scale: tuple[float, float]) -> tuple[Operator, ...]:
    """The published order: squashed to 256/224 of the size, then cropped with scale .8 to 1.2."""
    squash = Resize((round(size[0] * 256 / 224), round(size[1] * 256 / 224)))
    crop = RandomResizedCrop(size, (0.8, 1.2))
    return squash, crop, VerticalFlip(), HorizontalFlip(), *_colour(normalize), normalize


Preset = Callable[[Size, Normalize, tuple[float, float]], tuple[Operator, ...]]
PRESETS: dict[str, Preset] = {"light": _light, "full": _full, "study": _study}


def train_transform(
    size: int | Size,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    scale: tuple[float, float] = (0.8, 1.0),
    preset: str = "light",
) -> Transform:
    """The training transform of a preset: `light` (crop and flips), `full` (and colours), `study` (the published one).

    Raises:
        ValueError: an unknown preset, or a parameter out of range.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown augmentation preset '{preset}'; known: {', '.join(PRESETS)}")
    return Transform(PRESETS[preset](as_size("train_transform", size), Normalize(tuple(mean), tuple(std)), scale))


def eval_transform(
    size: int | Size, mean: Sequence[float], std: Sequence[float], *, resize: int | Size | None = None
) -> Transform:
    """Short side resized to `resize` (none: size * 256 / 224; a pair squashes), the central crop, normalisation."""
    target = as_size("eval_transform", size)
    before = round(max(target) * 256 / 224) if resize is None else resize
    if isinstance(before, int):
        require(before >= max(target), _too_large("CenterCrop", target, str(before)))
    return Transform((Resize(before), CenterCrop(target), Normalize(tuple(mean), tuple(std))))


def transform_of(steps: Sequence[Mapping[str, Any]], mean: Sequence[float], std: Sequence[float]) -> Transform:
    """A transform from data: `[{"op": "RandomResizedCrop", "size": 224}, {"op": "HorizontalFlip", "p": 0.5}]`.

    `op` is one of OPERATORS, the rest its parameters, lists for tuples. Normalize need not be named: it stands at the
    end, or before Erasing.

    Raises:
        ValueError: an unknown operator or parameter (with the known ones), or what `Transform` refuses.
    """
    operators = [operator_of(step) for step in steps]
    if not any(isinstance(operator, Normalize) for operator in operators):
        place = next((i for i, operator in enumerate(operators) if isinstance(operator, Erasing)), len(operators))
        operators.insert(place, Normalize(tuple(mean), tuple(std)))
    return Transform(tuple(operators))


def operator_of(step: Mapping[str, Any]) -> Operator:
    """One operator from data, as `transform_of` takes it."""
    name = step.get("op")
    if name not in OPERATORS:
        raise ValueError(f"unknown operator {name!r}; known: {', '.join(OPERATORS)}")
    kind = OPERATORS[name]
    known = [each.name for each in fields(kind)]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in step.items() if key != "op"}
    if unknown := [key for key in given if key not in known]:
        raise ValueError(f"{name} has no parameter {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    try:
        return kind(**given)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from None
