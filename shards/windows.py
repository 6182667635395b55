"""Display windows: which of an image's 16 bits are shown as black to white, chosen when it is loaded, not when stored.

DICOM PS3.3 C.11.2.1.2.1, VOI LUT function LINEAR: with center c, width w and largest output y,

    y (x) = clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1) y.

x is a stored level. Several windows make as many channels of one: lung, soft tissue and bone, say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shards.operators import Chance, More, Params, between, require

COUNTS = (1, 3)  # windows: a channel stays one, or becomes three
LARGEST = 2**20  # levels
NARROWEST = 1.001  # DALI divides by the width less 1 in float32, where 1 + 1e-8 is 1


@dataclass(frozen=True)
class Window(Chance):
    """Stored levels of 16 bits to 0..65535 by one window, or by three, which make three channels of one.

    With probability p the windows of a sample are moved together by within -shift..shift of their widths, and each
    width less 1 is taken times a factor whose logarithm is uniform within -log(1 + stretch)..log(1 + stretch).
    """

    sixteen_bits_only: ClassVar[bool] = True
    p: float = 1.0
    centers: tuple[float, ...] = (32768.0,)
    widths: tuple[float, ...] = (65536.0,)
    shift: float = 0.0
    stretch: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = len(self.centers) == len(self.widths) and len(self.centers) in COUNTS
        require(fine, f"Window: {len(self.centers)} centers and {len(self.widths)} widths; give one or three of each")
        near = all(abs(center) <= LARGEST for center in self.centers)
        require(near, f"Window: centers is {self.centers}; give finite levels within -{LARGEST}..{LARGEST}")
        wide = all(NARROWEST <= width <= LARGEST for width in self.widths)
        require(wide, f"Window: widths is {self.widths}; give numbers of levels from {NARROWEST} to {LARGEST}")
        require(0 <= self.shift <= 1, f"Window: shift is {self.shift}; give a share of the width within 0..1")
        require(0 <= self.stretch <= 4, f"Window: stretch is {self.stretch}; give a number within 0..4")

    @property
    def count(self) -> int:
        """Windows: channels that come out where it is three."""
        return len(self.centers)

    @property
    def uniforms(self) -> int:
        """The decision, the shift, the stretch."""
        return 3

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """`center` and `width` float64[b, windows], stored levels; no `active`: the window itself is always taken."""
        moved = (u[:, 0] < self.p)[:, None]
        center, width = (np.broadcast_to(np.array(v, float), (len(u), self.count)) for v in (self.centers, self.widths))
        shift = between(u[:, 1:2], -self.shift, self.shift)
        factor = np.exp(between(u[:, 2:3], -np.log1p(self.stretch), np.log1p(self.stretch)))
        drawn = {"center": center + np.where(moved, shift * width, 0.0)}
        return drawn | {"width": 1.0 + (width - 1.0) * np.where(moved, factor, 1.0)}, sizes


def window_of(pairs: Sequence[float], jitter: Sequence[float] = (0.0, 0.0)) -> Window:
    """The window of `center,width` once or three times, and its jitter `shift,stretch`. ValueError for others."""
    require(
        len(pairs) in [2 * count for count in COUNTS],
        f"Window: got {len(pairs)} numbers; give center,width, or three such pairs",
    )
    return Window(1.0, tuple(pairs[::2]), tuple(pairs[1::2]), *jitter)
