"""Parts of a split, fractions and exclusions: a map from a plan's positions to stored ones, a bit a sample."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shards.aside import aside
from shards.identity import sample_id
from shards.orders import Ints, locate, prefix_sums
from shards.permutation import make_key, mix
from shards.shardset import Split

WORDS_A_BLOCK = 8  # 512 samples share one entry of the directory, an eighth of a bit each
Bools = NDArray[np.bool_]


class Subset:
    """The stored positions that are kept, ascending, numbered anew 0..num_samples-1.

    kept: bool[stored samples]. Held as bits with a directory of counts (rank and select, Jacobson 1989).
    """

    def __init__(self, kept: Bools) -> None:
        bits = np.packbits(kept, bitorder="little")
        words = -(-max(bits.size, 1) // (8 * WORDS_A_BLOCK)) * WORDS_A_BLOCK
        self._words = np.pad(bits, (0, 8 * words - bits.size)).view("<u8").reshape(-1, WORDS_A_BLOCK)
        self._block_starts = prefix_sums(np.bitwise_count(self._words).sum(1))
        self.num_samples = int(self._block_starts[-1])

    def positions(self, index: Ints) -> Ints:
        """The stored position of each kept sample: int64[n] within 0..num_samples-1 to int64[n]."""
        block = locate(self._block_starts, index)
        word_starts = np.cumsum(np.bitwise_count(self._words[block]), 1, dtype=np.int64)
        within = index - self._block_starts[block]
        word = (word_starts <= within[:, None]).sum(1)
        within -= np.where(word > 0, np.take_along_axis(word_starts, np.maximum(word - 1, 0)[:, None], 1)[:, 0], 0)
        bytes_of_word = self._words[block, word][:, None].view(np.uint8)
        ones = np.cumsum(np.unpackbits(bytes_of_word, axis=1, bitorder="little"), 1)
        return (block * WORDS_A_BLOCK + word) * 64 + (ones <= within[:, None]).sum(1)

    def shard_sizes(self, shard_starts: Ints) -> Ints:
        """How many samples each shard keeps; shard_starts is [num_shards + 1] in stored positions."""
        block, bit = np.divmod(shard_starts, 64 * WORDS_A_BLOCK)
        block = np.minimum(block, len(self._words) - 1)
        flat = np.arange(WORDS_A_BLOCK)
        full = np.clip(np.where(shard_starts >= self._words.size * 64, 512, bit)[:, None] - flat * 64, 0, 64)
        masks = np.where(full == 64, ~np.uint64(0), (np.uint64(1) << (full % 64).astype(np.uint64)) - np.uint64(1))
        before = self._block_starts[block] + np.bitwise_count(self._words[block] & masks).sum(1, dtype=np.int64)
        return np.diff(before)


def keep_fraction(fraction: float, groups: NDArray[np.uint64], strata: Ints, *, seed: int) -> Bools:
    """A part of the samples by whole groups, stratified, nested: what .1 keeps, .2 keeps too.

    groups: uint64[n]. strata: int64[n], 0.., usually the class. A group counts to the rarest stratum it has a sample
    of. The groups of a stratum stand in the order of a keyed hash; a group is kept where fewer than fraction x the
    stratum's samples stand before it, so each stratum misses its share by less than one group. Returns bool[n].

    Raises:
        ValueError: a fraction outside 0..1, or one that leaves nothing.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}: give more than 0 and at most 1")
    names, group = np.unique(groups, return_inverse=True)
    rarity = np.argsort(np.argsort(np.bincount(strata), kind="stable"))[strata]
    stratum = np.full(names.size, np.iinfo(np.int64).max)
    np.minimum.at(stratum, group, rarity)
    sizes = np.bincount(group)
    order = np.lexsort((mix(names ^ np.uint64(make_key("fraction", seed))), stratum))
    ends = np.cumsum(sizes[order])
    first = np.searchsorted(stratum[order], stratum[order], side="left")
    last = np.searchsorted(stratum[order], stratum[order], side="right") - 1
    start = ends[first] - sizes[order][first]
    kept = np.zeros(names.size, bool)
    kept[order] = (ends - sizes[order] - start) < fraction * (ends[last] - start)
    return kept[group]


def keep_but(path: Path, split: Split) -> Bools:
    """All but the keys that a text file names, one a line; blank lines and lines with # are skipped.

    Keys of other splits may stand in the file. Raises ValueError where none of them is in this split.

    Returns bool[n] over the split's positions.
    """
    lines = [line.strip() for line in path.read_text().splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    ids = np.array([sample_id(set_id, key) for set_id in split.manifest.set_ids for key in keys], np.uint64)
    kept = ~np.isin(split.sample_ids(), ids)
    if keys and kept.all():
        raise ValueError(f"{path} excludes nothing: none of its {len(keys)} keys is in split {split.name!r}")
    return kept


def cached_codes(path: Path, make: Callable[[], Ints], count: int) -> Ints:
    """Classes int16[count] (-1: left out) from a file, mapped; made on first use, as `cached`."""
    if not (path.is_file() and path.stat().st_size == 2 * count):
        path.parent.mkdir(parents=True, exist_ok=True)
        codes = make().astype(np.int16)
        with aside(path, shared=True, synced=False) as part:
            codes.tofile(part)
    return np.memmap(path, np.int16, mode="r", shape=(count,))


def cached(path: Path, make: Callable[[], Bools], count: int) -> Bools:
    """bool[count] from a file of bits, made on first use; the path bears the digest of all that decides it."""
    if path.is_file() and path.stat().st_size == -(-count // 8):
        return np.unpackbits(np.fromfile(path, np.uint8), count=count).astype(bool)
    kept = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path, shared=True, synced=False) as part:  # ranks may come together
        np.packbits(kept).tofile(part)
    return kept
