"""Gamma, CLAHE, stains, display windows, TrivialAugment and RandAugment in DALI's operators."""

from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from shards.dali_colours import Feeds, brightness, contrast, luma, saturation, step, stored
from shards.dali_graph import inverted_from
from shards.levels import Clahe, Gamma
from shards.operators import Operator
from shards.policies import RandAugment, TrivialAugment
from shards.stains import DARKEST, StainJitter
from shards.windows import Window

SHARPNESS = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13
FLOAT, UINT8 = types.DALIDataType.FLOAT, types.DALIDataType.UINT8


def _gamma(operator: Gamma, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        power = math.pow(fn.cast(image, dtype=FLOAT) / feeds["largest"], feeds["gamma"])
        image = stored(power * (255.999 if feeds["largest"] == 255.0 else feeds["largest"]), feeds)
    return image


def _clahe(operator: Clahe, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        image = _equalized(operator, image, feeds)
    return image


def _equalized(operator: Clahe, image: Any, feeds: Feeds) -> Any:
    options: dict[str, Any] = {"tiles_x": operator.tiles, "tiles_y": operator.tiles, "clip_limit": operator.clip_limit}
    if feeds["channels"] == 1:
        return fn.clahe(image, luma_only=False, **options)
    levels = fn.cast(image, dtype=FLOAT)
    gray = luma(levels, feeds)
    equal = fn.clahe(fn.reinterpret(fn.cast(gray, dtype=UINT8), layout="HWC"), luma_only=False, **options)
    return stored(levels * (fn.cast(equal, dtype=FLOAT) / math.max(gray, 1.0)) + 0.5, feeds)


def _stains(operator: StainJitter, image: Any, feeds: Feeds) -> Any:
    """The matrix works on rows of densities, and `coord_transform` on columns: it takes the transposed one."""
    if feeds["active"]:
        share = math.max(fn.cast(image, dtype=FLOAT) / feeds["largest"], DARKEST)
        matrix = fn.transpose(feeds["matrix"], perm=[1, 0])
        density = fn.coord_transform(-1.0 * math.log(share), M=matrix, T=feeds["offset"])
        image = stored(math.exp(-1.0 * density) * feeds["largest"] + (0.5 if feeds["largest"] == 255.0 else 0.0), feeds)
    return image


def _policy(operator: TrivialAugment | RandAugment, image: Any, feeds: Feeds) -> Any:
    for k in range(operator.count):
        image = _warp(image, feeds[f"{k}-Warp"], feeds[f"{k}-matrix"], operator.interpolation)
        for name, apply in OPERATION.items():
            image = step(apply, image, feeds[f"{k}-{name}"], feeds[f"{k}-magnitude"], feeds)
    return image


def _warp(image: Any, taken: Any, matrix: Any, interpolation: str) -> Any:
    if taken:
        how = types.DALIInterpType.INTERP_NN if interpolation == "nearest" else types.DALIInterpType.INTERP_LINEAR
        image = fn.warp_affine(image, matrix=matrix, inverse_map=True, interp_type=how, fill_value=0)
    return image


def _sharpness(image: Any, magnitude: Any, depth: Feeds) -> Any:
    """Away from a 3 x 3 smoothing, or towards it; the outermost pixels stay, since their change is cut off."""
    levels = fn.cast(image, dtype=FLOAT)
    kernel: Any = types.Constant(SHARPNESS)  # type: ignore[no-untyped-call]
    smooth = fn.reinterpret(math.floor(fn.filter(levels, kernel, border="101") + 0.5), layout="HWC")
    change = fn.reinterpret(smooth - levels, layout="HWC")
    shape = change.shape(dtype=types.DALIDataType.INT32)[0:2]
    framed = fn.slice(
        change[1:-1, 1:-1], start=(-1, -1), shape=shape, axes=(0, 1), out_of_bounds_policy="pad", fill_values=0
    )
    return stored(levels - magnitude * framed, depth)


def _posterize(image: Any, bits: Any, depth: Feeds) -> Any:
    step_ = math.pow(2.0, 8.0 - bits)
    return stored(math.floor(fn.cast(image, dtype=FLOAT) / step_) * step_, depth)


def _solarize(image: Any, share: Any, depth: Feeds) -> Any:
    return inverted_from(image, share * 255.0, depth)


def _stretch(image: Any, magnitude: Any, depth: Feeds) -> Any:
    """Each channel from its least to its most; a flat one stays."""
    levels = fn.cast(image, dtype=FLOAT)
    least = fn.reductions.min(levels, axes=(0, 1), keep_dims=True)
    span = fn.reductions.max(levels, axes=(0, 1), keep_dims=True) - least
    flat = fn.cast(span == 0.0, dtype=FLOAT)
    scale = span * (1.0 / 255.0) * (1.0 - flat) + flat
    return stored((levels - least * (1.0 - flat)) / scale, depth)


def _equal(image: Any, magnitude: Any, depth: Feeds) -> Any:
    """Pillow's table, within a level. DALI's own is OpenCV's, which spares the lowest level and not the highest.

    So it goes to the negative: 255 - OpenCV (255 - x) is 255 below (x) / n, of n pixels under the highest level, with
    `below` those under x. Pillow divides by a whole step = floor (n / 255); where that is 0 the channel stays.
    """
    levels = fn.cast(image, dtype=FLOAT)
    negative = fn.reinterpret(fn.cast(255.0 - levels, dtype=UINT8), layout="HWC")
    equal = 255.0 - fn.cast(fn.equalize(negative), dtype=FLOAT)
    highest = fn.reductions.max(levels, axes=(0, 1), keep_dims=True)
    steps = fn.reductions.sum(fn.cast(levels < highest, dtype=FLOAT), axes=(0, 1), keep_dims=True) / 255.0
    whole = math.floor(steps)
    some = fn.cast(whole > 0.0, dtype=FLOAT)
    made = math.floor(equal * steps / math.max(whole, 1.0) + 0.5)
    return stored(some * made + (1.0 - some) * levels, depth)


def _window(operator: Window, image: Any, feeds: Feeds) -> Any:
    levels = fn.cast(image, dtype=FLOAT)
    planes = []
    for k in range(operator.count):
        center, width = feeds["center"][k], feeds["width"][k]
        planes.append(math.clamp((levels - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0) * feeds["largest"])
    return stored(planes[0] if operator.count == 1 else fn.cat(*planes, axis=2), feeds)


OPERATION: dict[str, Callable[[Any, Any, Feeds], Any]] = {
    "Brightness": lambda image, magnitude, depth: brightness(image, 1.0 + magnitude, depth),
    "Color": lambda image, magnitude, depth: saturation(image, 1.0 + magnitude, depth),
    "Contrast": lambda image, magnitude, depth: contrast(image, 1.0 + magnitude, depth),
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _stretch,
    "Equalize": _equal,
}
BUILD: dict[type[Operator], Callable[[Any, Any, Feeds], Any]] = {
    Gamma: _gamma,
    Clahe: _clahe,
    StainJitter: _stains,
    TrivialAugment: _policy,
    RandAugment: _policy,
    Window: _window,
}
