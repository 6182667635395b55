"""TrivialAugment and RandAugment: one or several operations at random, of torchvision's sets and strengths.

Müller and Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation" (the wide set); Cubuk et
al. 2020, "RandAugment: Practical automated data augmentation with a reduced search space". Both are of 8 bits:
posterize and equalize are defined on bytes.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shards.operators import More, Operator, Params, below, check_choice, require
from shards.warps import INTERPOLATIONS, Interpolation, inverse_affine

# In torchvision's order, which a draw numbers.
OPERATIONS = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),
    *("Brightness", "Color", "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
GEOMETRIC = OPERATIONS[1:6]
SIGNED = OPERATIONS[1:10]  # go either way, as likely


@dataclass(frozen=True)
class Strengths:
    """The strongest of each operation: shears as tangents, turns in degrees, factors as what is added to 1."""

    shear: float
    rotate: float
    factor: float
    posterize: int  # bits that are lost
    pixels: float | None = None  # of a shift; none: 150 / 331 of the side

    def of(self, choice: np.ndarray, number: np.ndarray, bins: int, sizes: np.ndarray) -> np.ndarray:
        """float64[b]: the magnitude of a strength's number int64[b] below `bins`, without its sign."""
        down, across = (np.full(len(sizes), self.pixels) if self.pixels else 150 / 331 * side for side in sizes.T)
        level, zero = number / (bins - 1), np.zeros(len(number))
        table = {
            "ShearX": level * self.shear, "ShearY": level * self.shear,
            "TranslateX": np.trunc(level * across + 1e-9), "TranslateY": np.trunc(level * down + 1e-9),
            "Rotate": level * self.rotate,
            **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), level * self.factor),
            "Posterize": np.rint(8 - level * self.posterize), "Solarize": 1 - level,
        }  # fmt: skip
        return np.stack([table.get(name, zero) for name in OPERATIONS], axis=1)[np.arange(len(choice)), choice]


WIDE = Strengths(shear=0.99, rotate=135.0, factor=0.99, posterize=6, pixels=32.0)
RANDOM = Strengths(shear=0.3, rotate=30.0, factor=0.9, posterize=4)


def slot(strengths: Strengths, u: np.ndarray, number: np.ndarray, bins: int, sizes: np.ndarray) -> Params:
    """One operation from u float64[b, 2] (which, sign): `choice` of OPERATIONS, `magnitude`, and the map of a warp."""
    choice = below(u[:, 0], len(OPERATIONS))
    sign = np.where((u[:, 1] <= 0.5) & np.isin(choice, [OPERATIONS.index(name) for name in SIGNED]), -1.0, 1.0)
    magnitude = sign * strengths.of(choice, number, bins, sizes)

    def where(name: str) -> np.ndarray:
        return np.where(choice == OPERATIONS.index(name), magnitude, 0.0)

    shear = np.degrees(np.arctan(np.stack([where("ShearX"), where("ShearY")], axis=1)))
    shift = np.stack([where("TranslateX"), where("TranslateY")], axis=1)
    corner = (shear != 0).any(axis=1)[:, None]  # shears leave the corner in place, the others the centre
    centre = np.where(corner, -0.5, (sizes[:, ::-1] - 1) / 2.0)
    matrix = inverse_affine(sizes, -where("Rotate"), shift, np.ones(len(u)), shear, centre)
    return {"choice": choice, "magnitude": magnitude, "matrix": matrix}


def together(slots: list[Params]) -> Params:
    """The arrays of several operations, [b, k, …]."""
    return {name: np.stack([each[name] for each in slots], axis=1) for name in slots[0]}


@dataclass(frozen=True)
class TrivialAugment(Operator):
    """One operation of the wide set, at one of `bins` strengths; what a warp leaves empty is 0."""

    eight_bits_only: ClassVar[bool] = True
    bins: int = 31
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        check_bins("TrivialAugment", self.bins)
        check_choice("TrivialAugment", "interpolation", self.interpolation, INTERPOLATIONS)

    def told(self, values: Params) -> str:
        """The operation and its magnitude."""
        return told(values)

    @property
    def uniforms(self) -> int:
        """Which, sign, strength."""
        return 3

    @property
    def count(self) -> int:
        """Operations on an image."""
        return 1

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`choice` int64[b, 1], `magnitude` float64[b, 1], `matrix` [b, 1, 3, 3]."""
        return together([slot(WIDE, u[:, :2], below(u[:, 2], self.bins), self.bins, sizes)]), sizes


@dataclass(frozen=True)
class RandAugment(Operator):
    """`count` operations one after the other, all at strength `magnitude` of `bins`."""

    eight_bits_only: ClassVar[bool] = True
    count: int = 2
    magnitude: int = 9
    bins: int = 31
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        check_bins("RandAugment", self.bins)
        whole = isinstance(self.count, int) and 1 <= self.count <= 8
        require(whole, f"RandAugment: count is {self.count}; give a whole number within 1..8")
        fine = isinstance(self.magnitude, int) and 0 <= self.magnitude < self.bins
        require(fine, f"RandAugment: magnitude is {self.magnitude}; give a whole number within 0..{self.bins - 1}")
        check_choice("RandAugment", "interpolation", self.interpolation, INTERPOLATIONS)

    def told(self, values: Params) -> str:
        """The operations and their magnitudes."""
        return told(values)

    @property
    def uniforms(self) -> int:
        """Which and sign of each operation."""
        return 2 * self.count

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`choice` int64[b, count], `magnitude` float64[b, count], `matrix` [b, count, 3, 3]."""
        number = np.full(len(u), self.magnitude)
        slots = [slot(RANDOM, u[:, 2 * k : 2 * k + 2], number, self.bins, sizes) for k in range(self.count)]
        return together(slots), sizes


def told(values: Params) -> str:
    """One sample's operations with their magnitudes, in words."""
    pairs = zip(values["choice"].tolist(), values["magnitude"].tolist(), strict=True)
    return ", ".join(f"{OPERATIONS[n]} {magnitude:.2f}" if magnitude else OPERATIONS[n] for n, magnitude in pairs)


def check_bins(name: str, bins: int) -> None:
    """Refuse fewer than two strengths."""
    require(isinstance(bins, int) and 2 <= bins <= 1000, f"{name}: bins is {bins}; give a whole number within 2..1000")
