"""The size that the first bytes of a stored image tell, for a decoder that does not hold it against the index."""

import struct

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # tables and a reserved code stand between
ALONE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length


def misfit(data: bytes | memoryview, encoding: str, height: int, width: int, pixel_bytes: int) -> str | None:
    """Why stored bytes are no image of height x width pixels, as far as can be told without decoding; None if they may.

    pixel_bytes: bytes of a pixel, for images that are stored as they are.
    """
    if encoding == "raw":
        wanted = height * width * pixel_bytes
        return None if len(data) == wanted else f"raw image has {len(data)} bytes, {height} x {width} needs {wanted}"
    found = size_of(data)
    if found is None or found == (height, width):
        return None
    return f"decodes to {found[0]} x {found[1]}, the index says {height} x {width}"


def size_of(data: bytes | memoryview) -> tuple[int, int] | None:
    """Height and width of a JPEG (ITU T.81, B.2) or PNG, pixels; None of anything else, and of a damaged header."""
    if data[:2] == b"\xff\xd8":
        return _of_jpeg(data)
    if data[:8] == PNG_SIGNATURE and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    return None


def _of_jpeg(data: bytes | memoryview) -> tuple[int, int] | None:
    at, end = 2, len(data) - 9
    while at < end and data[at] == 0xFF:
        code = data[at + 1]
        if code in START_OF_FRAME:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return height, width
        if code == 0xFF:  # a filling byte
            at += 1
        elif code in ALONE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
