"""Lossless codecs for 16-bit images: size, and CPU seconds of encoding and decoding, on real DICOM files.

    python benchmarks/codecs.py [--data ../shared/data/dicom] [--short-side 512] [--rounds 5]

Needs nothing but the project for PNG, JPEG 2000 and zstd; HTJ2K is measured where `imagecodecs` is installed (no other
package of PyPI encodes it on a CPU), DALI's decoding where DALI is. Prints a table; every decoder must give back the
same values. CPU seconds (user and system) of this process, the least of --rounds, all codecs in turn in each round.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zstandard
from PIL import Image

from prep.images import UndecodableImage, decode, reduce

Code = Callable[[np.ndarray], bytes]
Decode = Callable[[bytes, np.ndarray], np.ndarray]


def opencv(data: bytes, like: np.ndarray) -> np.ndarray:
    """PNG and JPEG 2000 by OpenCV, as the loader decodes them on the host."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)


def png(level: int) -> Code:
    """Encode as PNG of a compression level."""
    return lambda image: cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])[1].tobytes()


def jpeg2000(image: np.ndarray) -> bytes:
    """Encode as reversible JPEG 2000, by OpenJPEG through Pillow."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG2000", irreversible=False)
    return buffer.getvalue()


def zstd(level: int) -> tuple[Code, Decode]:
    """Raw rows packed by zstd."""
    packer, unpacker = zstandard.ZstdCompressor(level=level), zstandard.ZstdDecompressor()
    return lambda image: packer.compress(image.tobytes()), lambda data, like: np.frombuffer(
        unpacker.decompress(data), np.uint16
    ).reshape(like.shape)


def dali() -> Decode:
    """Decoding by DALI on one thread, for any codec that it knows."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def graph() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, output_type=types.GRAY, dtype=types.UINT16)

    pipe = graph()
    pipe.build()

    def run(data: bytes, like: np.ndarray) -> np.ndarray:
        pipe.feed_input("encoded", [np.frombuffer(data, np.uint8)])
        return np.asarray(pipe.run()[0].at(0))[:, :, 0]

    return run


def codecs() -> dict[str, tuple[Code, Decode]]:
    """Name to (encode, decode) of all that are installed."""
    found: dict[str, tuple[Code, Decode]] = {
        "raw": (lambda image: image.tobytes(), lambda data, like: np.frombuffer(data, np.uint16).reshape(like.shape)),
        "raw + zstd 3": zstd(3),
        "PNG 1": (png(1), opencv),
        "PNG 4": (png(4), opencv),
        "JPEG 2000": (jpeg2000, opencv),
    }
    try:
        import imagecodecs  # type: ignore[import-not-found]

        def encode(image: np.ndarray) -> bytes:
            return bytes(imagecodecs.htj2k_encode(image, reversible=True))

        found["HTJ2K (OpenJPH)"] = encode, lambda data, like: imagecodecs.htj2k_decode(data)
        found["HTJ2K, OpenCV"] = encode, opencv
    except ImportError:
        print("imagecodecs is not installed: HTJ2K is left out")
    try:
        found |= {f"{name}, DALI": (found[name][0], dali()) for name in ("PNG 4", "JPEG 2000")}
        if "HTJ2K (OpenJPH)" in found:
            found["HTJ2K, DALI"] = (found["HTJ2K (OpenJPH)"][0], dali())
    except ImportError:
        print("DALI is not installed: its decoders are left out")
    return found


def images(folder: Path, short_side: int | None) -> dict[str, np.ndarray]:
    """Every DICOM file of the folder that decodes, 16 bit, as it would be stored."""
    found = {}
    for path in sorted(folder.glob("*.dcm")):
        try:
            found[path.stem] = reduce(decode(path.read_bytes(), 1, bits=16), short_side)
        except UndecodableImage as error:
            print(f"{path.name}: {error}")
    return found


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main(args: argparse.Namespace) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    given = images(args.data, args.short_side or None)
    pixels = sum(image.size for image in given.values())
    known = codecs()
    packed = {name: {key: code(image) for key, image in given.items()} for name, (code, _) in known.items()}
    for name, (_, unpack) in known.items():
        for key, image in given.items():
            assert np.array_equal(unpack(packed[name][key], image), image), f"{name} loses values of {key}"
    best = {name: [np.inf, np.inf] for name in known}
    for _ in range(args.rounds):
        for name, (code, unpack) in known.items():
            took = (
                seconds(lambda code=code: [code(image) for image in given.values()]),  # type: ignore[misc]
                seconds(lambda n=name, u=unpack: [u(packed[n][key], image) for key, image in given.items()]),  # type: ignore[misc]
            )
            best[name] = [min(a, b) for a, b in zip(best[name], took, strict=True)]
    print(f"{len(given)} images, {pixels / 1e6:.1f} megapixels, least of {args.rounds} rounds, CPU ms a megapixel")
    print(f"| {'codec':18} | bits a pixel | encode | decode |\n|---|---|---|---|")
    for name, (encode_s, decode_s) in best.items():
        bits = 8 * sum(len(data) for data in packed[name].values()) / pixels
        print(f"| {name:18} | {bits:.2f} | {encode_s * 1e9 / pixels:.1f} | {decode_s * 1e9 / pixels:.1f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/dicom"))
    parser.add_argument("--short-side", type=int, default=512, help="as stored; 0 keeps the size")
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
