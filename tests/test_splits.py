"""Splits: whole groups, class shares, seeds, the study's rule, and the proof."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prep.splits import groups_of, split_official, split_random, study_shuffle
from shards.dealing import deal, intersections, one_hot

SHARES = (0.7, 0.15, 0.15)


@st.composite
def records(draw: st.DrawFn) -> tuple[np.ndarray, list[str]]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=3, max_size=60))
    groups = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)]
    labels = draw(st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)))
    return np.array(labels)[:, None], groups


@settings(max_examples=60, deadline=None)
@given(records(), st.integers(0, 99))
def test_groups_never_part_and_nobody_is_lost(data: tuple[np.ndarray, list[str]], seed: int) -> None:
    labels, groups = data
    splits = split_random(labels, groups, SHARES, seed)
    assert len(splits) == len(groups)
    assert set(splits) == {"train", "val", "test"}
    assert set(intersections(groups_of(splits, groups)).values()) == {0}
    assert splits == split_random(labels, groups, SHARES, seed)


@settings(max_examples=40, deadline=None)
@given(records(), st.integers(0, 99), st.randoms(use_true_random=False))
def test_the_order_of_the_table_does_not_matter(
    data: tuple[np.ndarray, list[str]], seed: int, shuffler: random.Random
) -> None:
    labels, groups = data
    order = list(range(len(groups)))
    shuffler.shuffle(order)
    straight = dict(zip(groups, split_random(labels, groups, SHARES, seed), strict=True))
    shuffled = split_random(labels[order], [groups[i] for i in order], SHARES, seed)
    assert straight == dict(zip([groups[i] for i in order], shuffled, strict=True))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(20, 200), min_size=2, max_size=5), st.integers(0, 99))
def test_each_class_has_its_share_in_every_split(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)[:, None]
    parts = deal(one_hot(labels), [str(i) for i in range(len(labels))], SHARES, seed)
    for label, count in enumerate(counts):
        for part, share in enumerate(SHARES):
            assert abs(((labels[:, 0] == label) & (parts == part)).sum() - share * count) <= 2


def test_another_seed_deals_otherwise() -> None:
    labels, groups = np.arange(200)[:, None] % 2, [str(i) for i in range(200)]
    assert split_random(labels, groups, SHARES, 0) != split_random(labels, groups, SHARES, 1)


def test_impossible_wishes_are_told() -> None:
    labels = np.zeros((4, 1), int)
    with pytest.raises(ValueError, match="2 groups cannot fill 3 splits"):
        split_random(labels, ["a", "a", "b", "b"], SHARES, 0)
    with pytest.raises(ValueError, match="sum to 1"):
        split_random(labels, list("abcd"), (0.5, 0.5, 0.5), 0)


def test_official_split_stays_and_val_comes_off_train() -> None:
    official = ["train"] * 80 + ["test"] * 20
    labels, groups = np.arange(100)[:, None] % 2, [str(i) for i in range(100)]
    splits, warnings = split_official(official, labels, groups, SHARES, 0)
    assert not warnings
    assert splits[80:] == ["test"] * 20
    assert splits[:80].count("val") == pytest.approx(80 * 0.15 / 0.85, abs=2)


def test_a_patient_in_two_official_splits_moves_whole_and_is_counted() -> None:
    official = ["train"] * 10 + ["val"] * 5 + ["test"] * 5
    groups = [str(i) for i in range(20)]
    groups[0] = groups[1] = groups[17]
    splits, warnings = split_official(official, np.zeros((20, 1), int), groups, SHARES, 0)
    assert splits[0] == splits[1] == splits[17] == "test"
    assert warnings == ["1 group stood in two official splits: moved whole to the later one"]
    assert set(intersections(groups_of(splits, groups)).values()) == {0}


def test_the_study_shuffles_row_numbers_and_halves_what_it_holds_out(tmp_path: Path) -> None:
    splits = study_shuffle(tmp_path, 101, 0.3)
    rows = list(range(101))
    random.Random(42).shuffle(rows)
    assert [i for i, s in enumerate(splits) if s == "val"] == sorted(rows[:15])
    assert [i for i, s in enumerate(splits) if s == "test"] == sorted(rows[15:30])


@pytest.mark.parametrize("document", [[5, 2, 7, 1], {"train_split": [0, 3, 4, 6], "val_split": [5, 2, 7, 1]}])
def test_the_cached_ids_of_the_study_win(document: object, tmp_path: Path) -> None:
    (tmp_path / "val_ids.json").write_text(json.dumps(document))
    splits = study_shuffle(tmp_path, 8, 0.3)
    assert [i for i, s in enumerate(splits) if s == "val"] == [2, 5]
    assert [i for i, s in enumerate(splits) if s == "test"] == [1, 7]


@pytest.mark.parametrize("document", ["[5, 99]", "[1, 1]", '{"a": 1}', "no json"])
def test_wrong_cached_ids_are_refused(document: str, tmp_path: Path) -> None:
    (tmp_path / "val_ids.json").write_text(document)
    with pytest.raises(ValueError, match=r"val_ids\.json"):
        study_shuffle(tmp_path, 8, 0.3)


def test_intersections_count_shared_groups() -> None:
    groups = groups_of(["train", "val", "test", "test", ""], ["a", "a", "a", "b", "c"])
    assert groups == {"train": ["a"], "val": ["a"], "test": ["a", "b"]}
    assert intersections(groups) == {"train-val": 1, "train-test": 1, "val-test": 1}
