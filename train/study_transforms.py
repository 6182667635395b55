"""The transforms of the study's params.json as operators of ours, in its order."""

from typing import Any

from train.study_keys import Keys

# What the study's transforms take; a RandomCrop's p does nothing there.
PARAMETERS: dict[str, tuple[str, ...]] = {
    "Resize": ("height", "width"), "CenterCrop": ("height", "width"),
    "RandomCrop": ("height", "width", "padding", "p"), "RandomResizedCrop": ("size", "scale"),
    "MultiCrop": ("n_crops", "sizes", "scales"), "VerticalFlip": ("p",), "HorizontalFlip": ("p",),
    "RandomRotation": ("angle", "p"), "ColorJitter": ("brightness", "contrast", "saturation", "hue", "p"),
    "RandomGrayscale": ("p",), "RandomGaussianBlur": ("radius_min", "radius_max", "p"),
    "RandomAffine": ("degrees", "translate", "scale", "shear", "p"),
    "RandomPerspective": ("distortion_scale", "p"), "RandomSolarize": ("threshold", "p"),
    "RandomErasing": ("scale", "ratio", "value", "p"),
}  # fmt: skip


def operators(keys: Keys, channels: int = 3) -> list[dict[str, Any]]:
    """The operators of a transform table, in the study's order; MultiCrop takes the place of RandomResizedCrop."""
    steps: list[dict[str, Any]] = []

    def add(name: str, op: str, **parameters: str | Any) -> None:
        of = keys.table(name)
        of.done("apply", *PARAMETERS[name])
        if of.get("apply", False):
            taken = {mine: theirs(of) if callable(theirs) else of.get(theirs) for mine, theirs in parameters.items()}
            steps.append({"op": op} | {mine: value for mine, value in taken.items() if value is not None})

    def sides(of: Keys) -> list[int]:
        return [of.get("height"), of.get("width")]

    def plus_minus(key: str) -> Any:
        return lambda of: [-of.get(key), of.get(key)] if of.get(key) is not None else None

    several = bool(keys.table("MultiCrop").get("apply", False))
    add("Resize", "Resize", size=sides)
    add("CenterCrop", "CenterCrop", size=sides)
    add("RandomCrop", "RandomCrop", size=sides, padding="padding")
    if not several:  # as the study: it switches the other off
        add("RandomResizedCrop", "RandomResizedCrop", size="size", scale="scale")
    keys.get("RandomResizedCrop")
    add("MultiCrop", "MultiCrop", counts="n_crops", sizes="sizes", scales="scales")
    add("VerticalFlip", "VerticalFlip", p="p")
    add("HorizontalFlip", "HorizontalFlip", p="p")
    add("RandomRotation", "Rotation", p="p", degrees=plus_minus("angle"))
    jitter = {name: name for name in ("p", "brightness", "contrast", "saturation", "hue")}
    add("ColorJitter", "ColorJitter", **jitter)
    add("RandomGrayscale", "Grayscale", p="p")
    add("RandomGaussianBlur", "GaussianBlur", p="p", sigma=lambda of: [of.get("radius_min"), of.get("radius_max")])
    affine = {"translate": "translate", "scale": "scale", "degrees": plus_minus("degrees")}
    add("RandomAffine", "Affine", p="p", shear=lambda of: [-of.get("shear", 0), of.get("shear", 0), 0, 0], **affine)
    add("RandomPerspective", "Perspective", p="p", distortion_scale="distortion_scale")
    add("RandomSolarize", "Solarize", p="p", threshold="threshold")
    if not keys.get("Normalize", True):
        steps.append({"op": "Normalize", "mean": [0.0] * channels, "std": [1.0] * channels})
    add("RandomErasing", "Erasing", p="p", scale="scale", ratio="ratio", value="value")
    keys.done()
    return steps


def final_size(steps: list[dict[str, Any]]) -> int:
    """The side of the square that operators end in, pixels. Raises ValueError where they end in none."""
    sizes = [step["size"] for step in steps if "size" in step]
    last = sizes[-1] if sizes else None
    pair = [last, last] if isinstance(last, int) else last
    if pair is None or pair[0] != pair[1]:
        raise ValueError(f"params: the evaluation transform ends in {pair}: end it in a square crop or Resize")
    return int(pair[0])
