"""Pixels: every special case of a raw image has one defined result, or one clear reason."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from pictures import photograph, saved
from PIL import Image

from prep.images import PixelOptions, UndecodableImage, decode, encode, prepare, read_file, reduce


@pytest.fixture
def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_grey_and_colour_meet_the_channels_asked_for(colours: np.ndarray) -> None:
    data = saved(Image.fromarray(colours), "PNG")
    np.testing.assert_array_equal(decode(data, 3), colours)
    luma = (colours @ np.array([0.299, 0.587, 0.114])).round()
    assert np.abs(decode(data, 1) - luma).max() <= 1
    grey = saved(Image.fromarray(colours[..., 0]), "PNG")
    np.testing.assert_array_equal(decode(grey, 3), np.repeat(colours[..., :1], 3, 2))


def test_palette_alpha_and_one_bit(colours: np.ndarray) -> None:
    palette = Image.fromarray(colours).quantize(16)
    np.testing.assert_array_equal(decode(saved(palette, "PNG"), 3), np.asarray(palette.convert("RGB")))
    half = np.dstack([colours, np.full((20, 30), 128, np.uint8)])
    assert np.abs(decode(saved(Image.fromarray(half), "PNG"), 3) - colours * (128 / 255)).max() <= 1
    clear = np.dstack([colours, np.zeros((20, 30), np.uint8)])
    assert decode(saved(Image.fromarray(clear), "PNG"), 3).max() == 0
    bits = Image.fromarray(colours[..., 0] > 127)
    np.testing.assert_array_equal(decode(saved(bits, "PNG"), 1), 255 * (colours[..., 0] > 127))


def test_sixteen_bits_use_the_full_range_or_stay() -> None:
    values = np.array([[0, 256, 257, 32768, 65535]] * 3, np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    np.testing.assert_array_equal(decode(data, 1)[0], [0, 1, 1, 128, 255])
    np.testing.assert_array_equal(decode(data, 1, bits=16), values)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int, real_data: Path) -> None:
    upright = decode((real_data / "hard/exif/Landscape_1.jpg").read_bytes(), 3).astype(int)
    data = (real_data / f"hard/exif/Landscape_{orientation}.jpg").read_bytes()
    turned = decode(data, 3)
    assert turned.shape == upright.shape
    assert np.abs(turned - upright).mean() < 12  # each file was compressed anew
    stored = Image.open(io.BytesIO(encode(turned, PixelOptions())))
    assert not stored.getexif()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated_jpeg.jpg", "the file is truncated"),
        ("truncated_image.png", "the file is truncated"),
        ("broken_data_stream.png", "the decoder refuses it"),
        ("png_decompression_dos.png", "the decoder refuses it"),
        ("16bit/monkey12.jpg", "no known image format|the decoder refuses it"),
    ],
)
def test_broken_files_have_a_reason_without_their_path(name: str, reason: str, real_data: Path) -> None:
    with pytest.raises(UndecodableImage, match=reason) as error:
        decode((real_data / "hard" / name).read_bytes(), 3)
    assert "/" not in str(error.value) and "0x" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("pil_sample_cmyk.jpg", (100, 100)),
        ("16bit/16bit.cropped.tif", None),
        ("16bit/16bit.deflate.tif", None),
        ("16bit/16bit.cropped.jp2", None),
        ("16bit/16bit.cropped.j2k", None),
        ("16bit/hopper_16bit.pgm", (128, 128)),
        ("16bit/monkey16.png", None),
        ("16bit/tiff_16bit_RGB.tiff", None),
    ],
)
def test_odd_files_decode_to_eight_bits(name: str, shape: tuple[int, int] | None, real_data: Path) -> None:
    pixels = decode((real_data / "hard" / name).read_bytes(), 3)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.std() > 0.4
    assert shape is None or pixels.shape[:2] == shape


def test_one_16_bit_image_in_four_containers(real_data: Path) -> None:
    names = ("cropped.tif", "deflate.tif", "cropped.jp2", "cropped.j2k")
    images = [decode((real_data / "hard/16bit" / f"16bit.{name}").read_bytes(), 1, bits=16) for name in names]
    assert images[0].dtype == np.uint16 and images[0].max() > 255
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[0], images[3])
    eight = decode((real_data / "hard/16bit/16bit.cropped.tif").read_bytes(), 1)
    np.testing.assert_array_equal(eight, np.rint(images[0] / 257))


def test_16_bit_rgb_tiff_equals_its_png(real_data: Path) -> None:
    folder = real_data / "hard/16bit"
    tiff = decode((folder / "tiff_16bit_RGB.tiff").read_bytes(), 3).astype(int)
    target = decode((folder / "tiff_16bit_RGB_target.png").read_bytes(), 3)
    assert np.abs(tiff - target).max() <= 1


@pytest.mark.parametrize(("data", "reason"), [(b"", "the file is empty"), (b"hello", "no known image format")])
def test_no_image_at_all(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode(data, 3)
    with pytest.raises(UndecodableImage, match="the file is missing"):
        read_file(tmp_path / "Jane Doe.png")


def test_reduction_averages_areas_and_never_enlarges(colours: np.ndarray) -> None:
    big = np.kron(colours[:10, :10, 0], np.ones((4, 4), np.uint8))
    np.testing.assert_array_equal(reduce(big, 10), colours[:10, :10, 0])
    assert reduce(colours, 64) is colours
    assert reduce(np.zeros((1000, 700), np.uint8), 256).shape == (366, 256)
    checker = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    assert set(np.unique(reduce(checker, 16))) <= {127, 128}  # no aliasing


@pytest.mark.parametrize("kind", ["png", "raw"])
def test_lossless_formats_give_the_pixels_back(kind: str, colours: np.ndarray) -> None:
    from shards.decoding import decode as decode_stored

    for channels, pixels in ((3, colours), (1, colours[..., 0])):
        data = encode(pixels, PixelOptions(channels, None, kind))  # type: ignore[arg-type]
        np.testing.assert_array_equal(decode_stored(data, kind, channels, 20, 30).squeeze(), pixels)


def test_chroma_and_quality_of_jpeg(colours: np.ndarray) -> None:
    smooth = cv2.resize(colours, (90, 60), interpolation=cv2.INTER_CUBIC)
    full, half = (encode(smooth, PixelOptions(3, None, chroma=c)) for c in ("4:4:4", "4:2:0"))  # type: ignore[arg-type]
    assert len(full) > len(half)
    assert (
        np.abs(decode(full, 3).astype(int) - smooth).mean() < np.abs(decode(half, 3).astype(int) - smooth).mean() < 16
    )
    assert encode(smooth, PixelOptions()) == encode(smooth, PixelOptions())


def test_a_whole_preparation(real_data: Path) -> None:
    photographs = sorted((real_data / "idrid-full").rglob("*.jpg"))
    pixels, data, *_ = prepare(photographs[0].read_bytes(), PixelOptions())
    assert pixels.shape == (256, 385, 3)
    assert Image.open(io.BytesIO(data)).size == (385, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"short_side": 4}, "outside 8..16384"),
        ({"format": "gif"}, "known: jpeg, png, htj2k, raw"),
        ({"quality": 0}, "outside 1..100"),
        ({"bits": 16, "channels": 1}, "lossless format"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PixelOptions(**options)  # type: ignore[arg-type]


def test_images_grow_only_where_they_are_told_to() -> None:
    data = saved(Image.fromarray(photograph(40, 60)), "PNG")
    assert prepare(data, PixelOptions(3, 80, "png")).pixels.shape == (40, 60, 3)
    grown = prepare(data, PixelOptions(3, 80, "png", enlarge=True))
    assert grown.pixels.shape == (80, 120, 3)
    judge = np.asarray(Image.fromarray(photograph(40, 60)).resize((120, 80), Image.Resampling.BICUBIC), float)
    assert np.abs(grown.pixels[4:-4, 4:-4] - judge[4:-4, 4:-4]).mean() < 2
    assert prepare(data, PixelOptions(3, 20, "png", enlarge=True)).pixels.shape == (20, 30, 3)
    assert "enlarge" not in PixelOptions().recorded() and PixelOptions(enlarge=True).recorded()["enlarge"] is True
    with pytest.raises(ValueError, match="--enlarge grows images to --short-side"):
        PixelOptions(3, None, enlarge=True)
    narrow = saved(Image.fromarray(photograph(1, 60)), "PNG")
    with pytest.raises(UndecodableImage, match="more than 268435456 pixels once it is enlarged"):
        prepare(narrow, PixelOptions(3, 4000, enlarge=True))


def test_every_hard_file_has_one_outcome(real_data: Path) -> None:
    """Those of images; tests/test_tarscan.py has the tars."""
    refused = {"truncated_jpeg.jpg", "truncated_image.png", "broken_data_stream.png", "png_decompression_dos.png"}
    refused.add("16bit/monkey12.jpg")
    root, outcomes = real_data / "hard", {}
    for path in sorted(path for path in root.rglob("*.*") if path.parent.name != "tar" and path.suffix != ".txt"):
        try:
            outcomes[path.relative_to(root).as_posix()] = prepare(read_file(path), PixelOptions(3, 64)).pixels.shape
        except UndecodableImage:
            outcomes[path.relative_to(root).as_posix()] = ()
    assert {name for name, shape in outcomes.items() if not shape} == refused
    assert len(outcomes) == 23
    upright = {shape for name, shape in outcomes.items() if name.startswith("exif/")}
    assert upright == {(64, 96, 3)}
