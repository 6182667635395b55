"""Each operator on one decoded image, by torch and OpenCV, given its drawn parameters: torchvision's meaning.

What the compiled loops do not take over runs here, and all of it where there is no compiler.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from shards import host_deep, host_levels
from shards.chain import Drawn
from shards.colours import ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.host_colours import blur, gray, jitter, solarize
from shards.host_policies import policy
from shards.levels import Clahe, Gamma
from shards.operators import (
    CenterCrop,
    HorizontalFlip,
    Operator,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    VerticalFlip,
)
from shards.policies import RandAugment, TrivialAugment
from shards.stains import StainJitter
from shards.warps import Affine, Perspective, Rotation
from shards.windows import Window

Values = dict[str, Any]  # one sample's part of an operator's parameters
Apply = Callable[[Any, np.ndarray, Values], np.ndarray]  # operator, image [h, w, C], values -> image


def refuse_bits(operators: Sequence[Operator], bits: int) -> None:
    """ValueError where an operator is not defined on so many bits."""
    wrong = [type(op).__name__ for op in operators if op.eight_bits_only]
    if bits != 8 and wrong:
        raise ValueError(f"{', '.join(wrong)} work on 8-bit images, these have {bits} bits: leave them out")
    wrong = [type(op).__name__ for op in operators if op.sixteen_bits_only]
    if bits != 16 and wrong:
        raise ValueError(
            f"{', '.join(wrong)} works on 16-bit images, these have {bits} bits: leave it out, or make the set with "
            "--bits 16"
        )


def programs_of(
    drawn: Drawn, count: int, wanted: np.ndarray | None = None
) -> list[list[tuple[Apply, Operator, Values]]]:
    """For each sample, or each wanted one (bool[count]), the operators that act on it, with its values."""
    programs: list[list[tuple[Apply, Operator, Values]]] = [[] for _ in range(count)]
    for _, operator, params in drawn.steps:
        apply = APPLY.get(type(operator))
        if apply is None:
            continue
        acting = params.get("active", np.ones(count, bool))
        for i in np.flatnonzero(acting if wanted is None else acting & wanted):
            programs[i].append((apply, operator, {name: column[i] for name, column in params.items()}))
    return programs


def _window(operator: Operator, image: np.ndarray, values: Values) -> np.ndarray:
    """Cut out a window; what lies outside is 0."""
    top, left, height, width = values["window"].tolist()
    cut = image[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if cut.shape[:2] == (height, width):
        return cut
    out = np.zeros((height, width, image.shape[2]), image.dtype)
    y, x = max(-top, 0), max(-left, 0)
    out[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    return out


def _resize(operator: Operator, image: np.ndarray, values: Values) -> np.ndarray:
    """torch's antialiased resize, which torchvision v2 calls on uint8 tensors.

    16 bits, and bytes that are not to be rounded, go through float32.
    """
    size = values["size"].tolist()
    if list(image.shape[:2]) == size:
        return image
    largest = 255 if image.dtype == np.uint8 else 65535
    if image.dtype != np.uint8 or not getattr(operator, "rounded", True):
        image = image.astype(np.float32)
    image = np.require(image, requirements=["C", "W"])  # torch is slow on a view of a larger image
    tensor = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
    resized = KERNELS_OF_TORCH[operator.interpolation](tensor, size, False, None, None)  # type: ignore[attr-defined]
    if resized.dtype == torch.float32 and operator.interpolation == "bicubic":  # type: ignore[attr-defined]
        resized = resized.clamp_(0, largest)  # a cubic overshoots; torch clamps bytes itself
    return resized[0].permute(1, 2, 0).numpy()


KERNELS_OF_TORCH = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}


def _crop_and_resize(operator: Operator, image: np.ndarray, values: Values) -> np.ndarray:
    return _resize(operator, _window(operator, image, values), values)


def _flip(code: int) -> Callable[[Operator, np.ndarray, Values], np.ndarray]:
    return lambda operator, image, values: cv2.flip(np.ascontiguousarray(image), code).reshape(image.shape)


def _quarter_turns(operator: Operator, image: np.ndarray, values: Values) -> np.ndarray:
    return np.rot90(image, int(values["turns"]))


def _warp(operator: Operator, image: np.ndarray, values: Values) -> np.ndarray:
    interpolation = operator.interpolation  # type: ignore[attr-defined]
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_NEAREST if interpolation == "nearest" else cv2.INTER_LINEAR)
    size = (image.shape[1], image.shape[0])
    image = np.ascontiguousarray(image)
    return cv2.warpPerspective(image, values["matrix"], size, flags=flags).reshape(image.shape)


APPLY: dict[type[Operator], Apply] = {
    RandomResizedCrop: _crop_and_resize,
    Resize: _resize,
    CenterCrop: _window,
    RandomCrop: _window,
    HorizontalFlip: _flip(1),
    VerticalFlip: _flip(0),
    Rotate90: _quarter_turns,
    Rotation: _warp,
    Affine: _warp,
    Perspective: _warp,
    ColorJitter: host_deep.by_depth(jitter, host_deep.jitter),
    Grayscale: host_deep.by_depth(gray, host_deep.gray),
    GaussianBlur: blur,
    Solarize: host_deep.by_depth(solarize, host_deep.solarize),
    Gamma: host_levels.gamma,
    Clahe: host_levels.clahe,
    StainJitter: host_levels.stains,
    TrivialAugment: policy,
    RandAugment: policy,
    Window: host_deep.window,
}
