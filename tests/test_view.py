"""pytest tests/test_view.py"""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.loader import Loader
from shards.shardset import ShardSet
from shards.transforms import Transform, train_transform
from shards.transforms import transform_of as multi_of
from shards.view import choose, draw_versions, levels, main, make_rows, write_view
from shards.view_page import picture

MakeSet = Callable[..., ShardSet]


def transform_of(shards: ShardSet, preset: str, size: int = 32) -> Transform:
    return train_transform(size, shards.manifest.mean, shards.manifest.std, preset=preset)


@pytest.mark.parametrize("preset", ["light", "full", "study"])
def test_versions_are_what_the_loader_yields(tiny_set: Path, preset: str) -> None:
    shards = ShardSet(tiny_set)
    split, transform = shards.split("train"), transform_of(shards, preset)
    position = choose(split, 1, 5)[0]
    (row,) = make_rows(shards, split, transform, [position], 3, 5, "host")
    loader, seen = Loader(split, transform, global_batch=20, seed=5, tail="drop"), []
    for batch in loader:
        here = np.flatnonzero(batch.sample_ids.numpy().view(np.uint64) == split.sample_ids(np.array([position]))[0])
        seen += [batch.images[i : i + 1] for i in here.tolist()]
        if len(seen) == 3:
            break
    loader.close()
    np.testing.assert_array_equal(row.versions["host"], np.concatenate([levels(one, transform) for one in seen]))
    assert row.key == split.key(position) and row.label == "kind0"


def test_captions_say_what_was_drawn_and_how_far_executors_are_apart(tiny_set: Path) -> None:
    shards = ShardSet(tiny_set)
    split, transform = shards.split("train"), transform_of(shards, "full")
    rows = make_rows(shards, split, transform, choose(split, 3, 0), 4, 0, "both")
    figure = picture(rows, "the title", "below it")
    figure.canvas.draw()
    texts = [text.get_text() for text in figure.texts]
    joined = " ".join(" ".join(texts).split())
    assert texts[0] == "the title" and f"stored {rows[0].stored.shape[0]} x {rows[0].stored.shape[1]}" in texts[2]
    assert "epoch 3 host | dali: mean 0." in joined and "brightness" in joined and "[32,32]" in joined
    for row in rows:
        assert len(row.captions) == 4 and all(np.shape(made) == (4, 32, 32, 3) for made in row.versions.values())
        assert all(lines[0].startswith("RandomResizedCrop window") for lines in row.captions)
    boxes = [text.get_window_extent() for text in figure.texts]
    boxes += [axes.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i]), "captions or tiles overlap"
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_a_long_chain_stays_on_the_page(tiny_set: Path) -> None:
    shards = ShardSet(tiny_set)
    split, transform = shards.split("train"), transform_of(shards, "full")
    rows = make_rows(shards, split, transform, [0], 1, 0, "host")
    chain = " → ".join(["RandomResizedCrop", "Perspective", "GaussianBlur"] * 6)
    figure = picture(rows, "the title", chain)
    figure.canvas.draw()
    below, first = figure.texts[1], figure.axes[0]
    assert " ".join(below.get_text().split()) == chain and below.get_text().count("\n") >= 2
    assert below.get_window_extent().x1 <= figure.bbox.x1
    assert not below.get_window_extent().overlaps(first.get_window_extent())


def test_windows_are_in_stored_pixels_behind_a_resize(tiny_set: Path) -> None:
    shards = ShardSet(tiny_set)
    split, transform = shards.split("train"), transform_of(shards, "study", 56)
    (row,) = make_rows(shards, split, transform, [7], 4, 0, "host")
    height, width = row.stored.shape[:2]
    drawn = draw_versions(split, transform, 7, 4, 0)[0]["RandomResizedCrop"]["window"]
    expected = drawn * np.array([height, width, height, width]) / 64  # study squashes to 256 / 224 of the size
    np.testing.assert_allclose(np.array(row.windows), expected)


def test_samples_take_classes_in_turn_and_follow_the_seed(tiny_set: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    assert split.labels(np.array(choose(split, 6, 0))).tolist() == [0, 1, 2, 0, 1, 2]
    assert choose(split, 6, 0) == choose(split, 6, 0) != choose(split, 6, 1)
    assert sorted(choose(split, 64, 0)) == list(range(60))


def test_the_command_writes_the_same_picture_twice(tiny_set: Path, tmp_path: Path) -> None:
    asked = [str(tiny_set), "--preset", "full", "--samples", "2", "--versions", "2", "--image-size", "48", "--out"]
    for name in ("a.png", "b.png"):
        assert main([*asked, str(tmp_path / name)]) == 0
    assert cv2.imread(str(tmp_path / "a.png")).shape[1] == 770
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_one_channel_and_several_labels(make_set: MakeSet, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", task="multi-label", channels=1, encoding="png", train=16, val=8, test=8)
    split = shards.split("val")
    rows = make_rows(shards, split, transform_of(shards, "full"), list(range(8)), 2, 0, "both")
    assert {row.label for row in rows} >= {"none", "kind0, kind1, kind2"} and np.shape(rows[0].versions["dali"]) == (
        2,
        32,
        32,
        1,
    )
    worst = max(np.abs(np.subtract(row.versions["host"], row.versions["dali"])).mean() for row in rows)
    assert worst < 1 / 255
    assert len(picture(rows, "", "").axes) == 8 * (1 + 2 * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.gif"], r"x\.gif: a view is written as \.png"),
        (["--samples", "0"], "--samples is 0; give 1 to 64"),
        (["--versions", "65"], "--versions is 65; give 1 to 64"),
        (["--image-size", "-3"], "train_transform: size is -3; give one or two whole numbers"),
        (["--split", "trian"], "split 'trian' does not exist in tiny; it has train, val, test"),
    ],
)
def test_mistakes_are_answered_in_a_line(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        main([str(tiny_set), *arguments])
    assert not list(tmp_path.iterdir())


def test_help_fits_a_screen_and_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 40 and "example: python -m shards view data/shards/DDSM" in text


def test_views_of_multicrop_are_columns(tiny_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = ShardSet(tiny_set)
    steps = [{"op": "MultiCrop", "counts": [1, 2], "sizes": [32, 16], "scales": [[0.4, 1], [0.05, 0.4]]}]
    made = multi_of(steps, shards.manifest.mean, shards.manifest.std)
    row = make_rows(shards, shards.split("train"), made, [3], 5, 0, "both")[0]
    assert row.heads == ("view 0, 32 x 32", "view 1, 16 x 16", "view 2, 16 x 16")
    assert [image.shape for image in row.versions["dali"]] == [(32, 32, 3), (16, 16, 3), (16, 16, 3)]
    assert all(any(line.startswith("RandomResizedCrop window") for line in lines) for lines in row.captions)
    out = tmp_path / "views.png"
    assert main([str(tiny_set), "--operators", json.dumps(steps), "--samples", "1", "--out", str(out)]) == 0
    assert out.stat().st_size > 5000
    with pytest.raises(ValueError, match="--operators is not JSON"):
        write_view(shards, out, preset="light", operators="[{op")
