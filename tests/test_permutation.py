"""The keyed bijection. Run: pytest tests/test_permutation.py"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from shards.permutation import CHUNK, make_key, mix, permute, subkeys, unpermute

quick = settings(derandomize=True, max_examples=80, deadline=None)
sizes = st.one_of(st.integers(1, 300), st.integers(1, 40_000))
keys = st.integers(0, 2**64 - 1)


@quick
@given(size=sizes, key=keys)
def test_every_value_once_and_back_again(size: int, key: int) -> None:
    index = np.arange(size)
    there = permute(index, size, key)
    assert np.array_equal(np.sort(there), index)
    assert np.array_equal(unpermute(there, size, key), index)


@quick
@given(st.lists(st.tuples(st.integers(1, 2**61), st.floats(0, 1, exclude_max=True), keys), min_size=1, max_size=12))
def test_sizes_and_keys_of_each_index_agree_with_one_by_one(rows: list[tuple[int, float, int]]) -> None:
    size, index, key = (np.array([row[i] for row in rows], kind) for i, kind in ((0, "i8"), (0, "i8"), (2, "u8")))
    index = np.minimum((index * np.array([row[1] for row in rows])).astype(np.int64), size - 1)
    together = permute(index, size, key)
    assert ((together >= 0) & (together < size)).all()
    assert together.tolist() == [int(permute([i], s, k)[0]) for i, s, k in zip(index, size, key, strict=True)]
    assert np.array_equal(unpermute(together, size, key), index)


def test_long_arrays_are_the_short_ones_put_together() -> None:
    size, index = 10**9, np.arange(3 * CHUNK + 5) * 7919
    parts = [permute(part, size, 5) for part in np.array_split(index, 7)]
    assert np.array_equal(permute(index, size, 5), np.concatenate(parts))
    assert permute([], size, 5).size == 0


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_small_permutations_are_equally_likely(size: int) -> None:
    many = 24_000
    rows = permute(np.tile(np.arange(size), many), size, np.repeat(subkeys(7, np.arange(many)), size)).reshape(
        many, size
    )
    codes, counts = np.unique(rows @ size ** np.arange(size), return_counts=True)
    assert len(codes) == np.prod(np.arange(1, size + 1))
    assert chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize("size", [1000, 65_536, 10**9])
def test_value_and_place_are_independent_over_keys(size: int) -> None:
    """16 x 16 tables of (place, value) over many keys, and of (value, next value): flat by chi-square."""
    per_key = min(size, 2000) // 2 * 2
    index = np.tile(np.linspace(0, size - 1, per_key).astype(np.int64), 200_000 // per_key)
    key = np.repeat(subkeys(3, np.arange(len(index) // per_key)), per_key)
    bins, places, seen = permute(index, size, key) * 16 // size, index * 16 // size, np.zeros((2, 16, 16))
    np.add.at(seen[0], (places, bins), 1)
    np.add.at(seen[1], (bins[:-1:2], bins[1::2]), 1)
    for table in seen:
        expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
        assert chisquare(table.ravel(), expected.ravel(), ddof=30).pvalue > 0.001


def test_neighbouring_keys_are_unrelated() -> None:
    """As many fixed points between two keys as between random permutations: one on average."""
    size, tries = 500, 200
    fixed = [np.sum(permute(np.arange(size), size, k) == permute(np.arange(size), size, k + 1)) for k in range(tries)]
    assert abs(np.mean(fixed) - 1) < 4 / np.sqrt(tries)


def test_keys_tell_their_parts_apart() -> None:
    assert len({make_key(1, "a", 2), make_key(1, "a2"), make_key(1, "a", 2, ""), make_key("1", "a", 2)}) == 4
    assert len(np.unique(subkeys(2**64 - 1, np.arange(1000)))) == 1000
    assert mix(np.array([1], np.uint64))[0] == 0x5692161D100B05E5  # splitmix64's finaliser, as its authors wrote it


def test_the_permutation_never_changes() -> None:
    """Golden values: a release that changes them changes the order of every run that is to be resumed."""
    assert permute(np.arange(10), 10, 0).tolist() == GOLDEN_TEN
    assert permute(np.arange(4) * 10**8, 10**9, make_key(1, "x")).tolist() == GOLDEN_BILLION


GOLDEN_TEN = [0, 1, 3, 9, 4, 8, 5, 7, 2, 6]
GOLDEN_BILLION = [442481954, 176865237, 5799838, 679174560]
