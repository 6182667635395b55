"""Do both executors score a run alike? Logits, flipped predictions and ROC-AUC over a set, host against DALI.

    python benchmarks/agreement.py RUN SHARDS [--splits train val test] [--copies 10]

Each stored image is evaluated under its own resize and, with --copies, under so many fixed crops, mirrors and quarter
turns of it, so that a small set gives 5,000 images or more. Prints how far logits are apart, also as a share of their
spread over the set, the share of predictions that differ, and the difference of ROC-AUC, all splits together and each.
Exits 1 where more than 0.5 % differ, the AUC is more than 1e-3 apart, or logits are further apart than LOGITS says. The
result is recorded in docs/parity.md.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from shards.draws import DrawKeys
from shards.executors import make_executor
from shards.index import ENCODING_NAMES
from shards.operators import CenterCrop, HorizontalFlip, Normalize, RandomCrop, Resize, Rotate90
from shards.shardset import ShardSet, Split
from shards.transforms import Transform
from train.metrics import evaluate
from train.rundir import open_run

EXECUTORS: tuple[Any, ...] = ("host", "dali")
FLIPPED, AUC = 0.005, 1e-3
LOGITS = {"mean": 0.005, "99.9th percentile": 0.05}  # apart, as a share of the logits' standard deviation


class Scored(NamedTuple):
    """n images by each executor: logits float64[n, classes], and labels int64[n]."""

    host: torch.Tensor
    dali: torch.Tensor
    labels: np.ndarray


def transform_for(size: int, mean: tuple[float, ...], std: tuple[float, ...], copies: int) -> Transform:
    """The trainer's evaluation, or moved versions of it."""
    before, end = Resize(round(size * 256 / 224), rounded=False), Normalize(mean, std)
    return Transform((before, CenterCrop(size), end) if copies == 1 else (
        before, RandomCrop(size), HorizontalFlip(), Rotate90(), end,
    ))  # fmt: skip


def pixels(split: Split, transform: Transform, copies: int, batch: int) -> Iterator[tuple[list[torch.Tensor], Any]]:
    """The batches of a split by each executor, from the same bytes and the same draws, with their labels."""
    made = [make_executor(name, split, transform, batch=batch) for name in EXECUTORS]
    for copy in range(copies):
        for first in range(0, split.num_samples, batch):
            positions = np.arange(first, min(first + batch, split.num_samples))
            rows = split.rows(positions)
            keys = DrawKeys(0, np.full(len(positions), copy), rows.sample_ids, np.zeros(len(positions), np.int64))
            sizes = np.stack([rows.heights, rows.widths], axis=1).astype(np.int64)
            drawn = transform.draw(keys, rows.heights, rows.widths)
            images = [split.read(int(position)) for position in positions]
            names = [ENCODING_NAMES[int(code)] for code in rows.encodings]
            found = [executor.run(images, names, sizes, drawn) for executor in made]
            assert not any(failures for _, failures in found), found
            yield [images for images, _ in found], split.labels(positions)
    for executor in made:
        executor.close()


def score(model: nn.Module, split: Split, transform: Transform, copies: int, batch: int) -> Scored:
    """The model on all of a split."""
    logits: list[list[torch.Tensor]] = [[], []]
    labels = []
    for views, truth in pixels(split, transform, copies, batch):
        labels.append(truth)
        for each, images in zip(logits, views, strict=True):
            with torch.inference_mode():
                each.append(model(images).double())
    return Scored(torch.cat(logits[0]), torch.cat(logits[1]), np.concatenate(labels))


def judged(name: str, scored: Scored, classes: int) -> bool:
    """Print what was found; whether it lies within the bounds."""
    host, dali, labels = scored
    apart, spread = (host - dali).abs(), float(host.std())
    shares = {"mean": float(apart.mean()) / spread, "99.9th percentile": float(torch.quantile(apart, 0.999)) / spread}
    flipped = float((host.argmax(1) != dali.argmax(1)).double().mean())
    auc = [evaluate("single-label", labels, each.softmax(1).numpy(), classes)["roc_auc"] for each in (host, dali)]
    told = ", ".join(f"{what} {100 * share:.3f} %" for what, share in shares.items())
    print(
        f"{name}: {len(labels)} images; logits apart: {told}, most {100 * float(apart.max()) / spread:.2f} % of their "
        f"standard deviation of {spread:.2f}; predictions that differ: {100 * flipped:.3f} %; ROC-AUC: host "
        f"{auc[0]:.5f}, DALI {auc[1]:.5f}, apart {abs(auc[0] - auc[1]):.1e}",
        flush=True,
    )
    within = all(share <= LOGITS[what] for what, share in shares.items())
    return within and flipped <= FLIPPED and abs(auc[0] - auc[1]) <= AUC


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--splits", nargs="+", help="default: all of the set")
    parser.add_argument("--copies", type=int, default=1, help="versions of each image: crops, mirrors and turns")
    parser.add_argument("--batch", type=int, default=64)
    o = parser.parse_args()
    shards, run = ShardSet(o.shards), open_run(str(o.run), str(o.shards), None)
    model = run.build_model()
    model.load_state_dict(run.end_state(), strict=True)
    model.eval()
    manifest = shards.manifest
    transform = transform_for(run.info.img_size, tuple(manifest.mean), tuple(manifest.std), o.copies)
    found = []
    for name in o.splits or shards.split_names:
        found.append(score(model, shards.split(name), transform, o.copies, o.batch))
        judged(name, found[-1], shards.num_classes)
    host, dali, labels = zip(*found, strict=True)
    within = judged("all", Scored(torch.cat(host), torch.cat(dali), np.concatenate(labels)), shards.num_classes)
    print("within the bounds" if within else f"NOT within the bounds: {LOGITS}, flipped {FLIPPED}, AUC {AUC}")
    return int(not within)


if __name__ == "__main__":
    raise SystemExit(main())
