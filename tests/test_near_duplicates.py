"""Near duplicates across splits: pytest tests/test_near_duplicates.py. Copies are planted, strangers are not."""

import csv
import hashlib
import stat
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.fft import dctn

import prep.near_duplicates
import prep.tasks
from prep.convert import convert
from prep.finishing import describe
from prep.images import PixelOptions
from prep.near_duplicates import descriptor, packed, similar_pairs, unpacked
from prep.phantoms import SALT_NAME, draw_phantoms
from prep.planning import ConvertOptions
from prep.sources import DATASETS
from shards.manifest import Manifest

DDSM = DATASETS["DDSM"]
OPTIONS = ConvertOptions(pixels=PixelOptions(1, 64), shard_samples=8, quiet=True)
ASKED = replace(OPTIONS, near_duplicates=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms; test holds a half-size copy of a training image, val a copy of another after JPEG of quality 30."""
    folder = tmp_path_factory.mktemp("raw") / "DDSM"
    draw_phantoms("DDSM", folder, 60, size=128, quiet=True)
    first, second = listed(folder, "train")[:2]
    for source, split, change in ((first, "test", halved), (second, "val", recompressed)):
        target = folder / "ddsm_raw" / listed(folder, split)[0]
        image = cv2.imread(str(folder / "ddsm_raw" / source), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(target), change(image))
    return folder


def listed(folder: Path, split: str) -> list[str]:
    return (folder / "ddsm_raw_image_lists" / f"{split}.txt").read_text().split()


def halved(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def recompressed(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_UNCHANGED)


def make(raw: Path, out: Path, options: ConvertOptions) -> Manifest:
    return convert(DDSM, raw, out, options, raw / SALT_NAME)[0]


def table(out: Path) -> list[dict[str, str]]:
    with (out.with_name(f"{out.name}.private") / "near_duplicates.csv").open() as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.suffix != ".json"}


def test_planted_copies_are_found_and_nothing_else(raw: Path, tmp_path: Path) -> None:
    manifest = make(raw, tmp_path / "set", ASKED)
    train, rows = listed(raw, "train"), table(tmp_path / "set")
    found = {(row["source"], row["split"], row["other_source"], row["other_split"]) for row in rows}
    halved_pair = (train[0], "train", listed(raw, "test")[0], "test")
    assert found == {halved_pair, (train[1], "train", listed(raw, "val")[0], "val")}
    assert all(0.97 <= float(row["similarity"]) <= 1 for row in rows)
    (told,) = [warning for warning in manifest.warnings if "look alike" in warning]
    assert told.startswith("2 pairs of images in two splits look alike (train-val 1, train-test 1; similarity 0.97")
    private = tmp_path / "set.private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    public = b"".join(p.read_bytes() for p in (tmp_path / "set").iterdir()) + describe(manifest).encode()
    assert not any(name.encode() in public for name in (*train, *listed(raw, "val"), *listed(raw, "test")))


def test_the_set_is_the_same_with_and_without_workers_and_asking(raw: Path, tmp_path: Path) -> None:
    plain, asked = make(raw, tmp_path / "a", OPTIONS), make(raw, tmp_path / "b", replace(ASKED, workers=2))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert not (tmp_path / "a.private" / "near_duplicates.csv").exists()
    kept = [warning for warning in asked.warnings if "look alike" not in warning]
    assert asked.model_copy(update={"warnings": kept}) == plain


def test_it_resumes_and_describes_what_an_earlier_run_was_not_asked_for(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(raw, tmp_path / "whole", ASKED)
    real, calls = prep.tasks.prepare, []

    def failing(*given):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) in (20, 50):
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(prep.tasks, "prepare", failing)
    for options in (OPTIONS, ASKED):  # 2 shards without descriptors, then again with them, up to the third
        with pytest.raises(KeyboardInterrupt):
            make(raw, tmp_path / "set", options)
    make(raw, tmp_path / "set", ASKED)
    assert len(calls) == 50 + 60 - 24  # three shards of eight were kept
    assert table(tmp_path / "set") == table(tmp_path / "whole")
    assert digests(tmp_path / "set") == digests(tmp_path / "whole")


def test_a_finished_set_made_without_it_says_what_to_do(raw: Path, tmp_path: Path) -> None:
    make(raw, tmp_path / "set", OPTIONS)
    with pytest.raises(
        ValueError, match=r"made without --near-duplicates: choose another --out, with --salt \S*set\.private/salt"
    ):
        make(raw, tmp_path / "set", ASKED)
    make(raw, tmp_path / "other", ASKED)
    assert convert(DDSM, raw, tmp_path / "other", ASKED)[1] is False


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1)])
def test_the_descriptor_is_the_rooted_cosine_transform(dtype: type, channels: int) -> None:
    """Against SciPy's DCT-II, on an image whose reduction to 64 x 64 is a plain average of blocks."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max, (128, 192, channels)).astype(dtype)
    grey = image.astype(float).mean(2).reshape(64, 2, 64, 3).mean((1, 3))
    low = dctn(grey, norm="ortho")[:16, :16].ravel()
    low[0] = 0
    wanted = np.sign(low) * np.sqrt(np.abs(low))
    np.testing.assert_allclose(descriptor(image), wanted / np.linalg.norm(wanted), atol=0.005)
    np.testing.assert_allclose(unpacked([packed(descriptor(image))])[0], descriptor(image), atol=2e-4)


def test_blank_images_are_like_nothing_and_no_images_make_no_pairs() -> None:
    blank = unpacked([packed(descriptor(np.full((50, 40, 3), value, np.uint8))) for value in (0, 255)])
    assert not blank.any() and not list(similar_pairs({"train": blank, "test": blank}))
    assert not list(similar_pairs({"train": unpacked([]), "test": blank}))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(size=(40, 256)).astype(np.float32)
    many /= np.linalg.norm(many, axis=1, keepdims=True)
    splits = {"train": many[:25], "val": many[[3, 30, 31]], "test": many[[31, 24, 0]]}
    wanted = {("train", 3, "val", 0), ("train", 0, "test", 2), ("train", 24, "test", 1), ("val", 2, "test", 0)}
    for block in (1, 4, 2048):
        monkeypatch.setattr(prep.near_duplicates, "BLOCK", block)
        assert {pair[:4] for pair in similar_pairs(splits)} == wanted
