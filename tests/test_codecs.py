"""The lossless formats of 16 bits: written by prep, read by the checks and by both executors.

pytest tests/test_codecs.py
"""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from prep.convert import convert
from prep.images import PixelOptions, encode
from prep.planning import ConvertOptions
from prep.sources.own_table import TableColumns, table_dataset
from shards.chain import Transform
from shards.checking import check_set
from shards.dali_executor import DaliExecutor
from shards.decoding import decode, probe
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.operators import CenterCrop, Normalize
from shards.shardset import ShardSet

FORMATS = ("png", "htj2k", "raw")


def deep(number: int, height: int = 60, width: int = 50) -> np.ndarray:
    """A smooth image of 12 to 16 bits with noise, uint16[h, w]."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(number)
    top = (4095, 65535)[number % 2]
    return ((0.5 + 0.4 * np.sin((x + y * number) / 9)) * top + rng.integers(0, 30, (height, width))).astype(np.uint16)


def jpeg2000(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG2000", irreversible=False)
    return buffer.getvalue()


@pytest.mark.parametrize("encoding", [*FORMATS, "jpeg2000"])
def test_every_value_comes_back(encoding: str) -> None:
    image = deep(1)
    data = jpeg2000(image) if encoding == "jpeg2000" else encode(image, PixelOptions(1, None, encoding, bits=16))  # type: ignore[arg-type]
    np.testing.assert_array_equal(decode(data, encoding, 1, 60, 50, 16)[..., 0], image)
    if encoding != "raw":
        assert probe(data) == (60, 50, 1, 16)
        with pytest.raises(ValueError, match="does not decode"):
            decode(data[: len(data) // 8], encoding, 1, 60, 50, 16)


def test_htj2k_keeps_colour_too() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3)).astype(np.uint8)
    data = encode(image, PixelOptions(3, None, "htj2k"))
    np.testing.assert_array_equal(decode(data, "htj2k", 3, 40, 30), image)
    assert data == encode(image, PixelOptions(3, None, "htj2k"))


@pytest.mark.parametrize("encoding", ["png", "htj2k", "jpeg2000"])
@pytest.mark.parametrize("kind", ["host", "dali"])
def test_both_executors_read_it_exactly(encoding: str, kind: str) -> None:
    images = [deep(number) for number in range(4)]
    packed = [
        jpeg2000(image) if encoding == "jpeg2000" else encode(image, PixelOptions(1, None, encoding, bits=16))  # type: ignore[arg-type]
        for image in images
    ]
    transform = Transform((CenterCrop(32), Normalize((0.0,), (1.0,))))
    zeros, sizes = np.zeros(4, np.int64), np.array([[60, 50]] * 4)
    drawn = transform.draw(DrawKeys(0, zeros, zeros.astype(np.uint64), zeros), sizes[:, 0], sizes[:, 1])
    executor = HostExecutor(transform, bits=16) if kind == "host" else DaliExecutor(transform, bits=16, batch=4)
    out, failures = executor.run(packed, [encoding] * 4, sizes, drawn)
    assert not failures
    wanted = np.stack([image[14:46, 9:41] for image in images]) / 65535
    np.testing.assert_allclose(np.asarray(out)[:, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("form", FORMATS)
def test_a_set_of_16_bits(form: str, tmp_path: Path) -> None:
    for number in range(20):
        cv2.imwrite(str(tmp_path / f"{number}.png"), deep(number))
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(f"{n}.png,{n % 2}" for n in range(20)))
    dataset = table_dataset("deep", TableColumns(tmp_path / "labels.csv"), channels=1)
    options = ConvertOptions(pixels=PixelOptions(1, None, form, bits=16), quiet=True)  # type: ignore[arg-type]
    manifest, _ = convert(dataset, tmp_path, tmp_path / "set", options)
    assert manifest.bits == 16 and manifest.encoding == form and check_set(tmp_path / "set") == []
    split, found = ShardSet(tmp_path / "set").split("train"), []
    for position in range(len(split)):
        found.append(decode(split.read(position), form, 1, 60, 50, 16)[..., 0])
    sources = [deep(number) for number in range(20)]
    assert all(any(np.array_equal(image, source) for source in sources) for image in found)


def test_without_its_package_htj2k_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.images.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package imagecodecs: pip install -e '.\[htj2k\]', or take png"):
        PixelOptions(1, None, "htj2k")
