"""Several views of one image: MultiCrop and the transform it makes.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), section 3.2: a
few large crops and more small ones. Here each view has its own crop and its own draws of all that follows; what stands
before the crop is drawn and done once for all views.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from shards.chain import Drawn, Transform, check_unrounded, check_window, draw_steps, names_of, sizes_of, windows_of
from shards.draws import DrawKeys
from shards.operators import (
    KERNELS,
    MOST_TIMES,
    Kernel,
    Normalize,
    Operator,
    Params,
    RandomResizedCrop,
    Size,
    as_size,
    check_choice,
    check_range,
    require,
)

MOST_VIEWS = 64


@dataclass(frozen=True)
class MultiCrop(Operator):
    """`counts[i]` random resized crops to `sizes[i]` pixels, with an area of `scales[i]` of the image."""

    counts: tuple[int, ...] = (2, 6)
    sizes: tuple[int | Size, ...] = (224, 96)
    scales: tuple[tuple[float, float], ...] = ((0.4, 1.0), (0.05, 0.4))
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Kernel = "bicubic"

    def __post_init__(self) -> None:
        lengths = {len(self.counts), len(self.sizes), len(self.scales)}
        fine = lengths == {len(self.counts)} and len(self.counts) > 0
        require(
            fine,
            f"MultiCrop: {len(self.counts)} counts, {len(self.sizes)} sizes, {len(self.scales)} scales; give as many "
            "of each",
        )
        whole = all(isinstance(count, int) and count >= 1 for count in self.counts)
        require(
            whole and sum(self.counts) <= MOST_VIEWS,
            f"MultiCrop: counts is {self.counts}; give whole numbers from 1, {MOST_VIEWS} views at most",
        )
        for size, scale in zip(self.sizes, self.scales, strict=True):
            as_size("MultiCrop", size)
            check_range("MultiCrop", "scale", scale, 1e-9, MOST_TIMES)
        check_range("MultiCrop", "ratio", self.ratio, 1 / MOST_TIMES, MOST_TIMES)
        check_choice("MultiCrop", "interpolation", self.interpolation, KERNELS)

    @property
    def crops(self) -> list[RandomResizedCrop]:
        """The crop of each view."""
        return [
            RandomResizedCrop(size, scale, self.ratio, self.interpolation)
            for count, size, scale in zip(self.counts, self.sizes, self.scales, strict=True)
            for _ in range(count)
        ]


@dataclass(frozen=True)
class DrawnViews:
    """What was drawn for b samples: once for all views, then for each."""

    before: Drawn
    sizes: np.ndarray  # int64[b, 2], of the image that the crops are cut from
    views: tuple[Drawn, ...]

    def rows(self, chosen: np.ndarray) -> "DrawnViews":
        """The parameters of some of the samples.

        `chosen`: int64[m] or bool[b].
        """
        return DrawnViews(self.before.rows(chosen), self.sizes[chosen], tuple(v.rows(chosen) for v in self.views))

    @property
    def steps(self) -> tuple[tuple[str, Operator, Params], ...]:
        """All steps, as `Drawn` has them; those of view v are named `v/Name`."""
        named = [(f"{v}/{name}", op, params) for v, view in enumerate(self.views) for name, op, params in view.steps]
        return (*self.before.steps, *named)


@dataclass(frozen=True)
class Views:
    """Stored image -> one float32[C, h, w] a view, by operators of which one is a MultiCrop.

    Raises:
        ValueError: several MultiCrops, a RandomResizedCrop beside it, or what `Transform` refuses of any view.
    """

    operators: tuple[Operator, ...]
    transforms: tuple[Transform, ...] = field(init=False, compare=False)  # of each view, from the crop on

    def __post_init__(self) -> None:
        kinds = [type(operator).__name__ for operator in self.operators]
        require(kinds.count("MultiCrop") == 1, f"give one MultiCrop, not {kinds.count('MultiCrop')}")
        require("RandomResizedCrop" not in kinds, "MultiCrop takes the place of RandomResizedCrop: leave one of them")
        crop = self.operators[self.cut]
        assert isinstance(crop, MultiCrop)
        made = tuple(Transform((each, *self.operators[self.cut + 1 :])) for each in crop.crops)
        object.__setattr__(self, "transforms", made)
        check_window(self.operators)
        check_unrounded(self.operators)
        count, wanted = made[0].channels, windows_of(self.operators)
        require(wanted in (1, count), f"Window: {wanted} windows make {wanted} channels, Normalize has {count} means")

    @cached_property
    def cut(self) -> int:
        """How many operators stand before the crop."""
        return next(i for i, operator in enumerate(self.operators) if isinstance(operator, MultiCrop))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all operators."""
        return names_of(self.operators)

    @property
    def before(self) -> list[tuple[str, Operator]]:
        """What comes before the crop, with its names."""
        return list(zip(self.names, self.operators, strict=True))[: self.cut]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Height and width of each view."""
        return tuple(view.size for view in self.transforms)

    @property
    def size(self) -> Size:
        """Of the first view."""
        return self.sizes[0]

    @property
    def normalize(self) -> Normalize:
        """The same for all views."""
        return self.transforms[0].normalize

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.transforms[0].channels

    @property
    def stored_channels(self) -> int:
        """Channels of the stored image, as a plain transform says."""
        return 1 if windows_of(self.operators) > 1 else self.channels

    def draw(self, keys: DrawKeys, heights: np.ndarray, widths: np.ndarray) -> DrawnViews:
        """Parameters of b samples whose stored sizes are `heights` and `widths`, int[b], pixels.

        View v draws under view v of the keys; what comes before under one that no view has.
        """
        own = DrawKeys(keys.seed, keys.epochs, keys.sample_ids, keys.occurrences, MOST_VIEWS)
        before, sizes = draw_steps(self.before, own, sizes_of(heights, widths))
        views = tuple(
            view.draw(DrawKeys(keys.seed, keys.epochs, keys.sample_ids, keys.occurrences, v), sizes[:, 0], sizes[:, 1])
            for v, view in enumerate(self.transforms)
        )
        return DrawnViews(before, sizes, views)


AnyTransform = Transform | Views
AnyDrawn = Drawn | DrawnViews


def made_of(operators: Sequence[Operator]) -> AnyTransform:
    """The transform of these operators: of several views where one is a MultiCrop."""
    several = any(isinstance(operator, MultiCrop) for operator in operators)
    return Views(tuple(operators)) if several else Transform(tuple(operators))
