"""A loss or a weight that is not finite is seen on every rank alike, before anything is kept of it."""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.engine import total

MOST_NAMED = 16  # samples in a message


class Diverged(ValueError):
    """The loss or a weight is not finite, on every rank alike; nothing has been kept of it."""


def judge_loss(losses: float, failed_ids: Tensor, step: int, device: torch.device) -> tuple[float, str | None]:
    """The sum of the loss over ranks, and what is wrong with it: None where it is finite on all. All ranks call it.

    `failed_ids` int64[m]: of this rank's samples whose micro-batch has a loss that is not finite.
    """
    sums = total(torch.tensor([losses, float(len(failed_ids) > 0)], dtype=torch.float64, device=device))
    if sums[1] == 0:
        return sums[0].item(), None
    gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, [f"{i:016x}" for i in failed_ids.numpy().view(np.uint64)])
    ids = [each for part in gathered for each in part]
    return sums[0].item(), f"the loss of step {step} is not finite; sample ids {', '.join(ids[:MOST_NAMED])}"


def check_weights(model: nn.Module, step: int, device: torch.device) -> None:
    """Raise Diverged on every rank where a gradient that was not finite has reached a weight of any."""
    parts = [getattr(each, "ds_tensor", each) for each in model.parameters()]  # ZeRO 3 keeps parts
    wrong = any(not bool(part.isfinite().all()) for part in parts)
    if total(torch.tensor([float(wrong)], dtype=torch.float64, device=device)).item() > 0:
        raise Diverged(
            f"the weights after step {step} are not finite, though its loss was: lower --lr, or take another "
            "--precision; --resume goes on from the last checkpoint"
        )
