"""What others make of drawn parameters: torchvision v2 on tensors, OpenCV's CLAHE, scikit-image's stains.

The parity tests and `parity.py` hold both executors to it.

Images of 8 bits go through as uint8 tensors; of 16 bits as float32 of 0..1, since torchvision knows no uint16.
"""

import math
from typing import Any

import cv2
import numpy as np
import torch
from skimage.color import hed2rgb, rgb2hed
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from shards.chain import Drawn
from shards.colours import JITTER_STEPS, ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.levels import Clahe, Gamma
from shards.operators import (
    CenterCrop,
    Erasing,
    HorizontalFlip,
    Normalize,
    Operator,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    VerticalFlip,
)
from shards.policies import OPERATIONS, RandAugment, TrivialAugment
from shards.stains import StainJitter
from shards.warps import Affine, Perspective, Rotation


def reference(operator: Operator, image: torch.Tensor, drawn: dict[str, Any]) -> torch.Tensor:
    """One operator on a tensor [C, h, w], given one sample's parameters."""
    if "active" in drawn and not drawn["active"]:
        return image
    how = InterpolationMode(getattr(operator, "interpolation", "bilinear"))
    match operator:
        case Resize():
            if not operator.rounded:
                image = functional.to_dtype(image, torch.float32, scale=True)
            resized = functional.resize(image, drawn["size"].tolist(), how)
            return resized if operator.rounded else resized.clamp(0, 1)
        case RandomResizedCrop():
            return functional.resize(functional.crop(image, *drawn["window"].tolist()), drawn["size"].tolist(), how)
        case CenterCrop() | RandomCrop():
            return functional.crop(image, *drawn["window"].tolist())
        case HorizontalFlip():
            return functional.horizontal_flip(image)
        case VerticalFlip():
            return functional.vertical_flip(image)
        case Rotate90():
            return torch.rot90(image, int(drawn["turns"]), (1, 2))
        case Rotation():
            return functional.rotate(image, float(drawn["angle"]), interpolation=how)
        case Affine():
            shift, shear = drawn["shift"].astype(int).tolist(), drawn["shear"].tolist()
            return functional.affine(image, float(drawn["angle"]), shift, float(drawn["scale"]), shear, how)
        case Perspective():
            y, x = image.shape[1] - 1, image.shape[2] - 1
            return functional.perspective(image, [[0, 0], [x, 0], [x, y], [0, y]], drawn["corners"].tolist(), how)
        case ColorJitter():
            for name in (JITTER_STEPS[n] for n in drawn["order"]):
                if getattr(operator, name) > 0:
                    image = getattr(functional, f"adjust_{name}")(image, float(drawn[name]))
            return image
        case Grayscale():
            return functional.rgb_to_grayscale(image, 3) if image.shape[0] == 3 else image
        case GaussianBlur():
            return functional.gaussian_blur(image, [operator.kernel_size] * 2, [float(drawn["sigma"])] * 2)
        case Solarize():
            return functional.solarize(image, operator.threshold / (1 if image.dtype == torch.uint8 else 255))
        case Gamma():
            return functional.adjust_gamma(image, float(drawn["gamma"]))
        case Clahe():
            return _clahe(operator, image)
        case StainJitter():
            return _stains(image, drawn)
        case TrivialAugment() | RandAugment():
            for choice, magnitude in zip(drawn["choice"].tolist(), drawn["magnitude"].tolist(), strict=True):
                image = policy_operation(OPERATIONS[choice], image, magnitude, how)
            return image
        case Normalize():
            scaled = functional.to_dtype(image, torch.float32, scale=True)
            return functional.normalize(scaled, list(operator.mean), list(operator.std))
        case Erasing():
            return functional.erase(image, *drawn["window"].tolist(), torch.tensor(operator.value))
    raise AssertionError(operator)


def policy_operation(name: str, image: torch.Tensor, magnitude: float, how: InterpolationMode) -> torch.Tensor:
    """One operation of torchvision's policies, called as they call it."""
    plain = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "interpolation": how}
    degrees = math.degrees(math.atan(magnitude))
    match name:
        case "Identity":
            return image
        case "ShearX":
            return functional.affine(image, **plain | {"shear": [degrees, 0.0], "center": [0, 0]})
        case "ShearY":
            return functional.affine(image, **plain | {"shear": [0.0, degrees], "center": [0, 0]})
        case "TranslateX":
            return functional.affine(image, **plain | {"translate": [int(magnitude), 0]})
        case "TranslateY":
            return functional.affine(image, **plain | {"translate": [0, int(magnitude)]})
        case "Rotate":
            return functional.rotate(image, magnitude, interpolation=how)
        case "Posterize":
            return functional.posterize(image, int(magnitude))
        case "Solarize":
            return functional.solarize(image, 255 * magnitude)
        case "AutoContrast":
            return functional.autocontrast(image)
        case "Equalize":
            return functional.equalize(image)
    called = {"Brightness": "brightness", "Color": "saturation", "Contrast": "contrast", "Sharpness": "sharpness"}
    return getattr(functional, f"adjust_{called[name]}")(image, 1 + magnitude)


def _clahe(operator: Clahe, image: torch.Tensor) -> torch.Tensor:
    """OpenCV's on torchvision's grey image, colours scaled by what that did."""
    equalizer = cv2.createCLAHE(operator.clip_limit, (operator.tiles, operator.tiles))
    if image.shape[0] == 1:
        return torch.from_numpy(equalizer.apply(image[0].numpy()))[None]
    gray = functional.rgb_to_grayscale(image, 1)[0]
    gain = torch.from_numpy(equalizer.apply(gray.numpy())).float() / gray.clamp(min=1)
    return (image * gain).round().clamp(0, 255).to(torch.uint8)


def _stains(image: torch.Tensor, drawn: dict[str, Any]) -> torch.Tensor:
    """scikit-image there and back; its unit of concentration is the logarithm of a millionth, and none is below 0."""
    top = 255 if image.dtype == torch.uint8 else 1
    stains = rgb2hed(image.permute(1, 2, 0).double().numpy() / top)
    light = hed2rgb(stains * drawn["alpha"] + drawn["beta"] / -np.log(1e-6))
    levels = torch.from_numpy(light).permute(2, 0, 1)
    return (levels * 255).round().clamp(0, 255).to(torch.uint8) if top == 255 else levels.clamp(0, 1).float()


def by_others(images: list[np.ndarray], parameters: Drawn) -> torch.Tensor:
    """The drawn parameters on decoded images [h, w, C]: float32[b, C, H, W], normalised."""
    out = []
    for i, decoded in enumerate(images):
        image = torch.from_numpy(decoded.astype(np.float32) / 65535 if decoded.dtype == np.uint16 else decoded.copy())
        image = image.permute(2, 0, 1)
        for _, operator, drawn in parameters.steps:
            image = reference(operator, image, {name: column[i] for name, column in drawn.items()})
        out.append(image)
    return torch.stack(out)
