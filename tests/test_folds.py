"""Folds and repeated splits of a finished set. pytest tests/test_folds.py"""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_samples
from faulty_server import serve
from shard_facts import shared_groups
from sklearn.model_selection import StratifiedGroupKFold

from shards.__main__ import main
from shards.checking import check_set
from shards.folds import FoldOptions, write_folds
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.writer import Sample

MakeSet = Callable[..., ShardSet]
SPLITS = ("train", "val", "test")


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """90 samples of 30 patients, three each, of one of two classes; no patient in two splits."""
    samples = list(tiny_samples({"train": 60, "val": 15, "test": 15}, 2, 1, "single-label", "png", 0))
    samples = [
        Sample(s.split, s.key, s.image, s.encoding, (number // 3 % 2,), s.height, s.width, number // 3)
        for number, s in enumerate(samples)
    ]
    return write_set(tmp_path / "set", iter(samples), name="grouped", classes=["a", "b"], channels=1).path


def rows(folder: Path, name: str) -> dict[str, str]:
    with (folder / "splits" / f"{name}.csv").open() as file:
        return {row["key"]: row["split"] for row in csv.DictReader(file)}


def test_five_folds_test_everybody_once_and_never_part_a_patient(grouped: Path) -> None:
    digest = ShardSet(grouped).digest
    proofs = write_folds(grouped, FoldOptions(folds=5))
    assert list(proofs) == [f"fold-{fold}-of-5-seed-0" for fold in range(5)]
    tested: list[str] = []
    for name in proofs:
        shards = ShardSet(grouped, split_file=name)
        assert (
            shared_groups(shards) == {"train-val": 0, "train-test": 0, "val-test": 0} == proofs[name]["intersections"]
        )
        for split in SPLITS:
            part, stated = shards.split(split), proofs[name]["splits"][split]
            assert stated["samples"] == part.num_samples and stated["class_counts"] == part.class_counts()
            assert stated["groups"] == len(np.unique(part.groups()))
        tested += [shards.split("test").key(i) for i in range(shards.split("test").num_samples)]
        validated = {key for key, split in rows(grouped, name).items() if split == "val"}
        following = rows(grouped, f"fold-{(int(name[5]) + 1) % 5}-of-5-seed-0")
        assert validated == {key for key, split in following.items() if split == "test"}
    assert sorted(tested) == sorted(rows(grouped, "fold-0-of-5-seed-0")) and len(tested) == 90
    assert ShardSet(grouped).digest == digest and check_set(grouped) == []
    assert json.loads((grouped / "splits" / "proof.json").read_text()) == proofs


def test_classes_are_as_even_as_scikit_learns_folds(grouped: Path) -> None:
    proofs = write_folds(grouped, FoldOptions(folds=5))
    ours = [proof["splits"]["test"]["class_counts"]["b"] for proof in proofs.values()]
    splits = [ShardSet(grouped).split(name) for name in SPLITS]
    labels, groups = (np.concatenate([getattr(each, what)() for each in splits]) for what in ("labels", "groups"))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(labels, labels, groups)
    theirs = [int(labels[test].sum()) for _, test in folds]
    assert max(ours) - min(ours) <= max(theirs) - min(theirs)


def test_repeats_differ_by_seed_and_never_change(grouped: Path) -> None:
    first = write_folds(grouped, FoldOptions(folds=None, repeats=3, seed=4))
    assert list(first) == ["split-seed-4", "split-seed-5", "split-seed-6"]
    assert len({proof["sha256"] for proof in first.values()}) == 3
    write_folds(grouped, FoldOptions(folds=3))
    assert write_folds(grouped, FoldOptions(folds=None, repeats=3, seed=4)) == first
    assert len(json.loads((grouped / "splits" / "proof.json").read_text())) == 6


def test_the_test_split_can_stay(grouped: Path) -> None:
    held = {ShardSet(grouped).split("test").key(i) for i in range(15)}
    for name in write_folds(grouped, FoldOptions(folds=2, keep_test=True)):
        assert {key for key, split in rows(grouped, name).items() if split == "test"} == held
    with pytest.raises(ValueError, match=r"--folds 2 is outside 3\.\..*2 with --keep-test"):
        FoldOptions(folds=2)


def test_a_test_split_that_parts_patients_cannot_stay(tmp_path: Path) -> None:
    samples = tiny_samples({"train": 6, "test": 3}, 2, 1, "single-label", "png", 0)
    one = [Sample(s.split, s.key, s.image, s.encoding, s.labels, s.height, s.width, 7) for s in samples]
    folder = write_set(tmp_path / "leaky", iter(one), name="leaky", classes=["a", "b"], channels=1).path
    with pytest.raises(ValueError, match="1 groups of the test split stand in other splits"):
        write_folds(folder, FoldOptions(folds=2, keep_test=True))
    with pytest.raises(ValueError, match="--folds 3 needs 3 groups, there are 1, and a group is never divided"):
        write_folds(folder, FoldOptions(folds=3))
    assert not (folder / "splits").exists()


def test_several_labels_are_stratified(make_set: MakeSet, tmp_path: Path) -> None:
    folder = make_set(tmp_path / "multi", task="multi-label", channels=1, encoding="png").path
    proofs = write_folds(folder, FoldOptions(folds=4))
    counts = np.array([list(proof["splits"]["test"]["class_counts"].values()) for proof in proofs.values()])
    assert (np.ptp(counts, axis=0) <= 3).all() and counts.sum(0).min() > 30


def test_the_command_and_an_unknown_name(grouped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["split", str(grouped), "--folds", "3"]) == 0
    said = capsys.readouterr().out
    assert "groups shared: train-val 0, train-test 0, val-test 0" in said
    assert "train on one with --split-file fold-0-of-3-seed-0" in said
    with pytest.raises(ValueError, match=r"no split file fold-9.*it has fold-0-of-3-seed-0, fold-1-of-3-seed-0"):
        ShardSet(grouped, split_file="fold-9")


def test_a_fold_is_found_by_name_at_a_url(grouped: Path, tmp_path: Path) -> None:
    write_folds(grouped, FoldOptions(folds=3))
    local = ShardSet(grouped, split_file="fold-1-of-3-seed-0")
    with serve(grouped) as server:
        there = ShardSet(server.url, cache=tmp_path / "cache", split_file="fold-1-of-3-seed-0")
        assert there.digest == local.digest
        np.testing.assert_array_equal(there.split("val").sample_ids(), local.split("val").sample_ids())
        with pytest.raises(ValueError, match="no split file fold-7"):
            ShardSet(server.url, cache=tmp_path / "cache", split_file="fold-7")


def test_a_split_file_that_parts_a_patient_is_warned_of(grouped: Path) -> None:
    write_folds(grouped, FoldOptions(folds=3))
    path = grouped / "splits" / "fold-0-of-3-seed-0.csv"
    lines = path.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith(",train"))
    lines[first] = lines[first].replace("train", "test")
    path.write_text("\n".join(lines))
    assert "groups (" in str(check_set(grouped)[0]) and "stand in both train and test" in str(check_set(grouped)[0])
    path.write_text("key,split\nnobody,train\n")
    assert any("names 1 sample that the set does not have" in str(problem) for problem in check_set(grouped))
