"""How far a run is, and what follows from that alone."""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """How far a run is: all that a checkpoint keeps besides the tensors."""

    step: int = 0
    consumed: int = 0
    validated: int = -1  # step of the last validation
    history: list[float | None] = field(default_factory=list)  # target metric of each validation, None is undefined
    best: dict[str, Any] | None = None  # value, step, epoch, metrics
    scaler: dict[str, Any] | None = None  # of fp16
    bad: list[list[str]] = field(default_factory=list)  # key and reason of unreadable training images


def passed(consumed: int, batch: int, every: float) -> bool:
    """Whether the last `batch` of `consumed` samples crossed a multiple of `every`."""
    return math.floor(consumed / every + 1e-9) > math.floor((consumed - batch) / every + 1e-9)


def step_seed(seed: int, consumed: int, rank: int) -> int:
    """Of torch's generator in a step (dropout, stochastic depth): the same after a resume, another on every rank."""
    digest = hashlib.blake2b(f"{seed}/{consumed}/{rank}".encode(), digest_size=8, person=b"medshard-step").digest()
    return int.from_bytes(digest, "little") >> 1


def merged(known: list[list[str]], found: list[Any]) -> list[list[str]]:
    """Keys and reasons of unreadable images, those found behind those known, each once."""
    seen = {tuple(entry) for entry in known}
    return known + [list(entry) for entry in found if tuple(entry) not in seen]
