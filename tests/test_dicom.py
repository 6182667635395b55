"""DICOM: every real file gives the right picture or one clear line."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest

from prep.convert import convert
from prep.dicom import frames_of
from prep.images import PixelOptions, UndecodableImage, decode, prepare
from prep.planning import ConvertOptions
from prep.sources.own_table import TableColumns, table_dataset
from shards.shardset import ShardSet


def written(values: np.ndarray, **fields: object) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = fields.pop("syntax", ExplicitVRLittleEndian)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.2", "1.2.3"
    data = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = 8 * values.itemsize
    data.BitsStored, data.HighBit = 12 if values.itemsize == 2 else 8, 11 if values.itemsize == 2 else 7
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.PixelData = values.tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture
def ramp() -> np.ndarray:
    return np.linspace(0, 4095, 64 * 48).astype(np.uint16).reshape(48, 64)


def test_full_range_and_inversion(ramp: np.ndarray) -> None:
    plain = decode(written(ramp), 1)
    np.testing.assert_array_equal(plain, np.rint(ramp / 4095 * 255))
    np.testing.assert_array_equal(decode(written(ramp, PhotometricInterpretation="MONOCHROME1"), 1), 255 - plain)


def test_windows(ramp: np.ndarray) -> None:
    for kind, low, high in (("LINEAR", 1000, 1999), ("LINEAR_EXACT", 1000, 2000)):
        shown = decode(written(ramp, WindowCenter=1500, WindowWidth=1000, VOILUTFunction=kind), 1)
        assert shown[ramp <= low].max() == 0 and shown[ramp >= high].min() == 255
    sigmoid = decode(written(ramp, WindowCenter=[2048, 9], WindowWidth=[1000, 9], VOILUTFunction="SIGMOID"), 1)
    assert sigmoid[np.abs(ramp.astype(int) - 2048) < 2].mean() == pytest.approx(127.5, abs=1)


def test_a_look_up_table_goes_before_the_window_on_every_line() -> None:
    from pydicom.dataset import Dataset

    values = (
        np.random.default_rng(0).integers(0, 4096, (700, 31)).astype(np.uint16)
    )  # more lines than are shown at once
    table = np.sort(np.random.default_rng(1).integers(0, 1024, 4096)).astype(np.uint16)
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4096, 0, 10], table.tobytes()
    data = written(values, VOILUTSequence=[item], WindowCenter=40, WindowWidth=400)
    np.testing.assert_array_equal(decode(data, 1), np.rint(table[values] / 1023 * 255))


def test_signed_values_and_rescale(ramp: np.ndarray) -> None:
    signed = (ramp.astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_array_equal(decode(written(signed), 1), decode(written(ramp), 1))
    window = {"WindowCenter": 40, "WindowWidth": 400, "RescaleIntercept": -1024, "RescaleSlope": 1}
    shown = decode(written(ramp, **window), 1)
    assert shown[ramp <= 864].max() == 0 and shown[ramp >= 1264].min() == 255


def test_16_bits_keep_the_stored_values(ramp: np.ndarray) -> None:
    window = {"WindowCenter": 40, "WindowWidth": 400}
    np.testing.assert_array_equal(decode(written(ramp, **window), 1, bits=16), ramp)
    inverted = decode(written(ramp, PhotometricInterpretation="MONOCHROME1"), 1, bits=16)
    np.testing.assert_array_equal(inverted, 4095 - ramp)


def test_padding_and_high_bits_and_frames(ramp: np.ndarray) -> None:
    ramp[:5] = 4095
    shown = decode(written(ramp, PixelPaddingValue=4095, PhotometricInterpretation="MONOCHROME1"), 1)
    assert shown[:5].max() == 0 and shown[10].min() > 100
    np.testing.assert_array_equal(decode(written(ramp | 0xF000), 1), decode(written(ramp), 1))
    frames = np.stack([ramp, ramp[::-1]])
    np.testing.assert_array_equal(decode(written(frames, NumberOfFrames=2), 1), decode(written(ramp), 1))


def test_files_with_several_frames_are_counted_and_give_their_first(ramp: np.ndarray, tmp_path: Path) -> None:
    frames = np.stack([ramp, ramp[::-1], ramp[::-1]])
    for name, data in (("a", written(ramp)), ("b", written(frames, NumberOfFrames=3)), ("c", written(ramp[:, ::-1]))):
        (tmp_path / f"{name}.dcm").write_bytes(data)
    (tmp_path / "labels.csv").write_text("path,label\na.dcm,0\nb.dcm,1\nc.dcm,0\n")
    dataset = table_dataset("mine", TableColumns(tmp_path / "labels.csv"), channels=1)
    options = ConvertOptions(pixels=PixelOptions(1, None, "png"), split="none", quiet=True)
    manifest, _ = convert(dataset, tmp_path, tmp_path / "set", options)
    (told,) = [warning for warning in manifest.warnings if "frames" in warning]
    assert told.startswith("1 DICOM files have several frames, of which the first alone is stored: write")
    split = ShardSet(tmp_path / "set").split("train")
    images = [decode(split.read(position), 1) for position in range(3)]
    first = decode(written(ramp), 1)
    assert sum(np.array_equal(image, first) for image in images) == 2  # the plain file and the one of three


def test_broken_files_tell_nothing_of_the_header(ramp: np.ndarray) -> None:
    data = written(ramp, PatientName="DOE^JANE", WindowCenter="1", WindowWidth="2")
    with pytest.raises(UndecodableImage, match=r"no decoder for DICOM Explicit VR Little Endian, 12 bits") as error:
        decode(data[:2000], 1)
    assert "DOE" not in str(error.value)
    with pytest.raises(UndecodableImage, match=r"without pixels|broken DICOM header"):
        decode(data[:200], 1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mg-jpeg-lossless-12bit.dcm", (3062, 2394)),
        ("mg-j2k-12bit.dcm", (4664, 3064)),
        ("mg-spot-overlay-outside.dcm", (788, 1318)),
        ("dx-monochrome1-12bit.dcm", (2128, 2000)),
        ("cr-monochrome2.dcm", (1024, 1024)),
    ],
)
def test_real_files(name: str, shape: tuple[int, int], real_data: Path) -> None:
    pixels = decode((real_data / "dicom" / name).read_bytes(), 1)
    assert pixels.dtype == np.uint8 and pixels.shape == shape
    assert pixels.std() > 20 and pixels.max() > 200 and pixels.min() < 40


def test_the_two_chest_files_are_equal_after_inversion(real_data: Path) -> None:
    plain, relabelled = (
        decode((real_data / "dicom" / name).read_bytes(), 1)
        for name in ("cr-monochrome2.dcm", "cr-relabelled-monochrome1.dcm")
    )
    np.testing.assert_array_equal(plain, 255 - relabelled)


def test_the_undecodable_one_is_named_by_its_syntax(real_data: Path) -> None:
    data = (real_data / "dicom" / "mg-jpeg-extended-12bit-undecodable.dcm").read_bytes()
    with pytest.raises(UndecodableImage, match=r"no decoder for DICOM JPEG Extended \(Process 2 and 4\), 12 bits"):
        decode(data, 1)


def own(name: str) -> bytes:
    """A test file that pydicom's wheel brings."""
    from pydicom.data import get_testdata_file

    return Path(str(get_testdata_file(name, download=False))).read_bytes()


@pytest.mark.parametrize(
    ("plain", "packed"),
    [
        ("MR_small.dcm", ["_RLE", "_jp2klossless", "_jpeg_ls_lossless", "_bigendian", "_expb", "_implicit", "_padded"]),
        ("SC_rgb_rle.dcm", ["_16bit", "_16bit_2frame", "_2frame", "_32bit", "_32bit_2frame"]),
        ("SC_rgb_small_odd.dcm", ["_big_endian", "_jpeg"]),
        ("rtdose.dcm", ["_expb", "_rle", "_1frame", "_rle_1frame"]),
    ],
)
def test_the_same_picture_in_every_transfer_syntax(plain: str, packed: list[str]) -> None:
    wanted = decode(own(plain), 1)
    for suffix in packed:
        np.testing.assert_array_equal(decode(own(plain.replace(".dcm", f"{suffix}.dcm")), 1), wanted)
    for lossless in ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_gdcm_KY.dcm") if plain == "SC_rgb_rle.dcm" else ():
        np.testing.assert_array_equal(decode(own(lossless), 3), decode(own(plain), 3))


def test_lossy_colour_is_the_colour_of_the_plain_file() -> None:
    wanted = decode(own("SC_rgb_rle.dcm"), 3).astype(int)
    for name in (
        "SC_rgb_dcmtk_+eb+cy+n1",
        "SC_rgb_jpeg_dcmtk",
        "SC_rgb_jls_lossy_line",
        "SC_ybr_full_422_uncompressed",
    ):
        assert np.abs(decode(own(f"{name}.dcm"), 3).astype(int) - wanted).mean() < 8, name


def test_every_named_transfer_syntax_has_a_decoder() -> None:
    from pydicom import uid
    from pydicom.pixels import get_decoder

    names = "JPEGBaseline8Bit JPEGExtended12Bit JPEGLossless JPEGLosslessSV1 JPEGLSLossless JPEGLSNearLossless"
    names += " JPEG2000Lossless JPEG2000 HTJ2KLossless HTJ2KLosslessRPCL HTJ2K RLELossless"
    assert all(get_decoder(getattr(uid, name)).is_available for name in names.split())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "no decoder for DICOM Explicit VR Little Endian, 16 bits"),
        ("JPGExtended.dcm", r"no decoder for DICOM JPEG Extended \(Process 2 and 4\), 12 bits"),
        ("rtplan.dcm", "a DICOM file without pixels"),
        ("meta_missing_tsyntax.dcm", "no decoder for DICOM unknown"),
    ],
)
def test_what_cannot_be_shown_is_told(name: str, reason: str) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode(own(name), 1)


def test_deep_colour_keeps_its_high_bits() -> None:
    deep = np.random.default_rng(0).integers(0, 1 << 16, (5, 6, 3)).astype(np.uint16)
    from pydicom import dcmread

    header = dcmread(io.BytesIO(written(deep[..., 0], SamplesPerPixel=3, PhotometricInterpretation="RGB")))
    header.PlanarConfiguration, header.BitsStored, header.HighBit, header.PixelData = 0, 16, 15, deep.tobytes()
    buffer = io.BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    np.testing.assert_array_equal(decode(buffer.getvalue(), 3), deep >> 8)


@pytest.mark.parametrize(("entry_bits", "scale"), [(16, 257), (8, 1)])
def test_palettes_of_both_depths_give_their_colours(entry_bits: int, scale: int) -> None:
    """Ultrasound's: 8-bit numbers into tables whose entries have 16 bits, or 8 in 16 allocated."""
    colours = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint16)
    numbers = np.arange(256, dtype=np.uint8).reshape(8, 32)
    tables = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, column in zip(("Red", "Green", "Blue"), colours.T, strict=True):
        tables[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, entry_bits]
        tables[f"{name}PaletteColorLookupTableData"] = (column * scale & (0xFF00 if scale > 1 else 0xFF)).tobytes()
    np.testing.assert_array_equal(decode(written(numbers, **tables), 3), colours[numbers])


def test_sixteen_bits_take_neither_colour_nor_more() -> None:
    colour = {
        "PhotometricInterpretation": "RGB",
        "SamplesPerPixel": 3,
        "PlanarConfiguration": 0,
        "Rows": 8,
        "Columns": 9,
    }
    wide = {"BitsStored": 32, "HighBit": 31}
    cases = [(np.zeros((8, 9, 3), np.uint8), colour), (np.full((8, 9), 1 << 20, np.uint32), wide)]
    for values, header in cases:
        data = written(values, **header)
        assert prepare(data, PixelOptions(1, None, "png")).pixels.dtype == np.uint8
        with pytest.raises(UndecodableImage, match="neither is kept in 16 bits of grey"):
            prepare(data, PixelOptions(1, None, "png", bits=16))


def test_burned_in_text_is_refused_though_the_number_of_frames_cannot_be_read(ramp: np.ndarray) -> None:
    data = written(ramp, NumberOfFrames=77, BurnedInAnnotation="YES")
    assert data.count(b"IS\2\x0077") == 1
    broken = data.replace(b"IS\2\x0077", b"IS\2\0x?")
    assert frames_of(broken, "keep") == 1
    with pytest.raises(UndecodableImage, match="text is burned into the pixels"):
        frames_of(broken, "refuse")
