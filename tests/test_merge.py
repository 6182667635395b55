"""pytest tests/test_merge.py"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.__main__ import main
from shards.checking import check_set
from shards.identity import group_hash, salt_digest
from shards.manifest import Grouping
from shards.merge import merge
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.subsets import keep_but
from shards.writer import Sample

SALT = bytes(range(32))


def part(
    folder: Path, letter: str, patients: list[str], salt: bytes = SALT, set_id: str | None = None, **options: object
) -> ShardSet:
    """Six images of one grey level a set, so that pooled statistics can be worked out by hand."""
    samples = []
    for i, patient in enumerate(patients):
        side = 8 + i
        image = np.full((side, side, 3), 50 + 10 * i + ord(letter) % 7, np.uint8)
        data = cv2.imencode(".png", image)[1].tobytes()
        split = "train" if i < 4 else "test"
        samples.append(Sample(split, f"{letter}{i}", data, "png", (i % 2,), side, side, group_hash(patient, salt)))
    names = ["train", "test"]
    groups = {name: {s.group for s in samples if s.split == name} for name in names}
    shared = {"train-test": len(groups["train"] & groups["test"])}
    grouping = Grouping(by="patient", salt_digest=salt_digest(salt), intersections=shared, how="by id")
    details = {"grouping": grouping} | dict(options)
    return write_set(folder, samples, name=letter, classes=["well", "sick"], details=details, set_id=set_id)


def test_as_json_it_tells_what_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = part(tmp_path / "a", "a", ["p", "q", "r", "r", "s", "t"])
    b = part(tmp_path / "b", "b", ["u", "v", "w", "w", "x", "y"])
    assert main(["merge", str(a.path), str(b.path), "--out", str(tmp_path / "ab"), "--json"]) == 0
    told, merged = json.loads(capsys.readouterr().out), ShardSet(tmp_path / "ab").manifest
    assert (told["out"], told["digest"]) == (str(tmp_path / "ab"), merged.digest)
    assert told["splits"]["train"] == {"samples": 8, "groups": 6, "shards": 1}


def test_samples_and_ids_stay_and_patients_are_counted(tmp_path: Path) -> None:
    a = part(tmp_path / "a", "a", ["p", "q", "r", "r", "s", "t"])
    b = part(tmp_path / "b", "b", ["p", "u", "v", "w", "x", "x"])
    out = tmp_path / "ab"
    assert main(["merge", str(a.path), str(b.path), "--out", str(out), "--shard-size", "11kB"]) == 0
    merged = ShardSet(out)
    assert check_set(out) == []
    for split in ("train", "test"):
        ids = np.concatenate([a.split(split).sample_ids(), b.split(split).sample_ids()])
        np.testing.assert_array_equal(merged.split(split).sample_ids(), ids)
    train = merged.manifest.splits["train"]
    assert (train.samples, train.groups, train.class_counts) == (8, 6, {"well": 4, "sick": 4})
    assert merged.manifest.grouping.intersections == {"train-test": 0}
    assert merged.manifest.merged_set_ids == [a.manifest.set_id, b.manifest.set_id]
    split = merged.split("train")
    pixels = np.concatenate(
        [cv2.imdecode(np.frombuffer(split.read(i), np.uint8), 1).reshape(-1, 3)[:, ::-1] for i in range(8)]
    )
    np.testing.assert_allclose(merged.manifest.mean, (pixels / 255).mean(0), atol=1e-7)
    np.testing.assert_allclose(merged.manifest.std, (pixels / 255).std(0), atol=1e-7)


def test_files_by_key_still_work_after_a_merge(tmp_path: Path) -> None:
    sets = [part(tmp_path / letter, letter, [f"{letter}{i}" for i in range(6)]) for letter in "ab"]
    merge([one.path for one in sets], tmp_path / "ab")
    (tmp_path / "labels.csv").write_text("key,label\nb1,0\na0,1\n")
    split = ShardSet(tmp_path / "ab", labels_file=tmp_path / "labels.csv").split("train")
    assert [(split.key(i), int(split.labels()[i])) for i in range(2)] == [("a0", 1), ("b1", 0)]


def test_a_patient_who_would_be_in_two_splits_stops_it(tmp_path: Path) -> None:
    a = part(tmp_path / "a", "a", ["p", "q", "r", "r", "s", "t"])
    b = part(tmp_path / "b", "b", ["s", "u", "v", "w", "x", "x"])
    with pytest.raises(ValueError, match=r"1 groups \(patient\) would be in both splits of train-test"):
        merge([a.path, b.path], tmp_path / "ab")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_under_two_salts_nothing_is_claimed(tmp_path: Path) -> None:
    a = part(tmp_path / "a", "a", ["p", "q", "r", "r", "s", "t"])
    b = part(tmp_path / "b", "b", ["s", "u", "v", "w", "x", "x"], salt=bytes(32))
    merged = merge([a.path, b.path], tmp_path / "ab")
    assert merged.grouping.intersections == {} and merged.grouping.salt_digest == "0" * 32
    assert any("without a common salt" in warning for warning in merged.warnings)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"phantom": True}, "phantom of a and b differ: False and True"),
        ({"target_metric": "roc_auc"}, "target_metric of a and b differ"),
        ({"views": {"default": {"classes": ["well", "sick"], "mapping": {"0": 1, "1": 0}}}}, "map source labels"),
        (
            {"views": {"default": {"classes": ["ill", "sick"], "mapping": {"0": 1, "1": 0}}}},
            "classes of a and b differ",
        ),
    ],
)
def test_sets_that_disagree_are_refused(tmp_path: Path, options: dict[str, object], words: str) -> None:
    a = part(tmp_path / "a", "a", list("pqrstu"))
    b = part(tmp_path / "b", "b", list("vwxyzq"), **options)
    with pytest.raises(ValueError, match=words):
        merge([a.path, b.path], tmp_path / "ab")


def test_collisions_are_refused(tmp_path: Path) -> None:
    a = part(tmp_path / "a", "a", list("pqrstu"))
    with pytest.raises(ValueError, match="share sample ids"):
        merge([a.path, a.path], tmp_path / "aa")
    other = part(tmp_path / "other", "a", list("pqrstu"), set_id="1" * 32)
    with pytest.raises(ValueError, match="key a0 is in a and in a: keys are unique over a set"):
        merge([a.path, other.path], tmp_path / "aa")
    with pytest.raises(ValueError, match="wants two sets or more"):
        merge([a.path], tmp_path / "aa")


def test_excluded_keys_of_a_merged_set_never_come(tmp_path: Path) -> None:
    """Its samples keep the ids of the sets they came from, so keys are looked for under each part's set id."""
    part(tmp_path / "a", "a", list("abcdef"))
    part(tmp_path / "b", "b", list("ghijkl"))
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    split = ShardSet(tmp_path / "ab").split("train")
    (tmp_path / "out.txt").write_text("a1\nb2\n")
    kept = keep_but(tmp_path / "out.txt", split)
    assert [split.key(int(i)) for i in np.flatnonzero(~kept)] == ["a1", "b2"]
