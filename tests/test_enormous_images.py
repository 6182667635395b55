"""Enormous images: refused by what they say of themselves, and the memory that large ones take."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from pictures import saved
from PIL import Image
from test_dicom import written

from prep.images import PixelOptions, UndecodableImage, decode, prepare, read_file


def test_too_many_pixels_are_refused_before_decoding() -> None:
    data = bytearray(saved(Image.new("1", (64, 64)), "BMP"))
    data[18:26] = (40_000).to_bytes(4, "little") + (40_000).to_bytes(4, "little")
    with pytest.raises(UndecodableImage, match="more than 268435456 pixels"):
        decode(bytes(data), 1)


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
