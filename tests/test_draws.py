"""Philox against the vectors published with it; draws depend on their name alone."""

import numpy as np
import pytest

from shards.draws import DrawKeys, philox4x32, uniform

# From Random123's known-answer file (Salmon et al. 2011), philox4x32-10: counter, key, words.
VECTORS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), VECTORS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in philox4x32(counter, key)) == words


def test_every_part_of_the_name_matters_and_nothing_else() -> None:
    base = {"seed": 1, "epoch": 2, "sample_id": 2**63 + 5, "occurrence": 0, "view": 0, "operator": "Erasing", "n": 6}
    first = uniform(**base)
    np.testing.assert_array_equal(first, uniform(**base))
    others = {"seed": 2, "epoch": 3, "sample_id": 5, "occurrence": 1, "view": 1, "operator": "Affine"}
    for part, other in others.items():
        assert (uniform(**base | {part: other}) != first).all(), part


def test_draws_together_are_the_draws_one_by_one() -> None:
    keys = DrawKeys(7, np.arange(5), np.arange(5, dtype=np.uint64) << np.uint64(60), np.zeros(5, np.int64))
    together = keys.uniforms([("a", 9), ("b", 2)])
    np.testing.assert_array_equal(together[0], keys.uniform("a", 9))
    np.testing.assert_array_equal(together[1], keys.uniform("b", 2))
    np.testing.assert_array_equal(keys.uniform("a", 9)[:, 4:8], keys.uniform("a", 4, first_block=1))
    assert ((together[0] > 0) & (together[0] < 1)).all()
