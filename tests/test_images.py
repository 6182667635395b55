"""Pixels: every special case of a raw image has one defined result, or one clear reason."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from prep.images import PixelOptions, UndecodableImage, decode, encode, prepare, read_file, reduce


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


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


def test_too_many_pixels_are_refused_before_decoding() -> None:
    data = bytearray(saved(Image.new("1", (64, 64)), "BMP"))
    data[18:26] = (40_000).to_bytes(4, "little") + (40_000).to_bytes(4, "little")
    with pytest.raises(UndecodableImage, match="more than 268435456 pixels"):
        decode(bytes(data), 1)


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


def photograph(height: int, width: int) -> np.ndarray:
    """Structures of many sizes, edges and sensor noise, uint8[h, w, 3]."""
    rng = np.random.default_rng(0)
    image = np.zeros((height, width, 3))
    for cell in (8, 40, 200):
        coarse = rng.integers(0, 256, (-(-height // cell), -(-width // cell), 3), dtype=np.uint8)
        image += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) / 3.0
    cv2.circle(image, (width // 2, height // 2), height // 3, (250, 120, 20), 5)
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


def prepared_whole(data: bytes, options: PixelOptions) -> np.ndarray:
    return reduce(decode(data, options.channels), options.short_side)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """The stated tolerance."""
    assert found.shape == wanted.shape
    difference = np.abs(found.astype(int) - wanted)
    assert difference.mean() <= 1 and np.percentile(difference, 99) <= 4


@pytest.mark.parametrize(("height", "width"), [(1025, 771), (513, 1999)])
@pytest.mark.parametrize("more", [{}, {"progressive": True}, {"subsampling": 0}, {"mode": "L"}, {"mode": "CMYK"}])
def test_a_jpeg_decoded_at_a_part_is_the_whole_one_within_the_tolerance(
    height: int, width: int, more: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = str(more.get("mode", "RGB"))
    options = {name: value for name, value in more.items() if name != "mode"}
    data = saved(Image.fromarray(photograph(height, width)).convert(mode), "JPEG", quality=90, **options)
    asked: list[object] = []
    real = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(
        JpegImagePlugin.JpegImageFile, "draft", lambda self, *given: (asked.append(given), real(self, *given))[1]
    )
    for channels, short_side, scale in ((3, 32, 4), (1, 64, 2), (3, 16, 8)):
        asked.clear()
        wanted = PixelOptions(channels, short_side)  # type: ignore[arg-type]
        close(prepare(data, wanted).pixels, prepared_whole(data, wanted))
        assert asked == [(None, (width // scale, height // scale))]


def test_only_a_jpeg_that_is_reduced_much_and_not_cropped_is_decoded_at_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(photograph(400, 500))
    data = saved(picture, "JPEG")
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *_: pytest.fail("not wanted"))
    for options in (PixelOptions(3, 51), PixelOptions(3, None), PixelOptions(3, 50, crop="disc")):
        prepare(data, options)
    np.testing.assert_array_equal(
        prepare(saved(picture, "PNG"), PixelOptions(3, 50)).pixels, reduce(np.asarray(picture), 50)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_and_spacing_are_those_of_the_whole_picture(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for sides in ((333, 643), (336, 648)):
        data = saved(Image.fromarray(photograph(*sides)), "JPEG", quality=90, exif=exif)
        options = PixelOptions(3, 40)
        found = prepare(data, options, {"pixel_spacing_mm": 0.1})
        close(found.pixels, prepared_whole(data, options))
        height = sides[0] if orientation < 5 else sides[1]
        assert found.metadata["pixel_spacing_mm"] == pytest.approx(0.1 * height / found.pixels.shape[0])


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


def test_a_truncated_jpeg_is_refused_at_a_part_too() -> None:
    data = saved(Image.fromarray(photograph(400, 500)), "JPEG")
    with pytest.raises(UndecodableImage, match="the file is truncated"):
        prepare(data[: len(data) // 2], PixelOptions(3, 50))


@pytest.mark.parametrize("short_side", [128, 256])
def test_real_photographs_at_a_part(short_side: int, real_data: Path) -> None:
    for path in sorted((real_data / "idrid-full").rglob("*.jpg"))[:2]:
        data, options = path.read_bytes(), PixelOptions(3, short_side)
        close(prepare(data, options).pixels, prepared_whole(data, options))


def test_smaller_decodes_of_every_size_end_with_the_size_of_the_whole_picture() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        part, short_side = int(rng.choice([2, 4, 8])), int(rng.integers(8, 60))
        size = rng.integers(4 * part * short_side, 7 * part * short_side, 2)
        small = np.zeros(-(-size // part), np.uint8)
        wanted = reduce(np.zeros(size, np.uint8), short_side).shape
        assert reduce(small, short_side, tuple(size)).shape == wanted


def test_real_histology_at_a_part(real_data: Path) -> None:
    """The finest structures of all: at twice the short side they would be 11 levels off (99th percentile)."""
    import openslide

    slide = openslide.OpenSlide(str(real_data / "wsi" / "CMU-1-Small-Region.svs"))
    pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    data, options = saved(Image.fromarray(pixels), "JPEG", quality=92), PixelOptions(3, 256)
    close(prepare(data, options).pixels, prepared_whole(data, options))


MEASURED = """
import sys, cv2
from pathlib import Path
from prep.images import PixelOptions, prepare
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
cv2.setNumThreads(1)
small, large, options = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]).read_bytes(), PixelOptions(3, 64)
prepare(small, options)  # the decoders are loaded
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
prepare(large, options)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured by Linux")
@pytest.mark.parametrize(
    "kind", ["RGBA", "DICOM", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("P", "I;16"))]
)
def test_memory_is_eight_bytes_a_pixel_and_the_file(kind: str, tmp_path: Path) -> None:
    from test_dicom import written

    for name, side in (("small", 64), ("large", 4000)):
        values = np.zeros((side, side), np.uint16)
        values[::7] = 900
        if kind == "DICOM":
            data = written(values, WindowCenter=500, WindowWidth=800)
        else:
            mode = Image.fromarray(values) if kind == "I;16" else Image.new(kind, (side, side), 3)
            data = saved(mode, "PNG")
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "small"), str(tmp_path / "large")]
    grown = int(subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=True).stdout)
    file_bytes = (tmp_path / "large").stat().st_size
    assert grown < 8 * 4000**2 + 2 * file_bytes + (16 << 20)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "JPEG2000", "DICOM"])
def test_an_image_that_says_it_is_enormous_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """30,000 x 30,000 pixels, of which the file holds hardly any."""
    from test_dicom import written

    side = 30_000
    if kind == "DICOM":
        data = written(np.zeros((8, 8), np.uint8), Rows=side, Columns=side)
    else:
        data = saved(Image.new("L", (4, 4)), kind)
        old = {"PNG": (16, (4).to_bytes(4, "big")), "GIF": (6, (4).to_bytes(2, "little"))}
        if kind in old:
            place, number = old[kind]
            assert data[place : place + 2 * len(number)] == 2 * number
            order: Literal["big", "little"] = "big" if kind == "PNG" else "little"
            data = data[:place] + 2 * side.to_bytes(len(number), order) + data[place + 2 * len(number) :]
            if kind == "PNG":
                data = data[:29] + zlib.crc32(data[12:29]).to_bytes(4, "big") + data[33:]
        elif kind == "TIFF":
            for tag in (256, 257):  # width and height: LONG, one, value
                entry = struct.pack("<HHII", tag, 4, 1, 4)
                assert data.count(entry) == 1
                data = data.replace(entry, struct.pack("<HHII", tag, 4, 1, side))
        else:
            ihdr, siz = b"ihdr" + struct.pack(">II", 4, 4), struct.pack(">II", 4, 4)
            assert ihdr in data
            data = data.replace(ihdr, b"ihdr" + struct.pack(">II", side, side)).replace(
                siz, struct.pack(">II", side, side)
            )
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it began to decode"))
    with pytest.raises(UndecodableImage, match="more than 268435456 pixels"):
        prepare(data, PixelOptions(3, 256))


def test_a_file_that_is_enormous_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.dcm").open("wb") as file:
        file.truncate((1 << 31) + 1)
    with pytest.raises(UndecodableImage, match="the file has more than 2147483648 bytes"):
        read_file(tmp_path / "a.dcm")


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
