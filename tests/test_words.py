"""python -m pytest tests/test_words.py."""

import pytest

from shards.words import counted


@pytest.mark.parametrize(("number", "told"), [(0, "0 shards"), (1, "1 shard"), (2, "2 shards")])
def test_one_is_singular(number: int, told: str) -> None:
    assert counted(number, "shard") == told


def test_a_verb_agrees() -> None:
    assert [counted(number, "image", "stand") for number in (1, 3)] == ["1 image stands", "3 images stand"]
