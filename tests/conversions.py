"""Conversions of a small phantom dataset; conftest.py has its raw folder."""

import hashlib
import sys
from pathlib import Path

from prep.convert import convert
from prep.images import PixelOptions
from prep.phantoms import SALT_NAME
from prep.planning import ConvertOptions
from prep.sources import DATASETS
from shards.manifest import Manifest

DDSM = DATASETS["DDSM"]
OPTIONS = ConvertOptions(pixels=PixelOptions(1, 48), shard_samples=8, quiet=True)


def make(raw: Path, out: Path, options: ConvertOptions = OPTIONS) -> Manifest:
    """Convert a raw folder of DDSM with its own salt; the manifest."""
    return convert(DDSM, raw, out, options, raw / SALT_NAME)[0]


def command(raw: Path, out: Path) -> list[str]:
    """The command line that converts a raw folder of DDSM."""
    return [sys.executable, "prep/make_shards.py", "--dataset", "DDSM", "--raw", str(raw), "--out", str(out)]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def stop(*_: object) -> None:
    """What Ctrl-C does, in the place of a function."""
    raise KeyboardInterrupt


def images(raw: Path) -> list[Path]:
    """The raw images of a DDSM folder, sorted."""
    return sorted((raw / "ddsm_raw").iterdir())
