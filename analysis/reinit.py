"""Which layers matter: each layer group put back to its start (or drawn anew), the rest as trained, tested again.

    python analysis/reinit.py runs/ddsm --to random

`start` puts the group's tensors of step 0 back (analysis/reinit.json), `random` draws them from the default
initialisation (analysis/rerand.json). The first row is the untouched model. The images are decoded once, and what
lies before the exchanged group is computed once.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.chart_parts import number
from analysis.chart_style import standalone
from analysis.charts import Panel, Series, lines, values_or_gaps
from analysis.console import announce, table
from analysis.flags import parser
from analysis.replay import Replay
from analysis.results import as_float, write_result
from analysis.session import Session
from train.models import build, recipe_of

NAMES = {"start": "reinit", "random": "rerand"}
CAPTIONS = {
    "start": "test metrics with one layer group put back to its start, the rest as trained",
    "random": "test metrics with one layer group drawn from the default initialisation, the rest as trained",
}


@torch.no_grad()
def main(args: argparse.Namespace) -> None:
    """Exchange group by group, write, tell."""
    session, name = Session(args), NAMES[args.to]
    states = ("start", "end") if args.to == "start" else ("end",)
    request = session.request(*states, to=args.to)
    if session.answered(name, request):
        return
    source = session.state("start") if args.to == "start" else build(recipe_of(session.model), args.seed).state_dict()
    exchanges = {group: {key: source[key] for key in keys} for group, keys in session.groups.items()}
    rows = exchanged_metrics(session, exchanges)
    values = {"about": CAPTIONS[args.to], "target": session.target, "baseline": rows.pop(None), "layers": rows}
    path = write_result(session.out, name, request, values, standalone(figure(values)))
    announce(args, path, text(values))


def exchanged_metrics(
    session: Session, exchanges: Mapping[str, Mapping[str, Tensor]], *, reuse: bool = True
) -> dict[str | None, dict[str, float]]:
    """{None: metrics as trained, group: metrics with that group's tensors exchanged} over the session's split.

    `exchanges`: group -> name of a tensor -> what takes its place, of the same shape.
    """
    model, split = session.holding("end"), session.split()
    replay = Replay(model, session.groups, reuse=reuse)
    outputs: dict[str | None, list[np.ndarray]] = {}
    labels: list[np.ndarray] = []
    multi_label = session.shards.task == "multi-label"
    for batch, keep in session.batches(split, "exchanged"):
        with session.autocast():
            for group, logits in replay.run(batch.images.to(session.device), exchanges):
                scores = logits.double().sigmoid() if multi_label else logits.double().softmax(1)
                outputs.setdefault(group, []).append(scores.cpu().numpy()[keep])
        labels.append(batch.labels.cpu().numpy()[keep])
    known = np.concatenate(labels)
    return {group: session.metrics(known, np.concatenate(parts)) for group, parts in outputs.items()}


def figure(values: Mapping[str, Any]) -> str:
    """Target metric after the exchange by layer; the untouched model's as a level."""
    target, layers = values["target"], list(values["layers"])
    found = values_or_gaps({layer: row[target] for layer, row in values["layers"].items()}, layers)
    levels = [(as_float(values["baseline"][target]), "as trained", 1)]
    panel = Panel(values["about"], [Series("exchanged", range(len(layers)), found)], target, levels, height=220)
    return lines([panel], categories=layers, x_title="layer group exchanged · dotted: as trained")


def text(values: Mapping[str, Any]) -> list[str]:
    """The table for the console."""
    target = values["target"]
    rows = [["exchanged", target], ["nothing", number(as_float(values["baseline"][target]))]]
    rows += [[layer, number(as_float(row[target]))] for layer, row in values["layers"].items()]
    return table(rows)


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, without=("taps", "banks"))
    made.add_argument("--to", choices=tuple(NAMES), default="start", help="what the group's tensors become")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
