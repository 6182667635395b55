"""A chain of operators as data, and the drawing of their parameters outside the pixels.

`Transform.draw` turns the names of b samples (seed, epoch, sample id, occurrence) and their stored sizes into arrays of
parameters. An executor then applies these; neither it nor a graph of DALI ever draws a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

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
from shards.windows import Window


@dataclass(frozen=True)
class Drawn:
    """All that was drawn for b samples: of each operator its name, itself, and its arrays [b, …]."""

    steps: tuple[tuple[str, Operator, Params], ...]

    def rows(self, chosen: np.ndarray) -> "Drawn":
        """The parameters of some of the samples.

        `chosen`: int64[m] or bool[b].
        """
        return Drawn(tuple((name, op, {k: v[chosen] for k, v in p.items()}) for name, op, p in self.steps))

    def __getitem__(self, name: str) -> Params:
        """The arrays of one operator."""
        return {step: params for step, _, params in self.steps}[name]

    def describe(self, row: int) -> list[str]:
        """What was drawn for one sample: a line for each operator that acts on it."""
        lines = []
        for name, operator, params in self.steps:
            if params and ("active" not in params or params["active"][row]):
                lines.append(f"{name} {operator.told({key: column[row] for key, column in params.items()})}".strip())
        return lines


def names_of(operators: Sequence[Operator]) -> tuple[str, ...]:
    """The names of operators' draws: their kind; the second of a kind is `Kind.1`."""
    kinds = [type(operator).__name__ for operator in operators]
    return tuple(kind if (n := kinds[:i].count(kind)) == 0 else f"{kind}.{n}" for i, kind in enumerate(kinds))


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
        object.__setattr__(self, "names", names_of(self.operators))
        object.__setattr__(self, "size", self._final_size())
        check_window(self.operators)
        check_unrounded(self.operators)
        normalize = self.operators[cut]
        assert isinstance(normalize, Normalize)
        object.__setattr__(self, "normalize", normalize)
        wrong = [type(operator).__name__ for operator in self.operators if operator.colours_only]
        require(self.channels > 1 or not wrong, f"{', '.join(wrong)} wants colour images: leave it out for one channel")
        count = len(normalize.mean)
        wanted = windows_of(self.operators)
        require(wanted in (1, count), f"Window: {wanted} windows make {wanted} channels, Normalize has {count} means")

    def _final_size(self) -> Size:
        size: Size | None = None
        short: int | None = None  # side, where a Resize fixed that one alone
        for operator in self.operators:
            if isinstance(operator, CenterCrop | RandomCrop | RandomResizedCrop):
                target = as_size("", operator.size)
                if not isinstance(operator, RandomResizedCrop):
                    _check_room(operator, target, size, short)
                size, short = target, None
            elif isinstance(operator, Resize):
                short = operator.size if isinstance(operator.size, int) else None
                size = None if isinstance(operator.size, int) else as_size("", operator.size)
            elif isinstance(operator, Rotate90) and size is not None and size[0] != size[1]:
                size = None
        if size is None:
            raise ValueError("the images would leave in mixed sizes: end in a crop, or Resize to (height, width)")
        return size

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Height and width of each view; a plain transform makes one."""
        return (self.size,)

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return len(self.normalize.mean)

    @property
    def stored_channels(self) -> int:
        """Channels of the stored image: one where several windows make the others of it."""
        return 1 if windows_of(self.operators) > 1 else self.channels

    def draw(self, keys: DrawKeys, heights: np.ndarray, widths: np.ndarray) -> Drawn:
        """Parameters of b samples whose stored sizes are `heights` and `widths`, int[b], pixels."""
        return draw_steps(list(zip(self.names, self.operators, strict=True)), keys, sizes_of(heights, widths))[0]


def windows_of(operators: Sequence[Operator]) -> int:
    """Windows of the Window among them; 1 where there is none."""
    return max((operator.count for operator in operators if isinstance(operator, Window)), default=1)


def check_window(operators: Sequence[Operator]) -> None:
    """Refuse a Window that others come before: it says what the levels mean that they work on."""
    behind = [operator for operator in operators[1:] if isinstance(operator, Window)]
    require(not behind, "Window stands behind another operator: put it first, and give one")


# What takes levels as they come: pixels are moved, or the chain ends.
UNTOUCHED = (CenterCrop, RandomCrop, HorizontalFlip, VerticalFlip, Rotate90, Normalize, Erasing)


def check_unrounded(operators: Sequence[Operator]) -> None:
    """Refuse behind a Resize that does not round what is defined on whole levels."""
    for at, operator in enumerate(operators):
        if isinstance(operator, Resize) and not operator.rounded:
            wrong = [type(each).__name__ for each in operators[at + 1 :] if not isinstance(each, UNTOUCHED)]
            require(not wrong, f"{', '.join(wrong)} behind a Resize that does not round: leave its rounded at true")


def sizes_of(heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """int64[b, 2]."""
    return np.stack([np.asarray(heights), np.asarray(widths)], axis=1).astype(np.int64)


def draw_steps(named: Sequence[tuple[str, Operator]], keys: DrawKeys, sizes: np.ndarray) -> tuple[Drawn, np.ndarray]:
    """Parameters of operators on b samples of sizes int64[b, 2] (height, width), and the sizes after them."""
    wanted = [(name, operator.uniforms) for name, operator in named if operator.uniforms]
    uniforms = dict(zip((name for name, _ in wanted), keys.uniforms(wanted) if wanted else (), strict=True))
    steps = []
    for name, operator in named:
        u = uniforms.get(name, np.empty((len(sizes), 0)))
        params, sizes = operator.draw(u, sizes, More(keys, name))
        steps.append((name, operator, params))
    return Drawn(tuple(steps)), sizes


def too_large(name: str, target: Size, found: str) -> str:
    """The line on a crop that does not fit."""
    return (
        f"{name}: the crop {target[0]} x {target[1]} is larger than the image resized to {found}: resize to at least "
        f"{max(target)}, or crop less"
    )


def _check_room(crop: CenterCrop | RandomCrop, target: Size, size: Size | None, short: int | None) -> None:
    """Refuse a crop that is larger than the image before it: its size, or its short side, where either is known."""
    room, name = 2 * crop.padding if isinstance(crop, RandomCrop) else 0, type(crop).__name__
    if size is not None:
        fits = target[0] <= size[0] + room and target[1] <= size[1] + room
        require(fits, too_large(name, target, f"{size[0]} x {size[1]}"))
    if short is not None:
        require(min(target) <= short + room, too_large(name, target, f"a short side of {short}"))
