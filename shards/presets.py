"""Presets: named transforms as data, each choice with its reference. The files lie in `shards/presets/`.

Sizes in a file are for its `image_size`, and scale with the one that is asked for.
"""

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from shards.operators import Size, require

FOLDER = Path(__file__).with_name("presets")
PRESETS = ("light", "full", "study", "histology", "mammography", "fundus", "dermoscopy", "chest")
_COLOURS = ("saturation", "hue")


class Preset(NamedTuple):
    """What a file says."""

    name: str
    title: str
    image_size: int
    train: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, Any]

    def steps(self, size: Size, channels: int, scale: tuple[float, float] | None = None) -> list[dict[str, Any]]:
        """The training operators for an output of (height, width); `scale` takes the place of the crop's own.

        On one channel what is of colours is left out.
        """
        found = []
        for step in self.train:
            made = {key: value for key, value in step.items() if key != "reference"}
            if "size" in made:
                pair = made["size"] if isinstance(made["size"], list) else [made["size"]] * 2
                made["size"] = [round(side * out / self.image_size) for side, out in zip(pair, size, strict=True)]
            if made["op"] == "RandomResizedCrop" and scale is not None:
                made["scale"] = list(scale)
            if channels == 1:
                if made["op"] in ("Grayscale", "StainJitter"):
                    continue
                made = {key: value for key, value in made.items() if key not in _COLOURS}
            found.append(made)
        return found

    def resize(self, image_size: int, wanted: int | None = None) -> int | Size:
        """What evaluation resizes to before its central crop: the short side, or both where it squashes, pixels."""
        side = wanted or round(image_size * self.evaluation["resize"] / self.image_size)
        return (side, side) if self.evaluation["squash"] else side


@lru_cache(maxsize=len(PRESETS))
def preset_of(name: str) -> Preset:
    """A preset by name. ValueError for an unknown one."""
    require(name in PRESETS, f"unknown augmentation preset '{name}'; known: {', '.join(PRESETS)}")
    content = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return Preset(name, content["title"], content["image_size"], tuple(content["train"]), content["evaluation"])
