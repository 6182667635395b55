"""JPEGs decoded at a half, a quarter or an eighth end as the whole ones do, within the stated tolerance."""

from pathlib import Path

import numpy as np
import pytest
from pictures import photograph, saved
from PIL import Image, JpegImagePlugin

from prep.images import PixelOptions, UndecodableImage, decode, prepare, reduce


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


def test_a_truncated_jpeg_is_refused_at_a_part_too() -> None:
    data = saved(Image.fromarray(photograph(400, 500)), "JPEG")
    with pytest.raises(UndecodableImage, match="the file is truncated"):
        prepare(data[: len(data) // 2], PixelOptions(3, 50))


@pytest.mark.parametrize("short_side", [128, 256])
def test_real_photographs_at_a_part(short_side: int, real_data: Path) -> None:
    paths = sorted((real_data / "idrid-full").rglob("*.jpg"))[:2]
    assert len(paths) == 2
    for path in paths:
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
