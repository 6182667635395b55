"""Do both executors score a run alike? Logits, flipped predictions and ROC-AUC over a set, host against DALI.

    python benchmarks/agreement.py RUN SHARDS [--split train] [--copies 10]

Each stored image is evaluated under its own resize and, with --copies, under so many fixed crops of it, so that a small
set gives 5,000 images or more. Prints the largest and the mean difference of logits, the share of predictions that
differ, and the difference of ROC-AUC; exits 1 where more than 0.5 % differ or the AUC is more than 1e-3 apart.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from shards.draws import DrawKeys
from shards.index import ENCODING_NAMES
from shards.loader import make_executor
from shards.operators import CenterCrop, HorizontalFlip, Normalize, RandomCrop, Resize, Rotate90
from shards.shardset import ShardSet
from shards.transforms import Transform
from train.metrics import evaluate
from train.rundir import open_run


def main() -> int:
    """Print what was found as a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--copies", type=int, default=1, help="versions of each image: crops, flips and turns")
    parser.add_argument("--batch", type=int, default=64)
    o = parser.parse_args()
    shards, run = ShardSet(o.shards), open_run(str(o.run), str(o.shards), None)
    model = run.build_model()
    model.load_state_dict(run.end_state(), strict=True)
    model.eval()
    size, manifest = run.info.img_size, shards.manifest
    end = Normalize(tuple(manifest.mean), tuple(manifest.std))
    before = Resize(round(size * 256 / 224))
    moved = (before, RandomCrop(size), HorizontalFlip(), Rotate90(), end)
    transform = Transform(moved if o.copies > 1 else (before, CenterCrop(size), end))
    split = shards.split(o.split)
    found: dict[str, list[torch.Tensor]] = {"host": [], "dali": []}
    labels = []
    for copy in range(o.copies):
        for first in range(0, split.num_samples, o.batch):
            positions = np.arange(first, min(first + o.batch, split.num_samples))
            rows = split.rows(positions)
            keys = DrawKeys(0, np.full(len(positions), copy), rows.sample_ids, np.zeros(len(positions), np.int64))
            sizes = np.stack([rows.heights, rows.widths], axis=1).astype(np.int64)
            drawn = transform.draw(keys, rows.heights, rows.widths)
            images = [split.read(int(position)) for position in positions]
            names = [ENCODING_NAMES[int(code)] for code in rows.encodings]
            labels.append(split.labels(positions))
            for name, logits in found.items():
                executor = EXECUTORS.setdefault(name, make_executor(name, split, transform, batch=o.batch))  # type: ignore[arg-type]
                pixels, failures = executor.run(images, names, sizes, drawn)
                assert not failures, failures
                with torch.inference_mode():
                    logits.append(model(pixels).double())
    for executor in EXECUTORS.values():
        executor.close()
    truth = np.concatenate(labels)
    host, dali = (torch.cat(found[name]) for name in ("host", "dali"))
    apart, flipped = (host - dali).abs(), float((host.argmax(1) != dali.argmax(1)).double().mean())
    auc = [
        evaluate("single-label", truth, logits.softmax(1).numpy(), shards.num_classes)["roc_auc"]
        for logits in (host, dali)
    ]
    print(f"{len(truth)} images; logits spread {float(host.std()):.3f}")
    print(f"logits apart: mean {float(apart.mean()):.5f}, most {float(apart.max()):.5f}")
    print(f"predictions that differ: {100 * flipped:.3f} %")
    print(f"ROC-AUC: host {auc[0]:.6f}, DALI {auc[1]:.6f}, apart {abs(auc[0] - auc[1]):.2e}")
    return int(flipped > 0.005 or abs(auc[0] - auc[1]) > 1e-3)


EXECUTORS: dict = {}

if __name__ == "__main__":
    raise SystemExit(main())
