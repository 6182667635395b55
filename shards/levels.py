"""Operators on levels beyond torchvision's own classes: gamma and CLAHE."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shards.operators import Chance, More, Params, between, check_range, require

LEVELS = 256  # of a histogram; as a clip limit it clips nothing


@dataclass(frozen=True)
class Gamma(Chance):
    """Levels to the power of gamma on the 0..1 scale; gamma's logarithm is uniform, so that .5 and 2 weigh alike."""

    p: float = 1.0
    gamma: tuple[float, float] = (0.7, 1.4)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("Gamma", "gamma", self.gamma, 0.01, 100.0)

    @property
    def uniforms(self) -> int:
        """The decision and gamma."""
        return 2

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`gamma` float64[b]."""
        return {"active": u[:, 0] < self.p, "gamma": np.exp(between(u[:, 1], *np.log(self.gamma)))}, sizes


@dataclass(frozen=True)
class Clahe(Chance):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of the luma; colours are scaled along.

    `clip_limit` is a bin's largest share as a multiple of an even histogram's; `tiles` are those of a side. 8 bits: the
    DALI operator takes no others.
    """

    eight_bits_only: ClassVar[bool] = True
    p: float = 0.5
    clip_limit: float = 2.0
    tiles: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = 0 < self.clip_limit <= LEVELS
        require(fine, f"Clahe: clip_limit is {self.clip_limit}; give a number above 0, {LEVELS} at most, such as 2")
        fine = isinstance(self.tiles, int) and 1 <= self.tiles <= 64
        require(fine, f"Clahe: tiles is {self.tiles}; give a whole number within 1..64")
