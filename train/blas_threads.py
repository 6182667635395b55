"""Work shared out among threads of which each is alone in BLAS, where BLAS itself divides the work badly.

What a thread multiplies stays in its own cache for what it does with it next, and no thread of BLAS waits for the
others. For NumPy's products, which let go of the interpreter.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch
from threadpoolctl import ThreadpoolController


def num_threads() -> int:
    """As many as torch computes with."""
    return max(1, torch.get_num_threads())


@contextmanager
def alone_in_blas(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Within: a pool of threads, each of which multiplies by itself."""
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield pool


@cache
def _libraries() -> ThreadpoolController:
    """The libraries found once: looking for them costs more than a product."""
    return ThreadpoolController()
