"""Each operator in DALI's operators, given its drawn parameters: torchvision's meaning, no random operator, no state.

An operator that acts on a part of the samples stands under a condition, and costs what that part costs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from nvidia.dali import fn, math, types

from shards.colours import ColorJitter, GaussianBlur, Solarize
from shards.dali_colours import Feeds, jitter_columns, stored
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
        return jitter_columns(operator, params)
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
        return fn.resize(image, size=size, interp_type=how, antialias=True, **feeds.get("mirrored", {}))
    across: Any = fn.resize(image, resize_x=size[1], mode="stretch", interp_type=how, antialias=True)
    return fn.resize(across, resize_y=size[0], mode="stretch", interp_type=how, antialias=True)


def mirrored(down: Any, across: Any) -> Feeds:
    """A resize's options for flips behind it, which then cost nothing: it reads its input from the other end."""
    zero = types.Constant(0, dtype=types.DALIDataType.INT32)  # type: ignore[no-untyped-call]
    first = fn.cast(
        fn.stack(*(zero if side is None else side for side in (down, across))), dtype=types.DALIDataType.FLOAT
    )
    return {"roi_start": first, "roi_end": 1.0 - first, "roi_relative": True}


def flips_behind(steps: Sequence[tuple[str, Operator]], at: int) -> dict[type[Operator], str]:
    """The flips that follow a random crop at once, each at most once: kind -> name."""
    found: dict[type[Operator], str] = {}
    if isinstance(steps[at][1], RandomResizedCrop):
        for name, operator in steps[at + 1 :]:
            if type(operator) not in (HorizontalFlip, VerticalFlip) or type(operator) in found:
                break
            found[type(operator)] = name
    return found


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


def _erase(operator: Erasing, image: Any, feeds: Feeds) -> Any:
    if feeds["active"]:
        box = fn.cast(feeds["window"], dtype=types.DALIDataType.FLOAT)
        value = operator.value
        image = fn.erase(image, anchor=box[0:2], shape=box[2:4], axis_names="HW", fill_value=value)
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
    GaussianBlur: _blur,
    Solarize: _solarize,
    Erasing: _erase,
}
