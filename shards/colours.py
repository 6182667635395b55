"""Operators that change levels and not places: jitter, grayscale, blur, solarize."""

from dataclasses import dataclass

import numpy as np

from shards.operators import Chance, More, Params, between, check_range, require

JITTER_STEPS = ("brightness", "contrast", "saturation", "hue")
STRONGEST = 100.0
WIDEST = 999  # pixels of a blur


@dataclass(frozen=True)
class ColorJitter(Chance):
    """Brightness, contrast, saturation and hue in random order, clipped after each; a strength of 0 leaves one out.

    Factors are uniform in [max(0, 1 - strength), 1 + strength]; the hue shift in [-hue, hue] turns of the HSV circle.
    """

    p: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in JITTER_STEPS:
            value, most = getattr(self, name), 0.5 if name == "hue" else STRONGEST
            require(0 <= value <= most, f"ColorJitter: {name} is {value}; give a strength within 0..{most}")

    def told(self, values: Params) -> str:
        """The steps that are taken, in the order drawn."""
        names = [JITTER_STEPS[number] for number in values["order"].tolist()]
        return " ".join(f"{name} {float(values[name]):.2f}" for name in names if getattr(self, name) > 0)

    @property
    def uniforms(self) -> int:
        """The decision, four factors, four numbers whose order is that of the steps."""
        return 9

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """The four factors float64[b] (hue in turns) and `order` int64[b, 4], numbers of JITTER_STEPS."""
        drawn: Params = {"active": u[:, 0] < self.p, "order": np.argsort(u[:, 5:9], axis=1)}
        for i, name in enumerate(JITTER_STEPS[:3], start=1):
            strength = getattr(self, name)
            drawn[name] = between(u[:, i], max(0.0, 1.0 - strength), 1.0 + strength)
        drawn["hue"] = between(u[:, 4], -self.hue, self.hue)
        return drawn, sizes


@dataclass(frozen=True)
class Grayscale(Chance):
    """Luma (.2989, .587, .114) on all three channels; a one-channel image stays."""

    p: float = 0.1


@dataclass(frozen=True)
class GaussianBlur(Chance):
    """A Gaussian of `kernel_size` (odd) pixels, sigma uniform in a range of pixels, mirrored at the border."""

    p: float = 1.0
    kernel_size: int = 23
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = 0 < self.kernel_size <= WIDEST and self.kernel_size % 2 == 1
        require(fine, f"GaussianBlur: kernel_size is {self.kernel_size}; give an odd number of 1 to {WIDEST} pixels")
        check_range("GaussianBlur", "sigma", self.sigma, 1e-3, WIDEST)

    @property
    def uniforms(self) -> int:
        """The decision and sigma."""
        return 2

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`sigma` float64[b], pixels."""
        return {"active": u[:, 0] < self.p, "sigma": between(u[:, 1], *self.sigma)}, sizes


@dataclass(frozen=True)
class Solarize(Chance):
    """Levels at or above `threshold` (0..256 of 8 bits) are inverted."""

    threshold: float = 128.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.threshold <= 256, f"Solarize: threshold is {self.threshold}; give a level within 0..256")
