"""Operators that move pixels by a projective map: rotation, affine, perspective.

All draw `matrix` float64[b, 3, 3], which takes an output pixel (x, y, 1), counted at pixel centres, to the input pixel
that it shows; what comes from outside is 0.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shards.operators import MOST_TIMES, Chance, More, Params, below, between, check_choice, check_range, require

Interpolation = Literal["nearest", "bilinear"]
INTERPOLATIONS = ("nearest", "bilinear")


def _shift(dx: np.ndarray | float, dy: np.ndarray | float, b: int) -> np.ndarray:
    matrix = np.tile(np.eye(3), (b, 1, 1))
    matrix[:, 0, 2], matrix[:, 1, 2] = dx, dy
    return matrix


def inverse_affine(
    sizes: np.ndarray,
    degrees: np.ndarray,
    shift: np.ndarray,
    scale: np.ndarray,
    shear: np.ndarray,
    centre: np.ndarray | None = None,
) -> np.ndarray:
    """Inverse of T C R Sh S C^-1, torchvision's order; clockwise degrees, shift and shear [b, 2] as (x, y).

    `centre` [b, 2] (x, y) is the point that stays; none: the image's centre.
    """
    turn, shear_x, shear_y = np.radians(degrees), np.radians(shear[:, 0]), np.radians(shear[:, 1])
    forward = np.tile(np.eye(3), (len(sizes), 1, 1))
    forward[:, 0, 0] = np.cos(turn - shear_y) / np.cos(shear_y)
    forward[:, 0, 1] = -np.cos(turn - shear_y) * np.tan(shear_x) / np.cos(shear_y) - np.sin(turn)
    forward[:, 1, 0] = np.sin(turn - shear_y) / np.cos(shear_y)
    forward[:, 1, 1] = -np.sin(turn - shear_y) * np.tan(shear_x) / np.cos(shear_y) + np.cos(turn)
    forward[:, :2, :2] *= scale[:, None, None]
    (x, y), b = ((sizes[:, ::-1] - 1) / 2.0 if centre is None else centre).T, len(sizes)
    return _shift(x, y, b) @ np.linalg.inv(forward) @ _shift(-x - shift[:, 0], -y - shift[:, 1], b)


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float64[b, 3, 3] that takes four points [b, 4, 2] to four others; points count pixel corners, the map centres."""
    b, (x, y), (tx, ty) = (
        len(source),
        np.moveaxis(source.astype(float), -1, 0),
        np.moveaxis(target.astype(float), -1, 0),
    )
    one, zero = np.ones_like(x), np.zeros_like(x)
    rows_x = np.stack([x, y, one, zero, zero, zero, -tx * x, -tx * y], axis=-1)
    rows_y = np.stack([zero, zero, zero, x, y, one, -ty * x, -ty * y], axis=-1)
    system, right = np.concatenate([rows_x, rows_y], axis=1), np.concatenate([tx, ty], axis=1)
    solved = _solved(system, right)
    matrix = np.concatenate([solved, np.ones((b, 1))], axis=1).reshape(b, 3, 3)
    return _shift(-0.5, -0.5, b) @ matrix @ _shift(0.5, 0.5, b)


def _solved(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64[b, n] from systems [b, n, n] and right sides [b, n]; of corners in one line the nearest map."""
    try:
        return np.linalg.solve(system, right[..., None])[..., 0]
    except np.linalg.LinAlgError:
        if len(system) == 1:
            return np.linalg.lstsq(system[0], right[0])[0][None]
        return np.concatenate([_solved(system[i : i + 1], right[i : i + 1]) for i in range(len(system))])


@dataclass(frozen=True)
class Rotation(Chance):
    """A turn about the centre by an angle uniform in `degrees`, counterclockwise."""

    p: float = 1.0
    degrees: tuple[float, float] = (-180.0, 180.0)
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("Rotation", "interpolation", self.interpolation, INTERPOLATIONS)
        check_range("Rotation", "degrees", self.degrees, -360.0, 360.0)

    @property
    def uniforms(self) -> int:
        """The decision and the angle."""
        return 2

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """The map and `angle` in degrees."""
        angle, none = between(u[:, 1], *self.degrees), np.zeros((len(u), 2))
        matrix = inverse_affine(sizes, -angle, none, np.ones(len(u)), none)
        return {"active": u[:, 0] < self.p, "matrix": matrix, "angle": angle}, sizes


@dataclass(frozen=True)
class Affine(Chance):
    """Turn, shift (share of width and height), scale and shear (degrees: x from, to, y from, to) about the centre."""

    p: float = 1.0
    degrees: tuple[float, float] = (0.0, 0.0)
    translate: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    shear: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("Affine", "interpolation", self.interpolation, INTERPOLATIONS)
        check_range("Affine", "degrees", self.degrees, -360.0, 360.0)
        fine = len(self.translate) == 2 and all(0 <= part <= 1 for part in self.translate)
        require(fine, f"Affine: translate is {self.translate}; give two shares of the size within 0..1")
        check_range("Affine", "scale", self.scale, 1 / MOST_TIMES, MOST_TIMES)
        require(len(self.shear) == 4, f"Affine: shear is {self.shear}; give x from, x to, y from, y to in degrees")
        for pair in (self.shear[:2], self.shear[2:]):
            check_range("Affine", "shear", pair, -89.0, 89.0)

    @property
    def uniforms(self) -> int:
        """The decision, angle, two shifts, scale, two shears."""
        return 7

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """The map and the numbers it is made of; shifts are whole pixels, as in torchvision."""
        shift = np.rint((2 * u[:, 2:4] - 1) * np.array(self.translate) * sizes[:, ::-1])
        angle, scale = between(u[:, 1], *self.degrees), between(u[:, 4], *self.scale)
        shear = np.stack([between(u[:, 5], *self.shear[:2]), between(u[:, 6], *self.shear[2:])], axis=1)
        matrix = inverse_affine(sizes, angle, shift, scale, shear)
        drawn = {"active": u[:, 0] < self.p, "matrix": matrix, "angle": angle}
        return drawn | {"shift": shift, "scale": scale, "shear": shear}, sizes


@dataclass(frozen=True)
class Perspective(Chance):
    """The four corners moved inwards by up to `distortion_scale` times half the size."""

    distortion_scale: float = 0.5
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("Perspective", "interpolation", self.interpolation, INTERPOLATIONS)
        fine = 0 <= self.distortion_scale <= 1
        require(fine, f"Perspective: distortion_scale is {self.distortion_scale}; give a number within 0..1")

    @property
    def uniforms(self) -> int:
        """The decision and four corners."""
        return 9

    def draw(self, u: np.ndarray, sizes: np.ndarray, more: More) -> tuple[Params, np.ndarray]:
        """The map and the moved `corners` int64[b, 4, 2] as (x, y), clockwise from the top left."""
        size = sizes[:, None, ::-1]
        inward = below(u[:, 1:9].reshape(-1, 4, 2), (size // 2 * self.distortion_scale).astype(np.int64) + 1)
        far = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
        corners = np.where(far == 1, size - 1 - inward, inward)
        return {"active": u[:, 0] < self.p, "matrix": homography(corners, far * (size - 1)), "corners": corners}, sizes
