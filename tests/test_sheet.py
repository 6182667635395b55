"""pytest tests/test_sheet.py"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.shardset import ShardSet
from shards.sheet import TILE_PIXELS, choose_examples, draw, main, tile

MakeSet = Callable[..., ShardSet]


def test_examples_are_of_their_class_and_seeded(tiny_set: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    chosen = choose_examples(split, 1, 3)
    assert [split.labels(positions).tolist() for positions in chosen] == [[0] * 3, [1] * 3, [2] * 3]
    again, other = choose_examples(split, 1, 3), choose_examples(split, 2, 3)
    np.testing.assert_array_equal(chosen, again)
    assert any((a != b).any() for a, b in zip(chosen, other, strict=True))


def test_a_tile_keeps_the_aspect(tiny_set: Path) -> None:
    split = ShardSet(tiny_set).split("val")
    rows = split.rows(np.arange(17))
    wide = int(np.argmax(rows.widths / rows.heights))
    page = tile(split, wide)
    inked = (page < 250).any(axis=(1, 2)).sum()
    assert page.shape == (TILE_PIXELS, TILE_PIXELS, 3)
    assert abs(inked - TILE_PIXELS * rows.heights[wide] / rows.widths[wide]) <= 2


def test_the_figure_counts_what_the_indices_hold(make_set: MakeSet, tmp_path: Path) -> None:
    figure = draw(make_set(tmp_path / "set", task="multi-label", channels=1, encoding="png", train=16, val=8, test=8))
    texts = [text.get_text() for sub in figure.subfigs for axis in sub.axes for text in axis.texts]
    titles = [axis.get_title() for axis in figure.subfigs[0].axes]
    assert titles[:3] == ["train · 16 images", "val · 8 images", "test · 8 images"]
    assert "kind2" in texts and "train, val" in texts and any("groups (image): train 16" in text for text in texts)


def test_the_command_writes_the_same_picture_twice(tiny_set: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        assert main([str(tiny_set), "--out", str(tmp_path / name)]) == 0
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] == 1320 and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match=r"x\.gif: a sheet is written as \.png"):
        main([str(tiny_set), "--out", str(tmp_path / "x.gif")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
