"""Both executors against what others make of the same draws, on real photographs: the table of docs/parity.md.

    python benchmarks/parity.py FOLDER [FOLDER …] [--slide FILE.svs] [--write docs/parity.md]

Reads JPEG photographs (at most --images a folder), draws each operator's parameters as training does, and compares
levels of 0..255 after the operator: mean, 99th percentile and most, in the interior and on the outermost three pixels
apart. `--write` puts the table between the marks of a page.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openslide
from oracle import by_others
from PIL import Image, ImageFilter
from skimage.color import rgb2hed

from shards.chain import Transform
from shards.colours import ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.dali_executor import DaliExecutor
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.levels import Clahe, Gamma
from shards.operators import (
    CenterCrop,
    Erasing,
    HorizontalFlip,
    Normalize,
    Operator,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    VerticalFlip,
)
from shards.policies import RandAugment, TrivialAugment
from shards.stains import StainJitter
from shards.warps import Affine, Perspective, Rotation

BORDER = 3  # pixels
MARKS = ("<!-- table: benchmarks/parity.py -->", "<!-- end of table -->")
CUT = CenterCrop(224)
AFFINE: dict[str, Any] = {"degrees": (-45, 45), "translate": (0.1, 0.2), "scale": (0.8, 1.2), "shear": (-10, 10, -5, 5)}
CASES: dict[str, tuple[Operator, ...]] = {
    "decode, CenterCrop": (CUT,),
    "RandomCrop, padded": (RandomCrop(224, 16),),
    "Resize, short side to 180": (Resize(180), CenterCrop(160)),
    "Resize, squashed to 180": (Resize((180, 180)), CenterCrop(160)),
    "Resize of evaluation, short side to 180": (Resize(180, rounded=False), CenterCrop(160)),
    "Resize of evaluation, squashed to 180": (Resize((180, 180), rounded=False),),
    "RandomResizedCrop": (RandomResizedCrop(224),),
    "RandomResizedCrop, bicubic (MultiCrop)": (RandomResizedCrop(224, interpolation="bicubic"),),
    "… to 96, scale .05 to .4": (RandomResizedCrop(96, (0.05, 0.4), interpolation="bicubic"),),
    "HorizontalFlip, VerticalFlip": (CUT, HorizontalFlip(), VerticalFlip()),
    "Rotate90": (CUT, Rotate90()),
    "Rotation, nearest": (CUT, Rotation(degrees=(-45, 45))),
    "Rotation, bilinear": (CUT, Rotation(degrees=(-45, 45), interpolation="bilinear")),
    "Affine, nearest": (CUT, Affine(**AFFINE)),
    "Affine, bilinear": (CUT, Affine(interpolation="bilinear", **AFFINE)),
    "Perspective, nearest": (CUT, Perspective(1.0, interpolation="nearest")),
    "Perspective, bilinear": (CUT, Perspective(1.0)),
    "brightness": (CUT, ColorJitter(brightness=0.4)),
    "contrast": (CUT, ColorJitter(contrast=0.4)),
    "saturation": (CUT, ColorJitter(saturation=0.4)),
    "hue": (CUT, ColorJitter(hue=0.5)),
    "ColorJitter, the study's": (CUT, ColorJitter(1.0, 0.2, 0.2, 0.1, 0.1)),
    "Grayscale": (CUT, Grayscale(1.0)),
    "GaussianBlur": (CUT, GaussianBlur()),
    "Solarize": (CUT, Solarize(1.0)),
    "Gamma": (CUT, Gamma()),
    "Clahe": (CUT, Clahe(1.0)),
    "TrivialAugment": (CUT, TrivialAugment()),
    "RandAugment": (CUT, RandAugment()),
    "Erasing": (CUT, Erasing(1.0)),
}


class Apart(NamedTuple):
    """Differences in levels; `share` of the pixels differ by more than one."""

    mean: float
    p99: float
    most: float
    share: float

    def text(self) -> str:
        """A cell of the table."""
        if self.most < 0.01:
            return "exact"
        return f"{self.mean:.2f} / {self.p99:.0f} / {self.most:.0f} ({100 * self.share:.2f} %)"


def parts(difference: np.ndarray) -> list[Apart]:
    """Interior and border of [b, C, H, W]."""
    border = np.ones(difference.shape[2:], bool)
    border[BORDER:-BORDER, BORDER:-BORDER] = False
    found = []
    for where in (~border, border):
        apart = np.abs(difference[:, :, where])
        found.append(
            Apart(
                float(apart.mean()), float(np.quantile(apart, 0.99)), float(apart.max()), float((apart > 1.01).mean())
            )
        )
    return found


def compare(operators: tuple[Operator, ...], encoded: list[bytes], seed: int = 0) -> dict[str, list[Apart]]:
    """Executor -> interior and border."""
    images = [np.array(Image.open(io.BytesIO(data)).convert("RGB")) for data in encoded]
    end = Normalize((0.0,) * 3, (1.0,) * 3)
    last = [op for op in operators if isinstance(op, Erasing)]
    transform = Transform((*(op for op in operators if op not in last), end, *last))
    sizes, zeros = np.array([image.shape[:2] for image in images]), np.zeros(len(images), np.int64)
    drawn = transform.draw(DrawKeys(seed, zeros, np.arange(len(images), dtype=np.uint64), zeros), *sizes.T)
    wanted = 255 * by_others(images, drawn).numpy()
    found = {}
    for name in ("host", "dali"):
        executor: Any = HostExecutor(transform) if name == "host" else DaliExecutor(transform, batch=len(images))
        pixels, failures = executor.run(encoded, ["jpeg"] * len(images), sizes, drawn)
        executor.close()
        assert not failures, failures
        found[name] = parts(255 * pixels.numpy() - wanted)
    return found


def pillow_blur(encoded: list[bytes]) -> list[Apart]:
    """Our Gaussian against Pillow's of the same radius, which is three boxes: radii of the study's range."""
    apart = []
    for i, data in enumerate(encoded):
        image = Image.open(io.BytesIO(data)).convert("RGB").crop((0, 0, 224, 224))
        radius = 0.1 + 1.9 * (i + 0.5) / len(encoded)
        transform = Transform(
            (CenterCrop(224), GaussianBlur(1.0, 23, (radius, radius)), Normalize((0.0,) * 3, (1.0,) * 3))
        )
        sizes, zeros = np.array([[224, 224]]), np.zeros(1, np.int64)
        executor = HostExecutor(transform)
        drawn = transform.draw(DrawKeys(0, zeros, np.zeros(1, np.uint64), zeros), *sizes.T)
        pixels, _ = executor.run([np.array(image).tobytes()], ["raw"], sizes, drawn)
        executor.close()
        theirs = np.array(image.filter(ImageFilter.GaussianBlur(radius))).transpose(2, 0, 1)
        apart.append(255 * pixels.numpy()[0] - theirs)
    return parts(np.stack(apart))


def stains(slide: Path) -> dict[str, list[Apart]]:
    """Tiles of a real slide, where no stain of scikit-image's is below 0: it cuts those off, ours go through."""
    with openslide.OpenSlide(str(slide)) as opened:
        across, down = (side // 224 for side in opened.dimensions)
        tiles = [
            np.array(opened.read_region((224 * x, 224 * y), 0, (224, 224)).convert("RGB"))
            for y in range(down)
            for x in range(across)
        ]
    transform = Transform((CUT, StainJitter(), Normalize((0.0,) * 3, (1.0,) * 3)))
    sizes, zeros = np.full((len(tiles), 2), 224), np.zeros(len(tiles), np.int64)
    drawn = transform.draw(DrawKeys(0, zeros, np.arange(len(tiles), dtype=np.uint64), zeros), *sizes.T)
    wanted = 255 * by_others(tiles, drawn).numpy()
    shift = drawn["StainJitter"]["beta"][:, None, None] / -np.log(1e-6)
    amounts = np.stack([rgb2hed(tile) for tile in tiles])
    inside = ((amounts > 0) & (amounts * drawn["StainJitter"]["alpha"][:, None, None] + shift > 0)).all(axis=3)
    found = {}
    for name in ("host", "dali"):
        executor: Any = (
            HostExecutor(transform) if name == "host" else DaliExecutor(transform, batch=len(tiles), raw=True)
        )
        pixels, failures = executor.run([tile.tobytes() for tile in tiles], ["raw"] * len(tiles), sizes, drawn)
        executor.close()
        assert not failures, failures
        found[name] = parts(np.where(inside[:, None], 255 * pixels.numpy() - wanted, 0))
    print(f"stains: {100 * inside.mean():.0f} % of the pixels of {len(tiles)} tiles compared")
    return found


def table(encoded: list[bytes], slide: Path | None) -> str:
    """The rows, as Markdown."""
    lines = [
        "| operator | host, interior | host, border | DALI, interior | DALI, border |",
        "|---|---|---|---|---|",
    ]
    for name, operators in CASES.items():
        found = compare(operators, encoded)
        cells = [part.text() for executor in ("host", "dali") for part in found[executor]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if slide is not None:
        found = stains(slide)
        cells = [part.text() for executor in ("host", "dali") for part in found[executor]]
        lines.append(f"| StainJitter, on a slide | {' | '.join(cells)} |")
    inside, border = pillow_blur(encoded)
    lines.append(f"| GaussianBlur against Pillow's | {inside.text()} | {border.text()} | | |")
    return "\n".join(lines)


def photographs(folders: Sequence[Path], most: int) -> list[bytes]:
    """JPEGs of at least 224 pixels a side, so many of each folder."""
    found = []
    for folder in folders:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:most]
        found += [path.read_bytes() for path in paths]
    return [data for data in found if min(Image.open(io.BytesIO(data)).size) >= 224]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of JPEG photographs")
    parser.add_argument("--images", type=int, default=12, help="of each folder (default 12)")
    parser.add_argument("--slide", type=Path, help="a whole-slide image, for the stains")
    parser.add_argument("--write", type=Path, help="the page whose table is replaced")
    o = parser.parse_args()
    encoded = photographs(o.folders, o.images)
    if not encoded:
        parser.error(f"no JPEG of at least 224 pixels a side under {', '.join(map(str, o.folders))}")
    made = f"{len(encoded)} photographs\n\n{table(encoded, o.slide)}"
    if o.write is not None:
        before, _, rest = o.write.read_text().partition(MARKS[0])
        after = rest.partition(MARKS[1])[2]
        o.write.write_text(f"{before}{MARKS[0]}\n\n{made}\n\n{MARKS[1]}{after}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
