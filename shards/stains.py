"""Stain jitter: what haematoxylin, eosin and DAB absorb, made stronger or weaker (Tellez et al.).

Light that passes stains of concentration s leaves the optical density -ln(I) = s R (Beer and Lambert), with the rows of
R from Ruifrok and Johnston 2001, "Quantification of histochemical staining by color deconvolution". Tellez et al. 2018,
"Whole-Slide Mitosis Detection in H&E Breast Histology Using PHH3 as a Reference to Train Distilled Stain-Invariant
Convolutional Networks", section III-D, replace each s_i by alpha_i s_i + beta_i, so that in the density

    d' = d M + o,    M = R^-1 diag(alpha) R,    o = beta R:

one matrix a sample, and the image itself where nothing is drawn. Densities of a stain below zero, which no stain has
but noise does, go through like the others.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shards.operators import Chance, More, Params, between, require

RGB_FROM_HED = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
DARKEST = 1e-6  # of the 0..1 scale: what a black pixel counts as


@dataclass(frozen=True)
class StainJitter(Chance):
    """Each stain's concentration times alpha, uniform within 1 - strength..1 + strength, plus beta within -bias..bias.

    Concentrations are natural logarithms. Colour images of 8 or 16 bits.
    """

    colours_only: ClassVar[bool] = True
    p: float = 1.0
    strength: float = 0.05
    bias: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.strength <= 1, f"StainJitter: strength is {self.strength}; give a number within 0..1")
        require(0 <= self.bias <= 2, f"StainJitter: bias is {self.bias}; give a number within 0..2")

    @property
    def uniforms(self) -> int:
        """The decision, three factors, three shifts."""
        return 7

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`alpha`, `beta` float64[b, 3], and what follows from them: `matrix` [b, 3, 3], `offset` [b, 3]."""
        alpha = between(u[:, 1:4], 1 - self.strength, 1 + self.strength)
        beta = between(u[:, 4:7], -self.bias, self.bias)
        matrix = np.linalg.inv(RGB_FROM_HED) @ (alpha[:, :, None] * RGB_FROM_HED)
        drawn = {"active": u[:, 0] < self.p, "alpha": alpha, "beta": beta}
        return drawn | {"matrix": matrix, "offset": beta @ RGB_FROM_HED}, sizes
