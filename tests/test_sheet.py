"""pytest tests/test_sheet.py"""

import itertools
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.decoding import decode
from shards.histograms import BINS, grouped_values, intensity_shares, sample_positions, side_edges
from shards.shardset import ShardSet
from shards.sheet import TILE_PIXELS, choose_examples, draw, main, note_lines, tile

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


def test_size_histograms_count_every_image_once(tiny_set: Path) -> None:
    axes = draw(ShardSet(tiny_set)).subfigs[1].axes
    assert [axis.get_title(loc="left") for axis in axes] == ["Heights", "Widths", "Intensities"]
    assert axes[2].get_xlabel() == "value, as stored; images: train 60, val 17, test 19"
    for axis, side in zip(axes[:2], ("heights", "widths"), strict=True):
        for stairs, name in zip(axis.patches, ("train", "val", "test"), strict=True):
            split = ShardSet(tiny_set).split(name)
            sides = getattr(split.rows(np.arange(split.num_samples)), side).tolist()
            shares, edges, _ = stairs.get_data()
            wanted = [100 * sum(a < s < b for s in sides) / len(sides) for a, b in itertools.pairwise(edges)]
            np.testing.assert_allclose(shares, wanted)
            assert sum(wanted) == pytest.approx(100)


@pytest.mark.parametrize("sides", [[256], [3, 4], [1, 5000], [224, 300, 271]])
def test_edges_hold_every_side_in_few_bins(sides: list[int]) -> None:
    edges = side_edges([np.array(sides[:1], np.uint32), np.array(sides, np.uint32)])
    assert edges[0] < min(sides) and max(sides) < edges[-1] and 8 <= len(edges) - 1 <= BINS
    assert np.histogram(sides, edges)[0].sum() == len(sides)


def test_intensities_are_those_of_the_stored_pixels(make_set: MakeSet, tmp_path: Path) -> None:
    split = make_set(tmp_path / "set", channels=3, encoding="png", train=5, val=2, test=2).split("train")
    rows, wanted = split.rows(np.arange(5)), np.zeros(256)
    for number in (1, 3):
        image = decode(split.read(number), "png", 3, int(rows.heights[number]), int(rows.widths[number]))
        wanted += np.array([(image == value).mean() for value in range(256)]) / 2
    np.testing.assert_allclose(intensity_shares(split, np.array([1, 3])), wanted, atol=1e-12)


def test_only_the_used_range_of_values_is_drawn() -> None:
    twelve_bits, low = np.zeros(1 << 16), np.zeros(1 << 16)
    twelve_bits[[0, 100, 4095]] = 0.5, 0.25, 0.25
    low[7] = 1
    edges, grouped = grouped_values([twelve_bits, low])
    assert edges[-1] < 4200 and [each.sum() for each in grouped] == [1, 1]
    assert [int(np.searchsorted(edges, value, side="right")) - 1 for value in (0, 100, 4095)] == list(
        np.flatnonzero(grouped[0])
    )


def test_the_sample_is_seeded_and_bounded_in_images_and_pixels(tiny_set: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    np.testing.assert_array_equal(sample_positions(split, 1, 20, 10**9), sample_positions(split, 1, 20, 10**9))
    assert len(set(sample_positions(split, 1, 20, 10**9).tolist())) == 20
    assert (sample_positions(split, 1, 20, 10**9) != sample_positions(split, 2, 20, 10**9)).any()
    some = split.rows(sample_positions(split, 1, 60, 20_000))
    assert 1 < len(some.heights) < 60 and (some.heights * some.widths).sum() <= 20_000
    assert len(sample_positions(split, 1, 60, 1)) == 1


def test_the_command_writes_the_same_picture_twice(tiny_set: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        assert main([str(tiny_set), "--out", str(tmp_path / name)]) == 0
    picture = cv2.imread(str(tmp_path / "a.png"))
    assert picture.shape[1] == 1320 and (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(ValueError, match=r"x\.gif: a sheet is written as \.png"):
        main([str(tiny_set), "--out", str(tmp_path / "x.gif")])
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere for x\.png: make it"):
        main([str(tiny_set), "--out", str(tmp_path / "nowhere" / "x.png")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_what_a_class_lacks_and_what_the_manifest_notes_is_told(make_set: MakeSet, tmp_path: Path) -> None:
    long = "a name of many words that no sheet has room for in one line"
    made = make_set(tmp_path / "set", classes=4, train=12, val=3, test=4)
    made.manifest.model_copy(update={"warnings": [long, f"{long} " * 6]}).write(tmp_path / "set")
    shard_set = ShardSet(tmp_path / "set")
    figure = draw(shard_set)
    cells = [[text.get_text() for text in axis.texts] for axis in figure.subfigs[0].axes]
    lacking = [(row, column) for row in range(4) for column in range(3) if "none" in cells[row * 3 + column]]
    counts = [list(shard_set.split(name).class_counts().values()) for name in ("train", "val", "test")]
    assert lacking == [(row, column) for row in range(4) for column in range(3) if counts[column][row] == 0] != []
    lines = note_lines(shard_set)
    assert f"note: {long}" in lines and len(lines) > 2 and max(map(len, lines)) <= 165
    assert figure.subfigs[3].texts[0].get_text() == "\n".join(lines)
