"""Features of a model's layers: hooks that remove themselves, and pooling.

Legend: b batch, c channels, t tokens, d features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from train.layers import InputOf, taps

Tap = nn.Module | InputOf
How = Literal["auto", "cls", "mean", "both"]
HOWS = ("auto", "cls", "mean", "both")


class Layout(NamedTuple):
    """How to read a model's activations."""

    channels_last: bool = False  # maps are [b, h, w, c], as Swin's
    prefix_tokens: int = 0  # class, register and distillation tokens before the patches
    has_cls: bool = False
    patches: int | None = None  # tokens without the prefix, where the model knows


_PLAIN = Layout()


@contextmanager
def tapped(taps: Mapping[str, Tap]) -> Iterator[dict[str, Tensor]]:
    """Within the block each forward pass fills the dict: tap name -> that module's output [b, …].

    A module called twice leaves its last output; of a tuple or list the first tensor counts. Hooks are gone afterwards,
    whatever happens inside.
    """
    outputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name, tap in taps.items():
            stack.callback(_attach(name, tap, outputs))
        yield outputs


def fine_taps(model: nn.Module) -> dict[str, nn.Module]:
    """Finer than layer groups, as the published study taps: tap name -> module, from the input to the head.

    Transformers (ViT, Swin, FocalNet): what each block's attention ("….attn") and MLP ("….mlp") branch gives before it
    is added to the residual stream, between patch embedding and head. Convolutional nets: the first convolution and
    each block (Inception: each Conv2d_ and Mixed_ module).
    """
    groups = taps(model)
    named = {name: child for name, child in model.named_children() if name.startswith(("Conv2d_", "Mixed_"))}
    if named:
        return {**named, list(groups)[-1]: groups[list(groups)[-1]]}
    branches = {
        f"{path}.{kind}": getattr(block, attribute)
        for path, block in model.named_modules()
        for kind, attribute in (("attn", "drop_path1"), ("mlp", "drop_path2"))
        if isinstance(getattr(block, attribute, None), nn.Module)
    }
    (first, _), *rest = groups.items()
    if branches:
        embed = getattr(model, "patch_embed", None)
        return {"patch_embed": embed if embed is not None else groups[first], **branches, rest[-1][0]: rest[-1][1]}
    name = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ""
    start = dict(model.named_modules()).get(name if isinstance(name, str) else name[0])
    return dict([(name, start) if start is not None and name else (first, groups[first]), *rest])


def layout_of(model: nn.Module) -> Layout:
    """What timm says of a model's activations."""
    embed = getattr(model, "patch_embed", None)
    patches = getattr(embed, "num_patches", None)
    prefix = int(getattr(model, "num_prefix_tokens", 0) or 0)
    has_cls = prefix > 0 and getattr(model, "has_class_token", True)
    has_cls = bool(has_cls) or isinstance(getattr(model, "cls_token", None), Tensor)
    return Layout(
        channels_last=str(getattr(model, "output_fmt", "NCHW")) == "NHWC",
        prefix_tokens=prefix or int(has_cls),
        has_cls=has_cls,
        patches=int(patches) if isinstance(patches, int) else None,
    )


def pool(tensor: Tensor, how: How = "auto", layout: Layout = _PLAIN) -> Tensor:
    """One vector an image: [b, …] -> [b, d].

    Maps [b, c, h, w] (or [b, h, w, c]) give their spatial mean; vectors stay. Tokens [b, t, d] give the class token
    ("cls"), the mean of the patch tokens ("mean") or both side by side ("both"); "auto" is cls where there is one,
    else mean.

    Raises ValueError for an unknown `how`, or another number of dimensions.
    """
    if how not in HOWS:
        raise ValueError(f"unknown pooling {how!r}; known: {', '.join(HOWS)}")
    if tensor.ndim == 2:
        return tensor
    if tensor.ndim == 4:
        return tensor.mean(dim=(1, 2) if _is_channels_last(tensor, layout) else (2, 3))
    if tensor.ndim != 3:
        raise ValueError(f"cannot pool activations of shape {tuple(tensor.shape)}: 2, 3 or 4 dimensions are known")
    tokens = tensor.shape[1]
    prefix = 0 if tokens == layout.patches else min(layout.prefix_tokens, tokens)
    patch_mean = tensor[:, prefix:].mean(dim=1) if tokens > prefix else tensor[:, 0]
    if prefix == 0 or not layout.has_cls or how == "mean":
        return patch_mean
    return torch.cat([tensor[:, 0], patch_mean], dim=1) if how == "both" else tensor[:, 0]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; every module's own mode comes back, also where part of a model was frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _is_channels_last(tensor: Tensor, layout: Layout) -> bool:
    """Square maps tell themselves, as some families' blocks differ from what timm notes; else the layout does."""
    _, first, second, third = tensor.shape
    if (first == second) != (second == third):
        return first == second
    return layout.channels_last


def _attach(name: str, tap: Tap, outputs: dict[str, Tensor]) -> Callable[[], None]:
    def after(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        outputs[name] = first_tensor(output)

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        outputs[name] = first_tensor(inputs)

    if isinstance(tap, InputOf):
        return tap.module.register_forward_pre_hook(before).remove
    return tap.register_forward_hook(after).remove


def first_tensor(value: object) -> Tensor:
    """The tensor itself, or the first one in a tuple, list or dict (crossed branches, tokens with their size).

    Raises:
        ValueError: there is none.
    """
    if isinstance(value, Tensor):
        return value
    inner = value.values() if isinstance(value, dict) else value
    if isinstance(inner, Iterable):
        for item in inner:
            if isinstance(item, Tensor | tuple | list | dict):
                return first_tensor(item)
    raise ValueError(f"a tapped module gave {type(value).__name__} without a tensor in it: choose another layer")
