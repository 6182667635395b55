"""Random numbers that depend on what they are for, never on when they are asked for.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) is a keyed bijection of a 128-bit
counter. The key is a hash of (seed, view, operator); the counter holds (sample id, epoch, occurrence there, block).
So a sample's draws are the same on every rank, in every batch and after every resume, and adding an operator to a
transform cannot shift the numbers of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
UNIFORMS_PER_BLOCK = 4


def philox4x32(
    counter: Sequence[npt.ArrayLike], key: Sequence[npt.ArrayLike], rounds: int = 10
) -> tuple[np.ndarray, ...]:
    """Four words of Philox-4x32 for each counter; all words are uint64 arrays below 2**32 that broadcast together."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, np.uint64) for word in key)
    for i in range(rounds):
        if i:
            k0, k1 = (k0 + np.uint64(_WEYL[0])) & _LOW, (k1 + np.uint64(_WEYL[1])) & _LOW
        left, right = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (right >> _SHIFT) ^ c1 ^ k0, right & _LOW, (left >> _SHIFT) ^ c3 ^ k1, left & _LOW
    return c0, c1, c2, c3


@lru_cache(maxsize=4096)
def _operator_key(seed: int, view: int, operator: str) -> int:
    digest = blake2b(f"{seed}\0{view}\0{operator}".encode(), digest_size=8, person=b"medshard-draw").digest()
    return int.from_bytes(digest, "little")


@dataclass(frozen=True)
class DrawKeys:
    """What names the draws of b samples: seed, view, and per sample the epoch, the 64-bit id and the occurrence."""

    seed: int
    epochs: np.ndarray
    sample_ids: np.ndarray
    occurrences: np.ndarray
    view: int = 0

    def rows(self, chosen: np.ndarray) -> "DrawKeys":
        """The keys of some of the samples.

        `chosen`: int64[m] or bool[b].
        """
        return DrawKeys(self.seed, self.epochs[chosen], self.sample_ids[chosen], self.occurrences[chosen], self.view)

    def uniform(self, operator: str, n: int, first_block: int = 0) -> np.ndarray:
        """float64[b, n] in (0, 1), starting at a block (of four numbers) of the operator's stream."""
        return self.uniforms([(operator, n)], first_block)[0]

    def uniforms(self, requests: Sequence[tuple[str, int]], first_block: int = 0) -> list[np.ndarray]:
        """One float64[b, n] for each (operator, n): the numbers of one by one, in a single pass of the generator."""
        blocks = [-(-n // UNIFORMS_PER_BLOCK) for _, n in requests]
        keys = np.repeat(
            np.array([_operator_key(self.seed, self.view, name) for name, _ in requests], np.uint64), blocks
        )[:, None]
        block = np.concatenate([np.arange(first_block, first_block + n, dtype=np.uint64) for n in blocks])[:, None]
        ids = np.ascontiguousarray(self.sample_ids).view(np.uint64)
        last = (np.asarray(self.occurrences).astype(np.uint64) << np.uint64(16)) | block
        words = philox4x32(
            (ids & _LOW, ids >> _SHIFT, np.asarray(self.epochs).astype(np.uint64) & _LOW, last & _LOW),
            (keys & _LOW, keys >> _SHIFT),
        )
        # The half keeps 0 and 1 out, so that a logarithm of a draw is finite.
        table = (np.stack(np.broadcast_arrays(*words), axis=-1) + 0.5) * 2.0**-32  # [blocks, b, 4]
        table = table.transpose(1, 0, 2).reshape(len(ids), -1)
        starts = np.cumsum([0, *blocks[:-1]]) * UNIFORMS_PER_BLOCK
        return [table[:, start : start + n] for start, (_, n) in zip(starts, requests, strict=True)]


def uniform(
    seed: int,
    epoch: npt.ArrayLike,
    sample_id: npt.ArrayLike,
    occurrence: npt.ArrayLike,
    view: int,
    operator: str,
    n: int,
) -> np.ndarray:
    """float64[b, n] in (0, 1) for b samples: `epoch`, `sample_id` (uint64) and `occurrence` have shape [b] or [].

    Epochs count modulo 2**32 and occurrences within an epoch modulo 2**16; two operators may share a stream only by a
    collision of 64-bit hashes.
    """
    ids = np.atleast_1d(np.asarray(sample_id, np.uint64))
    epochs, occurrences = (np.broadcast_to(np.asarray(value, np.int64), ids.shape) for value in (epoch, occurrence))
    return DrawKeys(seed, epochs, ids, occurrences, view).uniform(operator, n)
