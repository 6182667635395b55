"""What a training can run into that its user can mend, in one line with the next step."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shards.errors import first_line
from shards.loader import BadSamples

if TYPE_CHECKING:
    from train.loop import Trainer

# What gloo, NCCL and the store say when a peer has gone.
_PEER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused)|broken pipe|remote process exited|NCCL (communicator was )?abort|"
    r"ncclRemoteError|socket (timeout|closed)|recvBytes|failed to recv",
    re.IGNORECASE,
)
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)


@contextmanager
def explained(folder: Path, trainer: "Trainer | None" = None, *, again: str | None = None) -> Iterator[None]:
    """Raise the ValueError that says what to do, in place of what came; what is ours to mend keeps its traceback.

    `again` goes on where the cause is mended; None: --resume.
    """
    try:
        yield
    except BadSamples as error:
        raise ValueError(f"{error}; mend the set, then {again or f'--resume {folder}'}") from error
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if (line := _explanation(error, folder, trainer)) is None:
            raise
        raise ValueError(line) from error


def _explanation(error: Exception, folder: Path, trainer: "Trainer | None") -> str | None:
    step = trainer.progress.step + 1 if trainer is not None else 0
    first = first_line(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(first):
        where = f"at step {step}" if trainer is not None else "before the first step"
        return (
            f"out of memory {where}: lower --micro-batch (the step stays the same) or --image-size, or take "
            f"--precision bf16 or --zero-stage 2 ({first})"
        )
    if trainer is None:
        return None
    if (peer := trainer.pulse.failed_first()) is not None:
        return f"{peer}; when that is mended --resume {folder} goes on"
    if trainer.job.ranks.world > 1 and _PEER_GONE.search(str(error)):
        return f"another rank is gone since step {step} ({first}): --resume {folder} goes on from the last checkpoint"
    return None
