"""Any timm classifier, with the weights that were asked for or an error.

`create` takes timm's names ("resnet50", "resnet50.tv_in1k") and, where timm has no such name, the published study's
("deit_small", "swin_tiny", "deit_small5b"). It remembers on the model how it was built (`recipe_of`) and which
weights it holds (`report_of`), which starts need.
"""

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import Format, PatchEmbed
from torch import Tensor, nn

from shards.errors import first_line
from train.layers import classifier_names
from train.weights import FirstConv, LoadReport, load_weights, read_state

_STUDY_DEIT = {size: f"deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")}
_STUDY_SWIN = {size: f"swin_{size}_patch4_window7_224.ms_in1k" for size in ("tiny", "small", "base")}
STUDY_BLOCKS = {"deit_small5b": 5}  # DeiT-S cut to its first five blocks
_USE_FILE = "give a file with --weights FILE"


@dataclass(frozen=True)
class Recipe:
    """What `build` needs to make the same architecture again."""

    name: str
    num_classes: int
    in_chans: int = 3
    img_size: int | None = None
    depth: int | None = None  # transformer blocks, where fewer than the architecture's
    drop_path: float = 0.0  # stochastic depth of the last block


def create(
    name: str,
    num_classes: int,
    in_chans: int = 3,
    pretrained: bool = False,
    weights: Path | str | None = None,
    img_size: int | None = None,
    *,
    first_conv: FirstConv = "sum",
    seed: int = 0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Build a classifier with timm's pretrained weights, those of a file, or a default initialisation from `seed`.

    `img_size` (pixels, square) resizes position tables where the family has them; convolutional families take any
    size. The first layer is adapted to `in_chans` as timm does ("sum"), or keeps the red channel ("red", the
    published study's way). `drop_path`: rate of stochastic depth in the last block (Huang et al. 2016).

    Raises ValueError for an unknown name (with the nearest), a size the model does not allow, weights that do not fit
    or cannot be had: pretrained weights are never replaced by random ones.
    """
    recipe = replace(_recipe(name, num_classes, in_chans, img_size), drop_path=drop_path)
    state, source = None, ""
    if weights is not None:
        state, source = read_state(Path(weights)), Path(weights).name
    elif pretrained:
        state, source = _pretrained(recipe)
    model = build(recipe, seed)
    report = None if state is None else load_weights(model, state, source, first_conv=first_conv)
    model.weights_report = report  # type: ignore[assignment]
    return model


def build(recipe: Recipe, seed: int) -> nn.Module:
    """The architecture under its default initialisation, from `seed` alone; the global random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _timm_model(recipe)
        _fresh_classifier(model)
    height_width = (recipe.img_size or input_size(model)[1],) * 2
    _check_patches(model, recipe, height_width[0])
    configured: Any = model.pretrained_cfg
    model.pretrained_cfg = {**configured, "input_size": (recipe.in_chans, *height_width)}  # type: ignore[assignment]
    model.recipe = recipe  # type: ignore[assignment]
    if recipe.in_chans == 3:
        model.register_forward_pre_hook(_repeat_grey)
    return model


def _repeat_grey(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A grey image [b, 1, h, w] enters a net of three channels three times. Who may do so the config decides."""
    del model
    images, *more = inputs
    return (images.expand(-1, 3, -1, -1) if images.ndim == 4 and images.shape[1] == 1 else images, *more)


def _fresh_classifier(model: nn.Module) -> None:
    """Give the classifier torch's own Linear initialisation (the study's "fresh Linear") in every family.

    timm draws an EfficientNet's from a range that knows only the number of classes (±.45 for five): logits then begin
    with a spread of several, and a fine-tuned net first unlearns its features to undo them.
    """
    for name in classifier_names(model):
        for module in model.get_submodule(name).modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()


def recipe_of(model: nn.Module) -> Recipe:
    """How the model was built. Raises ValueError for a model that `create` did not make."""
    recipe = getattr(model, "recipe", None)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"{type(model).__name__} was not made by train.models.create, so it cannot be built afresh")
    return recipe


def report_of(model: nn.Module) -> LoadReport | None:
    """What pretrained weights the model holds; None for a default initialisation."""
    report = getattr(model, "weights_report", None)
    return report if isinstance(report, LoadReport) else None


def take_any_size(model: nn.Module) -> None:
    """Let a vision transformer take images of other sizes too, its position table interpolated; others are as they are.

    What timm's `dynamic_img_size` does, without another number in the model.
    """
    if isinstance(model, timm.models.VisionTransformer):
        net: Any = model
        net.dynamic_img_size, embed = True, net.patch_embed
        embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images the model was built for."""
    channels, height, width = model.pretrained_cfg["input_size"]  # type: ignore[index]
    return int(channels), int(height), int(width)


def study_name(backbone: str, *, patch_size: int = 16, pretrained_type: str = "supervised") -> str:
    """The name for `create` of a backbone in the published study's vocabulary, with the tag of the weights it used.

    Raises ValueError for Focal Transformers, the DINO ResNet-50 and patch-8 DeiTs with supervised weights, which timm
    lacks.
    """
    dino = pretrained_type == "dino"
    if pretrained_type not in ("supervised", "dino"):
        raise ValueError(f"unknown pretrained_type {pretrained_type!r}; known: supervised, dino")
    family, _, size = backbone.partition("_")
    if family == "focal":
        raise ValueError(
            f"timm has no Focal Transformer ({backbone}), and its focalnet_* is another architecture: "
            f"choose a model that timm has, or {_USE_FILE} and the name of its own model"
        )
    if family == "deit" and (size in _STUDY_DEIT or backbone in STUDY_BLOCKS):
        return _study_deit(backbone, size, patch_size, dino)
    if dino:
        raise ValueError(
            f"timm has no DINO weights of {backbone}; it has them of deit_small and deit_base; else {_USE_FILE}"
        )
    if family == "swin" and size in _STUDY_SWIN:
        return _STUDY_SWIN[size]
    if timm.is_model(backbone):
        tags = timm.list_pretrained(f"{backbone}.tv_in1k")
        return tags[0] if tags else backbone
    raise _unknown(backbone)


def _study_deit(backbone: str, size: str, patch_size: int, dino: bool) -> str:
    if dino and size in ("small", "base") and patch_size in (8, 16):
        return f"vit_{size}_patch{patch_size}_224.dino"
    if dino or patch_size != 16:
        kind = f"{'DINO' if dino else 'supervised'} weights of {backbone} with patch size {patch_size}"
        raise ValueError(
            f"timm has no {kind}; it has supervised patch 16, and DINO for deit_small and deit_base "
            f"at 8 and 16; else {_USE_FILE}"
        )
    return backbone if backbone in STUDY_BLOCKS else _STUDY_DEIT[size]


def _recipe(name: str, num_classes: int, in_chans: int, img_size: int | None) -> Recipe:
    if num_classes < 1 or in_chans < 1:
        raise ValueError(
            f"a model needs at least one class and one channel, got num_classes={num_classes}, in_chans={in_chans}"
        )
    if name in STUDY_BLOCKS:
        return Recipe(_STUDY_DEIT["small"], num_classes, in_chans, img_size, STUDY_BLOCKS[name])
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        name = _study_or_unknown(name)
    elif tag and name not in timm.list_pretrained(f"{base}.*"):
        known = ", ".join(full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")) or "none"
        raise ValueError(f"timm has no weights {tag!r} of {base}; its tags: {known}")
    return Recipe(name, num_classes, in_chans, img_size)


def _study_or_unknown(name: str) -> str:
    if name.startswith("focal_") or name.partition("_")[2] in _STUDY_DEIT:
        return study_name(name)
    raise _unknown(name)


def _unknown(name: str) -> ValueError:
    names = timm.list_models()
    near = (
        difflib.get_close_matches(name, names, 5, 0.5)
        or [known for known in names if name[:4] and name[:4] in known][:5]
    )
    return ValueError(f"timm knows no model {name!r}; nearest: {', '.join(near) or 'none'} (all: timm.list_models())")


def _timm_model(recipe: Recipe, pretrained: bool = False, **changes: int) -> nn.Module:
    options: dict[str, Any] = {"num_classes": recipe.num_classes, "in_chans": recipe.in_chans, **changes}
    if recipe.depth is not None and not pretrained:
        options["depth"] = recipe.depth
    if recipe.drop_path:
        options["drop_path_rate"] = recipe.drop_path
    if recipe.img_size is not None:
        try:
            return timm.create_model(recipe.name, pretrained=pretrained, img_size=recipe.img_size, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    try:
        return timm.create_model(recipe.name, pretrained=pretrained, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise ValueError(f"{recipe.name} has no stochastic depth: drop --drop-path") from None
        raise


def _pretrained(recipe: Recipe) -> tuple[dict[str, Tensor], str]:
    """Timm's weights at three channels and the published classes, and what they are called."""
    if not timm.models.is_model_pretrained(recipe.name.partition(".")[0]):
        raise ValueError(
            f"timm has no pretrained weights of {recipe.name}; {_USE_FILE}, or take a random start: --start ri"
        )
    whole = replace(recipe, in_chans=3)
    try:
        with torch.random.fork_rng(devices=[]), _no_silent_random_weights():
            published = timm.get_pretrained_cfg(recipe.name)
            classes = recipe.num_classes if published is None else published.num_classes
            donor = _timm_model(whole, pretrained=True, num_classes=classes)
    except Exception as error:  # hub, cache and network fail in a dozen ways, and all mean the same to the user
        raise ValueError(
            f"the pretrained weights of {recipe.name} could not be had ({first_line(error)}); go online or {_USE_FILE}"
        ) from error
    return donor.state_dict(), f"timm {_full_name(donor)}"


@contextmanager
def _no_silent_random_weights() -> Iterator[None]:
    """Turn timm's log line "using random initialization" into an error."""

    class Refuse(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "random init" in record.getMessage().lower():
                raise RuntimeError(record.getMessage())

    handler, logger = Refuse(logging.WARNING), logging.getLogger("timm.models._builder")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _full_name(model: nn.Module) -> str:
    configured: Any = model.pretrained_cfg
    return ".".join(filter(None, (configured.get("architecture"), configured.get("tag"))))


def _check_patches(model: nn.Module, recipe: Recipe, size: int) -> None:
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, PatchEmbed) or not embed.strict_img_size or embed.dynamic_img_pad:
        return  # overlapping convolutions take any size
    side = int(embed.patch_size[0])
    if size % side:
        down = max(side, size // side * side)
        raise ValueError(
            f"{recipe.name} cuts images into patches of {side} pixels: image size {size} does not fit, "
            f"{down} or {size // side * side + side} do"
        )
