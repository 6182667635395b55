"""The choices of a run about its data: which images, and how they are cut and fed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from shards.fetching import shown_place
from shards.manifest import Manifest
from shards.presets import preset_of
from shards.reshard import parse_size
from shards.shardset import ShardSet
from shards.storage import is_url
from shards.transforms import (
    AnyTransform,
    Transform,
    eval_transform,
    one_view,
    train_transform,
    transform_of,
    unrounded,
)
from shards.windows import Window, window_of

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Stretch = Annotated[float, Field(ge=0, le=4)]
JSONScalars = dict[str, float | int | bool | str | list[float] | None]


class Section(BaseModel):
    """A frozen group of fields; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Data(Section):
    """Which images, and how they are cut and fed."""

    shards: str | None = Field(
        default=None, description="shard set, a folder or a URL; none: the only one under data/shards"
    )
    cache: str | None = Field(default=None, description="folder for shards fetched from a URL, shared by runs")
    cache_limit: str | None = Field(default=None, description="most bytes in it, such as 200GB; none: no limit")
    mix: str | None = Field(
        default=None, description="train on several sets in shares: PLACE=0.7,PLACE=0.3; shards is tested on"
    )
    fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="share of the training split, by whole groups, stratified; .1 lies within .2"
    )
    fraction_seed: Count = Field(default=0, description="which share")
    exclude: str | None = Field(default=None, description="text file of keys to leave out of training, one a line")
    balance: Literal["none", "classes"] = Field(
        default="none", description="classes: every class comes equally often in an epoch"
    )
    view: str | None = Field(default=None, description="label view of the manifest; none: its default view")
    labels_file: str | None = Field(default=None, description="csv (key, label columns) that replaces the labels")
    split_file: str | None = Field(
        default=None, description="csv (key, split) that replaces the splits, or the name of one of the set's own folds"
    )
    image_size: Annotated[int, Field(ge=16, le=4096)] = Field(
        default=224, description="side of the square input, pixels"
    )
    resize: Annotated[int, Field(ge=16, le=8192)] | None = Field(
        default=None,
        description="short side before the center crop of evaluation, pixels; none: image_size * 256 / 224",
    )
    preset: Literal["light", "full", "study", "histology", "mammography", "fundus", "dermoscopy", "chest"] = Field(
        default="light", description="augmentation: crop and flips; and colours; the published study's; or a domain's"
    )
    crop_scale: tuple[Positive, Positive] | None = Field(
        default=None, description="area of a random crop, share of the image; none: the preset's own"
    )
    tta: Literal["none", "flips", "rotations", "all"] = Field(
        default="none", description="evaluation averages logits over mirrored images, quarter turns, or all eight"
    )
    train_operators: list[dict[str, Any]] | None = Field(
        default=None, description='in place of the preset, as JSON: [{"op": "HorizontalFlip", "p": 0.5}, ...]'
    )
    eval_operators: list[dict[str, Any]] | None = Field(
        default=None, description="in place of resize and center crop, likewise"
    )
    display_window: tuple[float, ...] | None = Field(
        default=None,
        description="16-bit images: center,width of the stored levels shown as black to white (DICOM's linear window); "
        "three such pairs make three channels",
    )
    display_jitter: tuple[Fraction, Stretch] = Field(
        default=(0.0, 0.0),
        description="training: the window moved by up to this share of its width, and stretched by up to 1 + this",
    )
    mean: tuple[float, ...] | None = Field(
        default=None,
        description="of normalisation by channel, on the 0..1 scale; none: the set's own, behind a display window .5",
    )
    std: tuple[Positive, ...] | None = Field(default=None, description="likewise; behind a display window .25")
    order: Literal["global", "windowed", "sequential"] = Field(default="global", description="order of an epoch")
    window: Annotated[int, Field(ge=1)] = Field(default=16, description="windowed: shards a window")
    partitions: Annotated[int, Field(ge=1)] = Field(
        default=64, description="windowed: parts of equal size, so that nodes read different shards"
    )
    tail: Literal["carry", "drop"] = Field(
        default="carry", description="end of an epoch: carried into the next, or dropped"
    )
    executor: Literal["auto", "dali", "host"] = Field(
        default="auto", description="who decodes; auto: dali on a GPU, else host"
    )
    threads: Annotated[int, Field(ge=1, le=256)] = Field(default=2, description="decoding threads a rank")
    prefetch: Annotated[int, Field(ge=1, le=64)] = Field(default=2, description="batches decoded ahead")
    verify: bool = Field(default=True, description="check the hash of every image that is read")
    max_bad: Count = Field(
        default=100, description="unreadable images that are masked and named; at most a tenth of a split"
    )
    strict: bool = Field(default=False, description="stop at the first unreadable image")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.crop_scale is not None and self.crop_scale[0] > self.crop_scale[1]:
            low, high = self.crop_scale
            raise ValueError(f"crop_scale: {low},{high} is upside down: write the smaller number first")
        if self.resize is not None and self.resize < self.image_size:
            raise ValueError(
                f"resize {self.resize} is below image_size {self.image_size}: the center crop would not fit"
            )
        for name in ("train_operators", "eval_operators"):
            if (steps := getattr(self, name)) is not None:
                made = transform_of(steps, (0.5,) * 3, (0.5,) * 3, self.window_of(training=False))
                size = (made if name == "train_operators" else one_view(made)).size
                if name == "eval_operators" and size != (self.image_size, self.image_size):
                    raise ValueError(
                        f"{name} end in {size[0]} x {size[1]} pixels, image_size is {self.image_size}: make them agree"
                    )
        window = self.window_of(training=True)
        if window is None and any(self.display_jitter):
            raise ValueError("display_jitter moves a display window, and none is given: add --display-window")
        if self.mix is not None:
            shares(self.mix)
        if self.cache_limit is not None:
            parse_size(self.cache_limit)
        return self

    def public(self) -> Self:
        """The same as it may be written down: URLs without user, password and query."""
        shards, mix = self.shards, self.mix
        return self.model_copy(
            update={
                "shards": shown_place(shards) if shards is not None else None,
                "mix": ",".join(map(_shown_share, mix.split(","))) if mix is not None else None,
            }
        )

    def norm(self, manifest: Manifest) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation by channel, on the 0..1 scale.

        Behind a display window levels are others than the set's own mean and deviation were taken from.
        """
        if self.display_window is not None:
            channels = self.image_channels(manifest)
            return self.mean or (0.5,) * channels, self.std or (0.25,) * channels
        return self.mean or manifest.mean, self.std or manifest.std

    def window_of(self, *, training: bool) -> Window | None:
        """The display window, with its jitter in training."""
        if self.display_window is None:
            return None
        return window_of(self.display_window, self.display_jitter if training else (0.0, 0.0))

    def image_channels(self, manifest: Manifest) -> int:
        """Channels of an image when it reaches the net: the stored ones, or one a display window.

        Raises:
            ValueError: several display windows on colour images.
        """
        window = self.window_of(training=False)
        if window is None or window.count == 1:
            return manifest.channels
        if manifest.channels != 1:
            raise ValueError(
                f"several display windows are for grey images, {manifest.name} has {manifest.channels} channels: give "
                "one center,width"
            )
        return window.count

    @property
    def cache_bytes(self) -> int | None:
        """`cache_limit` in bytes."""
        return parse_size(self.cache_limit) if self.cache_limit is not None else None

    def open(self, place: str | Path) -> ShardSet:
        """A shard set at a folder or URL, under this view, these files and this cache."""
        return ShardSet(
            place,
            view=self.view,
            labels_file=self.labels_file,
            split_file=self.split_file,
            cache=self.cache,
            cache_limit=self.cache_bytes,
        )

    @property
    def resize_to(self) -> int | tuple[int, int]:
        """What evaluation resizes an image to before the center crop, pixels: the short side; both under `study`."""
        return preset_of(self.preset).resize(self.image_size, self.resize)

    def eval_transform(self, mean: Sequence[float], std: Sequence[float]) -> Transform:
        """What evaluation makes of an image: its own operators, or resize and center crop; then normalisation."""
        if self.eval_operators is not None:
            steps = unrounded(self.eval_operators)
            return one_view(transform_of(steps, mean, std, self.window_of(training=False)))
        window = self.window_of(training=False)
        return eval_transform(self.image_size, mean, std, resize=self.resize_to, window=window)

    def train_transform(self, mean: Sequence[float], std: Sequence[float]) -> AnyTransform:
        """What training makes of an image: the preset's augmentation or operators of its own; then normalisation."""
        window = self.window_of(training=True)
        if self.train_operators is not None:
            return transform_of(self.train_operators, mean, std, window)
        return train_transform(self.image_size, mean, std, scale=self.crop_scale, preset=self.preset, window=window)


def _shown_share(part: str) -> str:
    """A part of a mixture without the secrets of its URL."""
    place, _, share = part.rpartition("=")
    return f"{shown_place(place.strip())}={share}" if is_url(place.strip()) else part


def shares(mix: str) -> dict[str, float]:
    """Place -> share of `PLACE=0.7,PLACE=0.3`. Raises ValueError for anything else, and for a place named twice."""
    found: dict[str, float] = {}
    for part in mix.split(","):
        place, _, share = (word.strip() for word in part.rpartition("="))
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not place or not 0 < value < math.inf:
            raise ValueError(f"mix: got {_shown_share(part)!r}; write places and positive shares, PLACE=0.7,PLACE=0.3")
        if place in found:
            raise ValueError(f"mix: {_shown_share(part)!r} names a set a second time; give each set one share")
        found[place] = value
    return found
