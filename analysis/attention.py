"""How far do the heads of a ViT look? Attention distance by block and head, start beside end.

    python analysis/attention.py runs/ddsm --limit 256

The mean distance in pixels between a patch and what it attends to, weighted by attention (Dosovitskiy et al., 2021).
Pretrained ViTs have heads that look near in the first blocks; with little data such heads are what transfer brings
(Raghu et al., NeurIPS 2021). Weights on class and register tokens have no place: left out, and told as a share. Writes
analysis/attention.json and attention.svg. For ViTs with attention over all patches.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from analysis.attention_maps import attending, attention_distance, attention_modules, patch_distances, prefix_share
from analysis.chart_parts import number
from analysis.chart_style import standalone
from analysis.charts import Panel, Series, lines
from analysis.console import announce, table
from analysis.flags import parser
from analysis.results import write_result
from analysis.session import Session

CAPTION = "mean distance between a patch and what it attends to, weighted by attention, in pixels of the model's input"


def main(args: argparse.Namespace) -> None:
    """Pass the images through, measure, write, tell."""
    session = Session(args)
    attention_modules(session.model)
    request = session.request(*session.states)
    if session.answered("attention", request):
        return
    values = {
        "about": CAPTION,
        "image_size": session.run.info.img_size,
        "uniform": float(distances_of(session).mean()),
        "states": {which: measure(session, which) for which in session.states},
    }
    path = write_result(session.out, "attention", request, values, standalone(figure(values)))
    announce(args, path, text(values))


def distances_of(session: Session) -> torch.Tensor:
    """Pixels between all patches of the session's model.

    float[patches, patches].
    """
    embed: Any = session.model.patch_embed
    (rows, columns), (tall, wide) = embed.grid_size, embed.patch_size
    return patch_distances((rows, columns), (tall, wide))


def measure(session: Session, which: str) -> dict[str, Any]:
    """Block -> means and standard deviations over images of each head, and the share of prefix tokens."""
    model, split = session.holding(which), session.split()
    distances = distances_of(session).to(session.device)
    found, shares = [], []
    with attending(model) as weights, torch.inference_mode():
        for batch, keep in session.batches(split, which):
            with session.autocast():
                model(batch.images.to(session.device))
            found.append(_stacked(weights, lambda each: attention_distance(each, distances))[keep])
            shares.append(_stacked(weights, lambda each: prefix_share(each, len(distances)))[keep])
    heads, share = np.concatenate(found), np.concatenate(shares)
    return {
        name: {"mean": heads[:, i].mean(0), "sd": heads[:, i].std(0), "prefix_share": share[:, i].mean(0)}
        for i, name in enumerate(attention_modules(model))
    }


def _stacked(weights: Mapping[str, torch.Tensor], function: Any) -> np.ndarray:
    """float64[images, blocks, heads]."""
    return torch.stack([function(each) for each in weights.values()], 1).cpu().numpy()


def figure(values: Mapping[str, Any]) -> str:
    """A panel a state: each head a mark, and their mean as a line; dotted: attention that is the same everywhere."""
    panels, layers = [], list(next(iter(values["states"].values())))
    for colour, (which, blocks) in enumerate(values["states"].items()):
        means = [np.asarray(row["mean"], np.float64) for row in blocks.values()]
        series = [Series(f"{which}, mean of heads", range(len(layers)), [float(each.mean()) for each in means], colour)]
        for head in range(max(map(len, means))):
            y = [float(each[head]) if head < len(each) else float("nan") for each in means]
            series += [Series(f"{which}, head {head}", [i], [value], colour, size=2.2) for i, value in enumerate(y)]
        level = [(float(values["uniform"]), "attention that is the same everywhere", colour)]
        panels.append(Panel(which, series, "pixels; small marks: heads", levels=level, zero=True))
    return lines(panels, categories=[name.removesuffix(".attn") for name in layers], x_title="block")


def text(values: Mapping[str, Any]) -> list[str]:
    """The table for the console: nearest, mean and farthest head of each block."""
    states = values["states"]
    rows = [["block", *(f"{which} {part}" for which in states for part in ("least", "mean", "most"))]]
    for name in next(iter(states.values())):
        found = [np.asarray(blocks[name]["mean"]) for blocks in states.values()]
        rows.append(
            [name, *(number(float(value)) for each in found for value in (each.min(), each.mean(), each.max()))]
        )
    return [*table(rows), f"same attention everywhere: {number(values['uniform'])} pixels"]


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    return parser(__doc__, without=("layers", "taps", "banks", "seed"))


if __name__ == "__main__":
    launch(command_line(), main)
