"""Each operator in DALI's operators, given its drawn parameters: torchvision's meaning, no random operator, no state.

An operator that acts on a part of the samples stands under a condition, and costs what that part costs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from shards.colours import JITTER_STEPS, ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.operators import (
    CenterCrop,
    Erasing,
    HorizontalFlip,
    Operator,
    Params,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    VerticalFlip,
)
from shards.policies import GEOMETRIC, OPERATIONS, RandAugment, TrivialAugment
from shards.warps import Affine, Perspective, Rotation

Feeds = dict[str, Any]
LUMA = (0.2989, 0.587, 0.114)


def columns(operator: Operator, params: Params) -> Params:
    """The drawn parameters [b, …] in the form that the graph takes."""
    if isinstance(operator, Rotation | Affine | Perspective):
        matrix = corner_map(params["matrix"])
        return {"active": params["active"], "matrix": matrix if isinstance(operator, Perspective) else matrix[:, :2]}
    if isinstance(operator, Rotate90):
        turns = params["turns"]
        return {"transposed": turns % 2 == 1, "across": (turns >= 2).astype(int), "down": np.isin(turns, (1, 2)) * 1}
    if isinstance(operator, HorizontalFlip | VerticalFlip):
        return {"active": params["active"].astype(int)}
    if isinstance(operator, ColorJitter):
        return _jitter_columns(operator, params)
    if isinstance(operator, TrivialAugment | RandAugment):
        return _policy_columns(params)
    return {name: column for name, column in params.items() if name not in ("alpha", "beta")}


def _policy_columns(params: Params) -> Params:
    """For each operation in turn whether it is each of the kinds, its magnitude, and the map of a warp."""
    fed: Params = {}
    for k in range(params["choice"].shape[1]):
        names = np.array(OPERATIONS)[params["choice"][:, k]]
        fed[f"{k}-magnitude"] = params["magnitude"][:, k].astype(float)
        fed[f"{k}-matrix"] = corner_map(params["matrix"][:, k])[:, :2]
        fed[f"{k}-Warp"] = np.isin(names, GEOMETRIC)
        fed |= {f"{k}-{name}": names == name for name in OPERATIONS if name not in ("Identity", *GEOMETRIC)}
    return fed


def corner_map(matrix: np.ndarray) -> np.ndarray:
    """A map [b, 3, 3] of pixel centres as one of pixel corners, which DALI counts from."""
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    return np.asarray(half @ matrix @ np.linalg.inv(half))


def _jitter_columns(operator: ColorJitter, params: Params) -> Params:
    """For each place in the order and each step in use whether that step is taken there, and the factors."""
    steps = [(n, name) for n, name in enumerate(JITTER_STEPS) if getattr(operator, name) > 0]
    fed = {"active": params["active"]} | {name: params[name] for _, name in steps}
    for place in range(len(JITTER_STEPS)):
        fed |= {f"{place}-{name}": params["active"] & (params["order"][:, place] == n) for n, name in steps}
    return fed


def window(operator: Operator, image: Any, feeds: Feeds) -> Any:
    """Cut out a window; what lies outside is 0."""
    box = feeds["window"]
    return fn.slice(image, box[0:2], box[2:4], axes=(0, 1), out_of_bounds_policy="pad", fill_values=0)


def resize(operator: Operator, image: Any, feeds: Feeds) -> Any:
    """Antialiased, to the size fed; of bytes, but in a random crop, across, then down, each rounded, as torch does.

    Evaluation's stays in floats.
    """
    size: Any = fn.cast(feeds["size"], dtype=types.DALIDataType.FLOAT)
    how = types.DALIInterpType.INTERP_CUBIC if _is_cubic(operator) else types.DALIInterpType.INTERP_LINEAR
    if not getattr(operator, "rounded", True):
        levels = fn.resize(image, size=size, interp_type=how, antialias=True, dtype=types.DALIDataType.FLOAT)
        return math.clamp(levels, 0.0, feeds["largest"]) if _is_cubic(operator) else levels
    if feeds["largest"] != 255.0 or isinstance(operator, RandomResizedCrop):  # two operators cost training a half more
        return fn.resize(image, size=size, interp_type=how, antialias=True)
    across: Any = fn.resize(image, resize_x=size[1], mode="stretch", interp_type=how, antialias=True)
    return fn.resize(across, resize_y=size[0], mode="stretch", interp_type=how, antialias=True)


def _is_cubic(operator: Any) -> bool:
    return bool(operator.interpolation == "bicubic")


def _crop_and_resize(operator: Operator, image: Any, feeds: Feeds) -> Any:
    return resize(operator, window(operator, image, feeds), feeds)


def _mirror(operator: Operator, image: Any, feeds: Feeds) -> Any:
    return fn.flip(image, horizontal=feeds["active"], vertical=0)


def _upend(operator: Operator, image: Any, feeds: Feeds) -> Any:
    return fn.flip(image, horizontal=0, vertical=feeds["active"])


def _quarter_turns(operator: Operator, image: Any, feeds: Feeds) -> Any:
    if feeds["transposed"]:
        image = fn.transpose(image, perm=[1, 0, 2], transpose_layout=False, output_layout="HWC")
    return fn.flip(image, horizontal=feeds["across"], vertical=feeds["down"])


def _interpolation(operator: Any) -> Any:
    return types.DALIInterpType.INTERP_NN if operator.interpolation == "nearest" else types.DALIInterpType.INTERP_LINEAR


def _affine(operator: Operator, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        how = _interpolation(operator)
        image = fn.warp_affine(
            warpable(image, feeds), matrix=feeds["matrix"], inverse_map=True, interp_type=how, fill_value=0
        )
        image = rounded(image, feeds)
    return image


def warpable(image: Any, depth: Feeds) -> Any:
    """16 bits as floats: DALI's warps take no uint16."""
    return image if depth["largest"] == 255.0 else fn.cast(image, dtype=types.DALIDataType.FLOAT)


def rounded(image: Any, depth: Feeds) -> Any:
    """And back."""
    return image if depth["largest"] == 255.0 else fn.cast(image, dtype=depth["kind"])


def _perspective(operator: Operator, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        matrix, how = feeds["matrix"], _interpolation(operator)
        image = fn.experimental.warp_perspective(
            warpable(image, feeds),
            matrix=matrix,
            inverse_map=True,
            interp_type=how,
            fill_value=0.0,
            pixel_origin="corner",
        )
        image = rounded(image, feeds)
    return image


def _blur(operator: GaussianBlur, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        image = fn.gaussian_blur(image, sigma=feeds["sigma"], window_size=operator.kernel_size)
    return image


def _solarize(operator: Solarize, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        image = inverted_from(image, operator.threshold * feeds["largest"] / 255.0, feeds)
    return image


def inverted_from(image: Any, threshold: Any, depth: Feeds) -> Any:
    """Levels at or above a threshold inverted."""
    levels = fn.cast(image, dtype=types.DALIDataType.FLOAT)
    chosen = fn.cast(levels >= threshold, dtype=types.DALIDataType.FLOAT)
    return stored(levels + chosen * (depth["largest"] - 2.0 * levels), depth)


def _without_colour(image: Any, factor: float, feeds: Feeds) -> Any:
    if feeds["largest"] != 255.0:
        return saturation(image, factor, feeds)
    rows = [*LUMA] * 3
    made = fn.coord_transform(image, M=rows, T=[-TRUNCATING] * 3, dtype=types.DALIDataType.UINT8)
    return fn.reinterpret(made, layout="HWC")


def _gray(operator: Grayscale, image: Any, feeds: Feeds) -> Any:
    if feeds["channels"] == 3:
        image = step(_without_colour, image, feeds["active"], 0.0, feeds)
    return image


def _erase(operator: Erasing, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        box = fn.cast(feeds["window"], dtype=types.DALIDataType.FLOAT)
        value = operator.value
        image = fn.erase(image, anchor=box[0:2], shape=box[2:4], axis_names="HW", fill_value=value)
    return image


def stored(levels: Any, depth: Feeds) -> Any:
    """Clipped, and truncated as torchvision does (DALI's own brightness, contrast, saturation round); 16 bits round."""
    levels = math.clamp(levels, 0.0, depth["largest"])
    if depth["largest"] == 255.0:
        levels = math.floor(levels)
    return fn.reinterpret(fn.cast(levels, dtype=depth["kind"]), layout="HWC")


def luma(levels: Any, depth: Feeds) -> Any:
    """Grey levels [h, w, 1], truncated where they are bytes."""
    gray = LUMA[0] * levels[:, :, 0:1] + LUMA[1] * levels[:, :, 1:2] + LUMA[2] * levels[:, :, 2:3]
    return math.floor(gray) if depth["largest"] == 255.0 else gray


TRUNCATING = 0.4999  # taken off a level before DALI rounds it


def brightness(image: Any, factor: Any, depth: Feeds) -> Any:
    """Levels times the factor."""
    if depth["largest"] == 255.0:  # one operator: written as arithmetic it is four
        return fn.brightness(image, brightness=factor, brightness_shift=-TRUNCATING / 255.0)
    return stored(fn.cast(image, dtype=types.DALIDataType.FLOAT) * factor, depth)


def contrast(image: Any, factor: Any, depth: Feeds) -> Any:
    """Towards the mean of the grey image; truncation lowers that of bytes by half a level."""
    if depth["largest"] == 255.0:
        means = fn.reductions.mean(image, axes=(0, 1))
        middle = means[0] if depth["channels"] == 1 else _mixed(means) - 0.5
        return stored(image * factor + (1.0 - factor) * middle, depth)
    levels = fn.cast(image, dtype=types.DALIDataType.FLOAT)
    gray = levels if depth["channels"] == 1 else luma(levels, depth)
    return stored(levels * factor + (1.0 - factor) * fn.reductions.mean(gray), depth)


def _mixed(means: Any) -> Any:
    return LUMA[0] * means[0] + LUMA[1] * means[1] + LUMA[2] * means[2]


def saturation(image: Any, factor: Any, depth: Feeds) -> Any:
    """Towards the grey image; one channel stays. Of bytes a matrix: grey levels apart cost more."""
    if depth["channels"] == 1:
        return image
    if depth["largest"] == 255.0:
        rows = np.tile(np.array(LUMA, np.float32), (3, 1))
        constant: Any = types.Constant
        matrix = constant(np.eye(3, dtype=np.float32)) * factor + constant(rows) * (1.0 - factor)
        offset = constant(np.ones(3, np.float32)) * (-TRUNCATING - 0.5 * (1.0 - factor))
        turned = fn.coord_transform(image, M=matrix, T=offset, dtype=types.DALIDataType.UINT8)
        return fn.reinterpret(turned, layout="HWC")
    levels = fn.cast(image, dtype=types.DALIDataType.FLOAT)
    return stored(levels * factor + (1.0 - factor) * luma(levels, depth), depth)


def _hue(image: Any, turns: Any, depth: Feeds) -> Any:
    """A shift in HSV, written out: DALI's own hue turns the YIQ plane, which is another thing.

    With M = max, C = M - min and the hue h in sixths, channel n in (5, 3, 1) is M - C clamp(min(k, 4 - k), 0, 1), where
    k = (n + h + 6 turns) mod 6.
    """
    levels = fn.cast(image, dtype=types.DALIDataType.FLOAT)
    red, green, blue = levels[:, :, 0:1], levels[:, :, 1:2], levels[:, :, 2:3]
    most = math.max(math.max(red, green), blue)
    chroma = most - math.min(math.min(red, green), blue)
    safe = math.max(chroma, 1e-6)
    by_red = fn.cast(most == red, dtype=types.DALIDataType.FLOAT)
    by_green = fn.cast(most == green, dtype=types.DALIDataType.FLOAT) * (1.0 - by_red)
    sixth = by_red * (green - blue) + by_green * (blue - red) + (1.0 - by_red - by_green) * (red - green)
    hue = sixth / safe + 2.0 * by_green + 4.0 * (1.0 - by_red - by_green) + 6.0 * turns
    planes = []
    for n in (5.0, 3.0, 1.0):
        k = hue + n
        k = k - 6.0 * math.floor(k / 6.0)
        planes.append(most - chroma * math.clamp(math.min(k, 4.0 - k), 0.0, 1.0))
    shifted = fn.cat(planes[0], planes[1], planes[2], axis=2)
    return stored(shifted * (255.999 / 255.0) if depth["largest"] == 255.0 else shifted, depth)


STEPS: dict[int, dict[str, Callable[[Any, Any, Feeds], Any]]] = {  # one channel has no saturation and no hue
    1: {"brightness": brightness, "contrast": contrast},
    3: {"brightness": brightness, "contrast": contrast, "saturation": saturation, "hue": _hue},
}


def _jitter(operator: ColorJitter, image: Any, feeds: Feeds) -> Any:
    """One condition around all steps: the others of the batch pass by them at once."""
    if feeds["active"]:
        image = _jittered(image, feeds)
    return image


def _jittered(image: Any, feeds: Feeds) -> Any:
    steps = STEPS[feeds["channels"]]
    for place in range(len(JITTER_STEPS)):
        for name in steps:
            if f"{place}-{name}" in feeds:
                image = step(steps[name], image, feeds[f"{place}-{name}"], feeds[name], feeds)
    return image


def step(apply: Callable[[Any, Any, Feeds], Any], image: Any, taken: Any, factor: Any, depth: Feeds) -> Any:
    """One step on the samples that take it."""
    if taken:
        image = apply(image, factor, depth)
    return image


BUILD: dict[type[Operator], Callable[[Any, Any, Feeds], Any]] = {
    RandomResizedCrop: _crop_and_resize,
    Resize: resize,
    CenterCrop: window,
    RandomCrop: window,
    HorizontalFlip: _mirror,
    VerticalFlip: _upend,
    Rotate90: _quarter_turns,
    Rotation: _affine,
    Affine: _affine,
    Perspective: _perspective,
    ColorJitter: _jitter,
    Grayscale: _gray,
    GaussianBlur: _blur,
    Solarize: _solarize,
    Erasing: _erase,
}
