"""Run directories as training writes them, of weights from two seeds, and the arguments of the scripts over them."""

import importlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from shards.shardset import ShardSet
from train.config import Config
from train.models import create
from train.rundir import WeightsInfo, save_weights

SMALL = ("tf_efficientnet_lite0", 32)
FAMILIES = (
    ("resnet50", 32),
    ("deit_tiny_patch16_224", 32),
    ("swin_tiny_patch4_window7_224", 64),
    ("inception_v3", 80),
    ("tf_efficientnet_lite0", 32),
    ("convnext_atto", 64),
    ("focalnet_tiny_srf", 64),
)


def make_run(
    folder: Path,
    set_path: Path,
    model: str,
    side: int,
    *,
    init: bool = True,
    seeds: tuple[int, int] = (0, 1),
    in_chans: int | None = None,
    data: dict[str, Any] | None = None,
    first_conv: str = "sum",
) -> Path:
    """A run directory whose weights come from two seeds. `data`: further fields of the config's section."""
    torch.set_num_threads(1)
    shards = ShardSet(set_path)
    manifest = shards.manifest
    config = Config.model_validate(
        {
            "data": {"shards": str(set_path), "image_size": side, **(data or {})},
            "model": {"model": model, "first_conv": first_conv},
        }
    )
    content, (mean, std) = config.model_dump(mode="json"), config.data.norm(manifest)
    channels = in_chans or manifest.channels
    info = WeightsInfo(
        model, shards.num_classes, channels, side, tuple(shards.classes), tuple(mean), tuple(std), manifest.digest,
        content,
    )  # fmt: skip
    (folder / "weights").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": 1, "config": content}))
    for name, seed in zip(("init", "best"), seeds, strict=True):
        if name == "best" or init:
            made = create(model, shards.num_classes, channels, img_size=side, seed=seed)
            save_weights(folder / "weights" / f"{name}.safetensors", made.state_dict(), info)
    return folder


def arguments(run: Path, *flags: str, script: str = "knn") -> Namespace:
    """What a script's own command line makes of these flags, in small batches."""
    made = importlib.import_module(f"analysis.{script}").command_line()
    small = [] if script == "l2" else ["--batch", "8", "--threads", "1"]
    small += ["--minibatch", "8"] if script == "cka" else []
    return made.parse_args([str(run), *small, *flags])


def result(run: Path, name: str) -> dict[str, Any]:
    """What a script wrote of a run."""
    return json.loads((run / "analysis" / f"{name}.json").read_text())
