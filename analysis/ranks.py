"""Several processes extract features together: `torchrun` or `deepspeed` starts them, the first of them leads.

    torchrun --nproc_per_node 2 analysis/knn.py RUN          deepspeed analysis/cka.py RUN

Rank 0 runs the script as ever. Where it misses a bank it says so, every rank extracts its share of the batches into a
bank of its own (which resumes like any other), and rank 0 joins the shares: the same bytes as one process writes. The
ranks see one folder of features. Over gloo, since what passes between them is a line of text.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from train.stopping import ending_while_waiting

PATIENCE = timedelta(days=7)  # the others wait while rank 0 computes


class PeerFailed(ValueError):
    """Another rank said that it could not go on."""


def world_size() -> int:
    """How many processes work together: one without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine: its own GPU, where there are several."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined() -> Iterator[None]:
    """Within: the processes can talk. Rank 0, leaving, sends the others home, unless one of them has failed."""
    if world_size() == 1:
        yield
        return
    with ending_while_waiting():
        dist.init_process_group("gloo", timeout=PATIENCE)
    told = False
    try:
        yield
    except PeerFailed:
        told = True
        raise
    finally:
        if rank() == 0 and not told:
            tell(None)
        dist.destroy_process_group()


def tell(request: dict[str, Any] | None) -> None:
    """Rank 0: what the others are to do; None sends them home."""
    dist.broadcast_object_list([request], src=0)


def hear() -> dict[str, Any] | None:
    """The others: what rank 0 tells."""
    request: list[dict[str, Any] | None] = [None]
    dist.broadcast_object_list(request, src=0)
    return request[0]


def agree(problem: str | None) -> None:
    """All ranks: wait for all. Raises PeerFailed, naming the rank, where one of them has a problem."""
    problems: list[str | None] = [None] * world_size()
    dist.all_gather_object(problems, problem)
    for number, each in enumerate(problems):
        if each is not None:
            raise PeerFailed(f"rank {number}: {each}")


def share(images: int, batch: int, number: int, of: int) -> tuple[int, int]:
    """First image and one past the last of rank `number` of `of`: whole batches, so that each is the same batch."""
    batches = -(-images // batch)
    start, stop = (batches * edge // of * batch for edge in (number, number + 1))
    return min(start, images), min(stop, images)
