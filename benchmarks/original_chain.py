"""What storing at a short side costs against the study's chain from the original file, in levels of 0..255.

    python benchmarks/original_chain.py FOLDER [--images 16] [--short-sides 256 512]

The study: Pillow opens the original, torchvision squashes to 256 x 256 and crops, on Pillow images. Ours: the image as
`prep` stores it (area-averaged to a short side, JPEG), then preset `study`'s resize and crop by the host executor, with
the same windows. Evaluation is the squash, in floats, and the central 224; training the window and its resize.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import functional

from prep.images import PixelOptions, prepare
from shards.chain import Transform
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.operators import CenterCrop, Normalize, RandomResizedCrop, Resize

END = Normalize((0.0,) * 3, (1.0,) * 3)
CHAINS = {
    "evaluation": Transform((Resize((256, 256), rounded=False), CenterCrop(224), END)),
    "training": Transform((Resize((256, 256)), RandomResizedCrop(224, (0.8, 1.2)), END)),
}


def main() -> int:
    """Print one line a short side and chain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of large JPEG originals")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--short-sides", type=int, nargs="+", default=[256, 512])
    o = parser.parse_args()
    paths = sorted(path for path in o.folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[: o.images]
    if not paths:
        parser.error(f"no JPEG under {o.folder}")
    apart: dict[tuple[int, str], list[np.ndarray]] = {}
    for i, path in enumerate(paths):
        data = path.read_bytes()
        squashed = functional.resize(Image.open(io.BytesIO(data)).convert("RGB"), [256, 256])
        for short_side in o.short_sides:
            stored = prepare(data, PixelOptions(short_side=short_side))
            for name, chain in CHAINS.items():
                sizes, zeros = np.array([stored.pixels.shape[:2]]), np.zeros(1, np.int64)
                drawn = chain.draw(DrawKeys(0, zeros, np.array([i], np.uint64), zeros), *sizes.T)
                executor = HostExecutor(chain, threads=1)
                ours, failures = executor.run([stored.encoded], ["jpeg"], sizes, drawn)
                executor.close()
                assert not failures, failures
                if name == "evaluation":
                    theirs = functional.center_crop(squashed, [224, 224])
                else:
                    theirs = functional.resized_crop(squashed, *drawn["RandomResizedCrop"]["window"][0], [224, 224])
                difference = 255 * ours[0].numpy().transpose(1, 2, 0) - np.asarray(theirs, np.float32)
                apart.setdefault((short_side, name), []).append(np.abs(difference))
    for (short_side, name), found in apart.items():
        all_of_it = np.stack(found)
        print(
            f"stored at {short_side} px, {name}: mean {all_of_it.mean():.2f}, 99th percentile "
            f"{np.quantile(all_of_it, 0.99):.0f}, most {all_of_it.max():.0f} levels over {len(found)} images",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
