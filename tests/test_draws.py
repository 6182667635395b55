"""Draws are the published generator's, and depend on nothing but what names them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shards.draws import DrawKeys, philox4x32, uniform


def test_known_answers_of_the_paper() -> None:
    # Random123's kat_vectors for philox4x32-10: counter and key of zeros, of ones, and of the digits of pi.
    known = [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ]
    for counter, key, words in known:
        assert tuple(int(word) for word in philox4x32(counter, key)) == words


ids = st.integers(0, 2**64 - 1)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(st.lists(ids, min_size=1, max_size=9), st.integers(0, 2**40), st.integers(0, 2**31), st.integers(1, 9))
def test_the_same_however_batched(samples: list[int], seed: int, epoch: int, n: int) -> None:
    together = uniform(seed, epoch, np.array(samples, np.uint64), 0, 0, "HorizontalFlip", n)
    alone = np.concatenate([uniform(seed, epoch, np.uint64(s), 0, 0, "HorizontalFlip", n) for s in samples])
    np.testing.assert_array_equal(together, alone)
    keys = DrawKeys(seed, np.full(len(samples), epoch), np.array(samples, np.uint64), np.zeros(len(samples), np.int64))
    beside = keys.uniforms([("RandomRotation", 5), ("HorizontalFlip", n), ("ColorJitter", 2)])[1]
    np.testing.assert_array_equal(together, beside)


def test_every_part_of_the_name_matters() -> None:
    base = {"seed": 1, "epoch": 2, "sample_id": np.uint64(3), "occurrence": 0, "view": 0, "operator": "HorizontalFlip"}
    first = uniform(**base, n=4)
    changes = {"seed": 2, "epoch": 3, "sample_id": np.uint64(4), "occurrence": 1, "view": 1, "operator": "VerticalFlip"}
    for name, value in changes.items():
        assert not np.isclose(uniform(**base | {name: value}, n=4), first).any(), name


def test_uniform_and_uncorrelated() -> None:
    table = uniform(7, 0, np.arange(20_000, dtype=np.uint64), 0, 0, "RandomResizedCrop", 4)
    assert table.min() > 0 and table.max() < 1
    for column in table.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(table.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1]) < 0.03
