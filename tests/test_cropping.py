"""Crops to the breast and to the disc, on drawn shapes and on the real images.

pytest tests/test_cropping.py
"""

from pathlib import Path

import cv2
import numpy as np
import pytest

from prep.convert import convert
from prep.cropping import crop
from prep.images import PixelOptions, decode, prepare
from prep.planning import ConvertOptions
from prep.sources.own_table import TableColumns, table_dataset
from shards.checking import check_set
from shards.shardset import ShardSet


def mammogram(side: str, height: int = 900, width: int = 700, top: int = 255) -> np.ndarray:
    """A half ellipse of tissue at one side, a label, a white frame below and a mark, as scanners of film leave them."""
    image = np.full((height, width), 25, np.uint8)
    cv2.ellipse(image, (0, height // 2), (width // 2, height // 3), 0, -90, 90, 127, -1)
    cv2.rectangle(image, (width - 120, 60), (width - 60, 90), 255, -1)
    cv2.putText(image, "DOE", (width - 130, 160), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 4)
    image[-12:] = 255
    image = image if side == "left" else image[:, ::-1]
    deep = np.ascontiguousarray(image)
    return deep if top < 256 else (deep.astype(np.uint32) * top // 255).astype(np.uint16)


@pytest.mark.parametrize("top", [255, 4095])
def test_the_breast_alone_is_kept_and_lies_left(top: int) -> None:
    left, box, flipped = crop(mammogram("left", top=top), "breast", True)
    assert not flipped and box.left == 0 and box.width == pytest.approx(350, abs=30)
    assert box.top == pytest.approx(150, abs=30) and box.height == pytest.approx(600, abs=50)
    assert left.max() < 0.6 * top  # neither label nor frame, not even within the box
    right, other, flipped = crop(mammogram("right", top=top), "breast", True)
    assert flipped and other.left == pytest.approx(700 - box.width, abs=4)
    height, width = min(left.shape[0], right.shape[0]), min(left.shape[1], right.shape[1])
    assert np.mean(left[:height, :width] != right[:height, :width]) < 0.02
    assert not crop(mammogram("right", top=top), "breast", False)[2]


def test_the_kept_pixels_are_the_source_s(tmp_path: Path) -> None:
    image = mammogram("left")
    kept, box, _ = crop(image, "breast", False)
    source = image[box.top : box.top + box.height, box.left : box.left + box.width]
    assert ((kept == source) | (kept == 0)).all() and (kept == source).mean() > 0.8


def test_nothing_that_stands_out_is_kept_whole() -> None:
    for image in (np.zeros((300, 200), np.uint8), np.full((300, 200), 90, np.uint8)):
        kept, box, flipped = crop(image, "breast", True)
        assert tuple(box) == (0, 0, 200, 300) and not flipped
        np.testing.assert_array_equal(kept, image)
    tiny = np.zeros((400, 400, 3), np.uint8)
    tiny[100:110, 100:110] = 200
    assert tuple(crop(tiny, "disc", False)[1]) == (0, 0, 400, 400)


def test_a_disc_is_found_to_its_edge() -> None:
    image = np.full((600, 900, 3), 5, np.uint8)
    cv2.circle(image, (420, 300), 250, (180, 90, 40), -1)
    kept, box, _ = crop(image, "disc", False)
    assert box.left == pytest.approx(170, abs=22) and box.top == pytest.approx(50, abs=22)
    assert box.width == pytest.approx(500, abs=44) and kept.shape == (box.height, box.width, 3)
    np.testing.assert_array_equal(kept, image[box.top : box.top + box.height, box.left : box.left + box.width])


@pytest.mark.parametrize(
    ("name", "wanted", "flipped"),
    [
        ("mg-jpeg-lossless-12bit.dcm", (1105, 0, 1289, 2304), True),
        ("mg-spot-overlay-outside.dcm", (0, 195, 1318, 593), False),
        pytest.param("mg-j2k-12bit.dcm", (0, 0, 2155, 4664), False, marks=pytest.mark.slow),
    ],
)
def test_real_mammograms(name: str, wanted: tuple[int, ...], flipped: bool, real_data: Path) -> None:
    # The boxes were looked at: label and marks outside, the breast whole.
    _, box, turned = crop(decode((real_data / "dicom" / name).read_bytes(), 1), "breast", True)
    assert turned == flipped
    np.testing.assert_allclose(box, wanted, atol=40)


def test_real_fundus_photographs(real_data: Path) -> None:
    for path in sorted((real_data / "idrid-full").rglob("*.jpg"))[:2]:
        _, box, _ = crop(decode(path.read_bytes(), 3), "disc", False)
        np.testing.assert_allclose(box, (200, 0, 3590, 2848), atol=80)


def test_box_mirror_and_spacing_are_in_the_set(tmp_path: Path) -> None:
    rows = []
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"{number}.png"), mammogram(("left", "right")[number % 2], height=800 + number))
        rows.append(f"{number}.png,{'ab'[number % 3 > 0]},0.1")
    (tmp_path / "labels.csv").write_text("path,label,mm\n" + "\n".join(rows))
    columns = TableColumns(tmp_path / "labels.csv", metadata={"pixel_spacing_mm": "mm"})
    pixels = PixelOptions(1, 64, "png", crop="breast", mirror=True)
    options = ConvertOptions(pixels=pixels, quiet=True, metadata=("pixel_spacing_mm",))
    manifest, _ = convert(table_dataset("mine", columns, channels=1), tmp_path, tmp_path / "set", options)
    assert manifest.conversion["crop"] == "breast" and manifest.conversion["mirror"] is True
    split = ShardSet(tmp_path / "set").split("train")
    assert check_set(tmp_path / "set") == []
    rights = split.metadata("flipped") == "yes"
    assert 0 < rights.sum() < len(rights)
    np.testing.assert_array_equal(split.metadata("crop_left") > 0, rights)
    stored = split.rows(np.arange(len(split)))
    scale = split.metadata("crop_height") / stored.heights
    np.testing.assert_allclose(split.metadata("pixel_spacing_mm"), 0.1 * scale, rtol=1e-5)


def test_off_by_default_and_then_not_recorded() -> None:
    assert {"crop", "mirror", "burned_in"} & set(PixelOptions().recorded()) == set()
    image = mammogram("left")
    assert prepare(cv2.imencode(".png", image)[1].tobytes(), PixelOptions(1, None)).metadata == {}
    with pytest.raises(ValueError, match="it needs --crop breast"):
        PixelOptions(1, mirror=True)
    with pytest.raises(ValueError, match="'lung' is unknown; known: none, breast, disc"):
        PixelOptions(1, crop="lung")  # type: ignore[arg-type]
