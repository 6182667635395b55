"""pytest tests/test_shardset.py"""

import gc
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xxhash
from shard_facts import shared_groups

from shards import storage
from shards.identity import sample_ids
from shards.manifest import LabelView
from shards.sets import write_set
from shards.shardset import CorruptSample, ShardSet
from shards.writer import Sample

MakeSet = Callable[..., ShardSet]


@pytest.fixture
def copied(tiny_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_set, tmp_path / "copied"))


def test_positions_run_over_unequal_shards(tiny_set: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    assert split.num_samples == 60 and split.shard_sizes.tolist() == [7, 23, 11, 19]
    rows = split.rows(np.array([59, 0, 7, 29, 30, 6]))
    assert rows.shards.tolist() == [3, 0, 1, 1, 2, 0]
    every = split.rows(np.arange(60))
    for name in rows._fields:
        np.testing.assert_array_equal(getattr(rows, name), getattr(every, name)[[59, 0, 7, 29, 30, 6]])
    np.testing.assert_array_equal(split.sides(), np.stack([every.heights, every.widths], axis=1))
    np.testing.assert_array_equal(split.sides(np.array([59, 0])), split.sides()[[59, 0]])
    keys = [split.key(position) for position in range(60)]
    assert len(set(keys)) == 60
    np.testing.assert_array_equal(split.sample_ids(), sample_ids(split.manifest.set_id, keys))
    np.testing.assert_array_equal(split.labels(np.array([5, 3])), split.labels()[[5, 3]])
    assert split.class_counts() == {"kind0": 20, "kind1": 20, "kind2": 20}
    assert split.rows(np.array([], np.int64)).labels.shape == (0, 1)


@pytest.mark.parametrize("position", [-1, 60, 10**12])
def test_positions_outside_are_refused(tiny_set: Path, position: int) -> None:
    split = ShardSet(tiny_set).split("train")
    for ask in (split.read, split.key, lambda position: split.rows(np.array([position]))):
        with pytest.raises(ValueError, match=r"outside 0\.\.59 of split 'train'"):
            ask(position)


def test_images_are_views_of_the_file_and_match_their_hash(tiny_set: Path) -> None:
    split = ShardSet(tiny_set).split("val")
    rows = split.rows(np.arange(17))
    for position in range(17):
        image = split.read(position)
        assert isinstance(image, memoryview) and image.readonly and image.c_contiguous
        assert xxhash.xxh3_64_intdigest(image) == rows.hashes[position] and len(image) == rows.sizes[position]


def test_a_view_outlives_the_map(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_MAPPED", 1)
    split = ShardSet(tiny_set).split("train")
    held = [(i, split.read(i)) for i in (0, 8, 31, 45, 1)]
    copies = [bytes(image) for _, image in held]
    del split
    gc.collect()
    assert [bytes(image) for _, image in held] == copies


def test_many_threads_read_the_same(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "MAX_MAPPED", 2)
    split = ShardSet(tiny_set).split("train")
    alone = [bytes(split.read(i)) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: bytes(split.read(i % 60)), range(600)))
    assert together == alone * 10


def test_a_flipped_bit_is_named(copied: Path) -> None:
    split = ShardSet(copied).split("train")
    offset, key = int(split.rows(np.array([8])).offsets[0]), split.key(8)
    content = bytearray((copied / "train-000001.tar").read_bytes())
    content[offset + 100] ^= 1
    (copied / "train-000001.tar").write_bytes(content)
    split = ShardSet(copied).split("train")
    with pytest.raises(
        CorruptSample, match=rf"sample {key} in train-000001.tar is damaged: hash [0-9a-f]{{16}}, "
    ) as caught:
        split.read(8)
    assert caught.value.key == key and caught.value.shard == "train-000001.tar"
    assert len(split.read(8, verify=False)) and len(split.read(9))


@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("val-000000.tar", lambda p: p.unlink(), r"val-000000.tar is missing"),
        ("val-000000.tar", lambda p: p.write_bytes(p.read_bytes()[:-512]), "truncated or altered"),
        ("val-000000.cols", lambda p: p.unlink(), "no index val-000000.cols beside its tar"),
        ("val-000000.cols", lambda p: p.write_bytes(b""), "a header alone has 64"),
        ("val-000000.cols", lambda p: shutil.copy(p.with_name("test-000001.cols"), p), "the manifest says 17 of 1"),
    ],
)
def test_harm_to_files_is_named(copied: Path, name: str, harm: Callable[[Path], object], words: str) -> None:
    harm(copied / name)
    with pytest.raises(ValueError, match=words):
        ShardSet(copied).split("val").read(0)


def test_unknown_names_list_the_known(tiny_set: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split 'tset' does not exist in tiny; it has train, val, test"):
        ShardSet(tiny_set).split("tset")
    with pytest.raises(ValueError, match="view 'two' is unknown; tiny has default"):
        ShardSet(tiny_set, view="two")
    with pytest.raises(ValueError, match="no manifest at"):
        ShardSet(tmp_path)


def views() -> dict[str, LabelView]:
    return {
        "default": LabelView(classes=["a", "b", "c"], mapping={"0": 0, "1": 1, "2": 2}),
        "sick": LabelView(classes=["well", "sick"], mapping={"0": 0, "1": 1, "2": 1}),
        "some": LabelView(classes=["one", "two"], mapping={"1": 0, "2": 1}),
    }


def test_views_join_and_leave_out_classes(make_set: MakeSet, tmp_path: Path) -> None:
    path = make_set(tmp_path / "set", details={"views": views()}).path
    plain, sick = ShardSet(path).split("train"), ShardSet(path, view="sick").split("train")
    np.testing.assert_array_equal(sick.labels(), np.minimum(plain.labels(), 1))
    some = ShardSet(path, view="some")
    split = some.split("train")
    kept = np.flatnonzero(plain.labels() > 0)
    assert some.classes == ["one", "two"] and split.num_samples == 40 and split.shard_sizes.sum() == 40
    np.testing.assert_array_equal(split.sample_ids(), plain.sample_ids()[kept])
    assert [bytes(split.read(i)) for i in range(40)] == [bytes(plain.read(int(i))) for i in kept]
    assert split.key(39) == plain.key(int(kept[39]))
    assert split.class_counts() == {"one": 20, "two": 20}
    assert len({ShardSet(path).digest, some.digest, ShardSet(path, view="sick").digest}) == 3


def test_multi_label_targets_ignore_blanks(make_set: MakeSet, tmp_path: Path) -> None:
    marked = LabelView(classes=["kind2", "kind0"], mapping={"0": 0, "1": 1, "": 0}, note="blank counts as absent")
    default = LabelView(classes=["kind0", "kind1", "kind2"], mapping={"0": 0, "1": 1})
    details = {"views": {"default": default, "marked": marked}}
    path = make_set(tmp_path / "set", task="multi-label", channels=1, details=details).path
    source = ShardSet(path).split("train").rows(np.arange(60)).labels
    targets = ShardSet(path).split("train").labels()
    assert targets.dtype == np.float32 and np.isnan(targets).sum() == 6
    np.testing.assert_array_equal(np.isnan(targets), source == -32768)
    swapped = ShardSet(path, view="marked").split("train").labels()
    np.testing.assert_array_equal(swapped[:, 1], np.nan_to_num(targets[:, 0]))
    np.testing.assert_array_equal(swapped[:, 0], targets[:, 2])
    assert ShardSet(path).split("val").class_counts() == ShardSet(path).manifest.splits["val"].class_counts


def test_a_labels_file_replaces_labels_by_key(tiny_set: Path, tmp_path: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    keys = [split.key(i) for i in range(60)]
    lines = [f"{key}, {(i + 1) % 3}" for i, key in enumerate(keys) if i % 4]
    (tmp_path / "labels.csv").write_text("\n".join(["key, label", *reversed(lines), f"{keys[0]},"]))
    relabelled = ShardSet(tiny_set, labels_file=tmp_path / "labels.csv")
    found = relabelled.split("train")
    wanted = [i for i in range(60) if i % 4]
    assert [found.key(i) for i in range(found.num_samples)] == [keys[i] for i in wanted]
    assert found.labels().tolist() == [(i + 1) % 3 for i in wanted]
    assert relabelled.digest != ShardSet(tiny_set).digest and relabelled.split("val").num_samples == 0


def test_a_split_file_deals_samples_anew(tiny_set: Path, tmp_path: Path) -> None:
    plain = ShardSet(tiny_set)
    keys = [plain.split(name).key(i) for name in plain.split_names for i in range(plain.split(name).num_samples)]
    folds = {key: ["train", "test", ""][number % 3] for number, key in enumerate(keys)}
    (tmp_path / "fold.csv").write_text("split,key\n" + "".join(f"{s},{key}\n" for key, s in folds.items() if s))
    fold = ShardSet(tiny_set, split_file=tmp_path / "fold.csv")
    assert fold.split_names == ["train", "test"]
    found = {fold.split(name).key(i): name for name in fold.split_names for i in range(fold.split(name).num_samples)}
    assert found == {key: name for key, name in folds.items() if name}
    with pytest.raises(ValueError, match="split 'val' does not exist in tiny; it has train, test"):
        fold.split("val")
    assert shared_groups(fold) == {"train-test": 0}


def test_a_split_file_that_parts_a_patient_is_seen(tiny_set: Path, tmp_path: Path) -> None:
    split = ShardSet(tiny_set).split("train")
    rows = split.rows(np.arange(6))
    samples = [
        Sample("train", f"k{i}", bytes(split.read(i)), "jpeg", (0,), int(rows.heights[i]), int(rows.widths[i]), i // 2)
        for i in range(6)
    ]
    write_set(tmp_path / "set", samples, name="x", classes=["a"])
    (tmp_path / "fold.csv").write_text("key,split\nk0,train\nk1,val\nk2,train\nk3,train\nk4,test\nk5,val\n")
    fold = ShardSet(tmp_path / "set", split_file=tmp_path / "fold.csv")
    assert shared_groups(fold) == {"train-val": 1, "train-test": 0, "val-test": 1}


@pytest.mark.slow
def test_ten_thousand_mutations_never_give_a_wrong_image(tiny_set: Path, tmp_path: Path) -> None:
    """About a minute. Every read of a mutated set gives the written bytes or a ValueError of one line."""
    folder = Path(shutil.copytree(tiny_set, tmp_path / "set"))
    names = ["manifest.json", "test-000001.cols", "test-000001.tar"]
    good = {name: (folder / name).read_bytes() for name in names}
    wanted = {bytes(image) for image in map(ShardSet(tiny_set).split("test").read, range(19))}
    rng, refused = np.random.default_rng(0), dict.fromkeys(names, 0)
    for turn in range(10_000):
        name = names[turn % 3]
        (folder / name).write_bytes(mutated(good[name], rng))
        try:
            split = ShardSet(folder).split("test")
            split.labels()
            for position in range(max(split.num_samples - 7, 0), split.num_samples):
                assert bytes(split.read(position)) in wanted and split.key(position)
        except ValueError as error:
            assert "\n" not in str(error)
            refused[name] += 1
        (folder / name).write_bytes(good[name])
    assert all(count > 1500 for count in refused.values()), refused


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: bytes overwritten, cut out, doubled, the end cut off."""
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        place, length = int(rng.integers(0, max(len(content), 1))), int(rng.integers(1, 40))
        match int(rng.integers(0, 4)):
            case 0:
                content[place : place + length] = rng.bytes(length)
            case 1:
                del content[place : place + length]
            case 2:
                content[place:place] = content[place : place + length]
            case 3:
                del content[max(place, 1) :]
    return bytes(content)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,label\na,1\n", "lacks the column 'key'; it has name, label"),
        ("key,label\na,x\n", "label 'x' of sample a in .* is no whole number"),
        ("key,label\na,1e9\n", "is no whole number"),
        ("key,label\na,nan\n", "is no whole number"),
        ("key,label\na,1\na,2\n", "names the key 'a' twice"),
        ("key,label\n", "names no sample"),
        ("\0\xff", "lacks the column|is no csv"),
    ],
)
def test_wrong_label_files_are_refused(tiny_set: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        ShardSet(tiny_set, labels_file=tmp_path / "labels.csv")


def test_notes_of_a_label_file_may_hold_what_some_call_line_ends(tiny_set: Path, tmp_path: Path) -> None:
    """Vertical tabs and form feeds, as hospital systems export them, end no row; nor does a line end within quotes."""
    split = ShardSet(tiny_set).split("train")
    rows = [f'{split.key(i)},1,one\x0btwo\x0ctwo\x1ctwo\u2028two,"three\nfour"' for i in range(3)]
    (tmp_path / "labels.csv").write_text("\n".join(["key,label,note,more", *rows]), encoding="utf-8")
    found = ShardSet(tiny_set, labels_file=tmp_path / "labels.csv").split("train")
    assert [found.key(i) for i in range(len(found))] == [split.key(i) for i in range(3)]
    assert found.labels().tolist() == [1, 1, 1]
