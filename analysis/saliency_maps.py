"""Where a model looked: Grad-CAM for nets with spatial maps, attention rollout for ViTs.

Legend: b images, c channels, h and w places of the last spatial map.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from analysis.attention_maps import attending, attention_modules, rollout
from train.hooks import Tap, evaluating, first_tensor, layout_of, tapped


def last_map(model: nn.Module, taps: Mapping[str, nn.Module], images: Tensor) -> tuple[str, nn.Module]:
    """(name, module) of the last tap whose output is a spatial map of more than one place.

    Raises ValueError where there is none: the images are too small, or the model keeps tokens.
    """
    found = None
    wanted: dict[str, Tap] = dict(taps)
    with evaluating(model), tapped(wanted) as outputs, torch.inference_mode():
        model(images[:1])
        for name in taps:
            if outputs[name].ndim == 4 and min(places(outputs[name], model)) > 1:
                found = name
    if found is None:
        raise ValueError("no layer gives a spatial map of more than one place: Grad-CAM has nothing to show")
    return found, taps[found]


def places(activations: Tensor, model: nn.Module) -> tuple[int, int]:
    """(h, w) of maps [b, c, h, w], or [b, h, w, c] as Swin's."""
    shape = channels_first(activations, model).shape
    return int(shape[2]), int(shape[3])


def channels_first(activations: Tensor, model: nn.Module) -> Tensor:
    """[b, c, h, w] whatever the model's layout."""
    return activations.permute(0, 3, 1, 2) if layout_of(model).channels_last else activations


def grad_cam(model: nn.Module, tap: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """float32[b, h, w] >= 0 (Selvaraju et al., ICCV 2017, eq. 1 and 2): relu(sum_k a_k A^k), before any scaling.

    a_k is the mean over places of the gradient of the class's logit by map A^k. `classes` int64[b]. The model's weights
    gather no gradients.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple[object, ...], output: object) -> object:
        # A copy that wants a gradient goes on in its place, so that frozen weights are no hindrance.
        kept.append(first_tensor(output).detach().requires_grad_())
        return kept[-1]

    handle = tap.register_forward_hook(keep)
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(images)
            chosen = logits[torch.arange(len(images)), classes].sum()
            (gradient,) = torch.autograd.grad(chosen, kept[0])
    finally:
        handle.remove()
    maps, slopes = (channels_first(each.detach(), model) for each in (kept[0], gradient))
    return torch.relu((slopes.mean((2, 3), keepdim=True) * maps).sum(1))


def attention_map(model: nn.Module, images: Tensor) -> Tensor:
    """float64[b, h, w]: attention rollout over the patches, each image's sum 1."""
    with evaluating(model), attending(model) as weights, torch.inference_mode():
        model(images)
        grid = tuple(int(side) for side in model.patch_embed.grid_size)  # type: ignore[union-attr]
        pooled = getattr(model, "global_pool", "token")
        flow = rollout(
            list(weights.values()), grid[0] * grid[1], cls_row=layout_of(model).has_cls and pooled == "token"
        )
    return flow.reshape(len(images), *grid)


def way_of(model: nn.Module) -> str:
    """ "rollout" for ViTs, "grad-cam" for all others."""
    try:
        attention_modules(model)
    except ValueError:
        return "grad-cam"
    return "rollout"
