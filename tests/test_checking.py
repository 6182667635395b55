"""pytest tests/test_checking.py"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.__main__ import COMMANDS
from shards.__main__ import main as shards_main
from shards.checking import Problem, check_set, main
from shards.index import read_columns
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.writer import Sample

MakeSet = Callable[..., ShardSet]


@pytest.fixture
def copied(tiny_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_set, tmp_path / "copied"))


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    document = json.loads((folder / "manifest.json").read_bytes())
    change(document)
    (folder / "manifest.json").write_text(json.dumps(document))


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "options",
    [{}, {"channels": 1, "encoding": "raw"}, {"channels": 1, "task": "multi-label", "encoding": "png"}, {"classes": 2}],
)
def test_a_whole_set_has_no_problem(make_set: MakeSet, tmp_path: Path, options: dict[str, object]) -> None:
    assert check_set(make_set(tmp_path / "set", **options).path) == []


def test_a_flipped_bit_names_tar_and_sample(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    split = ShardSet(copied).split("train")
    flip(copied / "train-000002.tar", int(split.rows(np.array([33])).offsets[0]) + 200)
    problems = check_set(copied)
    assert [problem.where for problem in problems] == ["train-000002.tar"] * 2
    assert "altered: sha256" in problems[0].what and f"sample {split.key(33)} is damaged: hash " in problems[1].what
    assert main([str(copied), "--fast"]) == 1
    assert f"2 problems in {copied}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("harm", "where", "words"),
    [
        (lambda d: (d / "val-000000.tar").unlink(), "val-000000.tar", "is missing"),
        (
            lambda d: (d / "val-000000.tar").write_bytes((d / "val-000000.tar").read_bytes()[:9000]),
            "val-000000.tar",
            "the manifest says .*: truncated",
        ),
        (lambda d: (d / "val-000000.tar").write_bytes(b""), "val-000000.tar", "has 0 bytes"),
        (lambda d: flip(d / "val-000000.cols", 500), "val-000000.tar", "do not match its digest"),
        (lambda d: flip(d / "val-000000.idx", 30), "val-000000.idx", "does not match its tar"),
        (lambda d: (d / "manifest.json").write_text("{"), "manifest.json", "is not JSON"),
        (lambda d: edit(d, lambda m: m["splits"]["val"].update(groups=3)), "val", "17 groups, the manifest says 3"),
        (
            lambda d: edit(d, lambda m: m["splits"]["val"].update(class_counts={"kind0": 17})),
            "val",
            "class counts are",
        ),
        (
            lambda d: edit(d, lambda m: m["grouping"]["intersections"].update({"train-val": 4})),
            "train-val",
            "0 groups are shared, the manifest says 4",
        ),
        (
            lambda d: edit(d, lambda m: m.update(set_id="0" * 32)),
            "val-000000.cols",
            "is not the hash of its set and key",
        ),
        (
            lambda d: edit(d, lambda m: m.update(channels=1, mean=[0.1], std=[0.1], bits=16)),
            "val-000000.tar",
            "16 bits",
        ),
    ],
)
def test_harm_is_found(copied: Path, harm: Callable[[Path], object], where: str, words: str) -> None:
    harm(copied)
    problems = check_set(copied)
    matching = [p for p in problems if p.where == where and p.fatal]
    assert any(re.search(words, problem.what) for problem in matching), problems
    assert all("\n" not in str(problem) for problem in problems)


def test_an_index_that_lies_is_found_against_the_tar(copied: Path) -> None:
    columns = read_columns(copied / "val-000000.cols")
    labels, sizes = columns.labels.copy(), columns.sizes.copy()
    labels[4], sizes[5] = 1 - labels[4], sizes[5] - 1
    forged = type(columns)(**(vars(columns) | {"labels": labels, "sizes": sizes}))
    data, keys = forged.to_bytes(), columns.all_keys()
    (copied / "val-000000.cols").write_bytes(data)
    texts = [str(problem) for problem in check_set(copied, decode=False)]
    assert any(f"labels of sample {keys[4]} are" in text for text in texts)
    assert any(f"sample {keys[5]} lies elsewhere than the index says" in text for text in texts)
    assert any("val-000000.cols: altered: sha256" in text for text in texts)


def samples_of(tiny_set: Path, groups: list[int]) -> list[Sample]:
    split = ShardSet(tiny_set).split("val")
    rows = split.rows(np.arange(6))
    return [
        Sample(["train", "test"][i % 2], f"k{i}", bytes(split.read(i)), "jpeg", (i % 2,), int(h), int(w), groups[i])
        for i, (h, w) in enumerate(zip(rows.heights, rows.widths, strict=True))
    ]


def test_a_patient_in_two_splits_is_found(tiny_set: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "set", samples_of(tiny_set, [7, 8, 9, 7, 10, 9]), name="x", classes=["a", "b"])
    assert check_set(tmp_path / "set") == [Problem("train-test", "2 groups (image) stand in both splits")]


def test_equal_images_in_two_splits_are_a_warning(tiny_set: Path, tmp_path: Path) -> None:
    samples = samples_of(tiny_set, [0, 1, 2, 3, 4, 5])
    twin = Sample("test", "k9", samples[0].image, "jpeg", (0,), samples[0].height, samples[0].width, 9)
    write_set(tmp_path / "set", [*samples, twin], name="x", classes=["a", "b"])
    problems = check_set(tmp_path / "set")
    assert [(p.where, p.fatal) for p in problems] == [("train-test", False)]
    assert main([str(tmp_path / "set")]) == 0


def test_an_image_that_does_not_decode_and_a_label_without_a_class(tiny_set: Path, tmp_path: Path) -> None:
    samples = samples_of(tiny_set, [0, 1, 2, 3, 4, 5])
    broken = Sample("test", "k7", b"no image at all", "jpeg", (0,), 9, 9, 7)
    wrong_size = Sample("test", "k8", samples[0].image, "jpeg", (5,), 9, 9, 8)
    options = {"name": "x", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.2] * 3}
    write_set(tmp_path / "set", [*samples, broken, wrong_size], **options)
    texts = " | ".join(str(problem) for problem in check_set(tmp_path / "set") if problem.fatal)
    assert "image of sample k7 does not decode" in texts and "the index says 9 x 9" in texts
    assert "label 5 of sample k8 is outside the classes: no view maps it" in texts


def test_strays_are_warned_of(copied: Path) -> None:
    shutil.copy(copied / "val-000000.tar", copied / "val-000001.tar")
    (copied / ".val-000002.tar.partial").touch()
    assert sorted((p.where, p.fatal) for p in check_set(copied)) == [
        (".val-000002.tar.partial", False),
        ("val-000001.tar", False),
    ]


def test_command_line_says_what_was_proved(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shards_main(["check", str(tiny_set)]) == 0
    out = capsys.readouterr().out
    assert "96 samples whole, every image decodes" in out and "train-val 0, train-test 0, val-test 0" in out
    with pytest.raises(ValueError, match="no folder"):
        main([str(tiny_set / "nowhere")])
    assert shards_main(["check", str(tiny_set), "--quiet"]) == 0 and capsys.readouterr().out == ""


def test_problems_as_json(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "val-000000.tar").unlink()
    assert shards_main(["check", str(copied), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["whole"] is False and told["problems"][0]["where"] == "val-000000.tar"


def test_info_fits_a_screen(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shards_main(["info", str(tiny_set)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 24 and lines[0].startswith("tiny  (medshard-1, digest ")
    assert any(line.split()[:4] == ["train", "60", "60", "4"] for line in lines)
    assert shards_main(["info", str(tiny_set), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"


@pytest.mark.parametrize("command", ["info", "check", "index", "sheet"])
def test_help_fits_a_screen_and_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command in COMMANDS
    with pytest.raises(SystemExit):
        shards_main([command, "--help"])
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 30 and "example: python -m shards" in out
