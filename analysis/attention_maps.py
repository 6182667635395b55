"""Attention weights of a ViT as its own forward pass makes them, how far its heads look, and their rollout.

Legend: b images, h heads, t tokens, p patches (t less the prefix: class, register, distillation tokens).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"blocks\.\d+\.attn")


def attention_modules(model: nn.Module) -> dict[str, Any]:
    """Name -> module of each block's attention over all tokens.

    Raises ValueError for a model without: convolutional nets, and windows as Swin's, where distance is bounded by the
    window.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if _BLOCK.fullmatch(name) and hasattr(module, "attn_drop") and hasattr(module, "fused_attn")
    }
    if not found or getattr(getattr(model, "patch_embed", None), "grid_size", None) is None:
        raise ValueError(f"{type(model).__name__} has no blocks with attention over all patches: this is for ViTs")
    return found


@contextmanager
def attending(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Within the block each forward pass fills the dict: attention module -> its weights [b, h, t, t], rows sum to 1.

    The fused kernel is switched off within the block, as it keeps no weights; afterwards all is as before.
    """
    weights: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            weights[name] = inputs[0].detach()

        return hook

    with ExitStack() as stack:
        for name, module in attention_modules(model).items():
            stack.callback(setattr, module, "fused_attn", module.fused_attn)
            module.fused_attn = False
            stack.callback(module.attn_drop.register_forward_pre_hook(keep(name)).remove)
        yield weights


def patch_distances(grid: tuple[int, int], patch: tuple[float, float]) -> Tensor:
    """Pixels between the centres of all patches, float64[p, p]; `grid` rows and columns, `patch` height and width."""
    y, x = torch.meshgrid(torch.arange(grid[0]) * patch[0], torch.arange(grid[1]) * patch[1], indexing="ij")
    places = torch.stack([y.flatten(), x.flatten()], 1).double()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(weights: Tensor, distances: Tensor) -> Tensor:
    """How far each head looks, in the unit of `distances`: float64[b, h] (Dosovitskiy et al., ICLR 2021, fig. 7).

    The mean over patches of the distance to what they attend to, weighted by attention. Weights [b, h, t, t] on prefix
    tokens have no place: they are left out, and the rest of each row is scaled to 1.
    """
    patches = len(distances)
    among = weights[..., -patches:, -patches:].double()
    among = among / among.sum(-1, keepdim=True).clamp_min(1e-300)
    return (among * distances).sum(-1).mean(-1)


def prefix_share(weights: Tensor, patches: int) -> Tensor:
    """Share of the patches' attention that goes to prefix tokens: float64[b, h]."""
    return weights[..., -patches:, :-patches].double().sum(-1).mean(-1)


def rollout(weights: Sequence[Tensor], patches: int, *, cls_row: bool) -> Tensor:
    """Where the output comes from, as attention says: float64[b, p], rows sum to 1 (Abnar and Zuidema, ACL 2020).

    Each block passes on (A + 1) / 2, A the mean over heads of [b, h, t, t] and 1 the residual; the product of all
    blocks (eq. 1) is read at the class token, or as the mean over patches for models that average them.
    """
    tokens = weights[0].shape[-1]
    one = torch.eye(tokens, dtype=torch.float64, device=weights[0].device)
    flow = one
    for attention in weights:
        flow = 0.5 * (attention.double().mean(1) + one) @ flow
    read = flow[:, 0] if cls_row else flow[:, -patches:].mean(1)
    among = read[:, -patches:]
    return among / among.sum(-1, keepdim=True)
