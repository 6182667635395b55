"""When does a layer settle? CKA of every checkpoint of a run with its start and with its end, layer by layer.

    python analysis/trajectory.py runs/ddsm

Of a run trained with --keep-checkpoints 10, or more. Linear, unbiased, over the whole split, as analysis/cka.py. A
layer that stays near 1 with the start was reused; one that is near 1 with the end early has settled early. Writes
analysis/trajectory.json and trajectory.svg.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.chart_parts import number, side_by_side
from analysis.chart_style import standalone
from analysis.charts import heat_map
from analysis.console import announce, table
from analysis.flags import add_pool, parser
from analysis.results import as_float, write_result
from analysis.session import Session
from analysis.similarity import cka_of_hsic, hsic_of_layers
from shards.words import counted

CAPTION = "linear CKA with the unbiased HSIC_1 of each layer at a checkpoint with itself at the start and at the end"


def main(args: argparse.Namespace) -> None:
    """Extract or find the features of every checkpoint, compare, write, tell."""
    session = Session(args)
    checkpoints = checkpoints_of(session)
    request = session.request(*session.states, pool=args.pool, checkpoints=list(checkpoints))
    if session.answered("trajectory", request):
        return
    start, end = (
        {name: session.bank(which).layer(name, args.pool) for name in session.taps} for which in session.states
    )
    with_start, with_end = [], []
    states = [start, *(features_at(args, folder, session) for folder in checkpoints.values())]
    for state in states:
        with_start.append([alike(state[name], start[name]) for name in session.taps])
        with_end.append([alike(state[name], end[name]) for name in session.taps])
    values = {
        "about": CAPTION,
        "pooling": args.pool,
        "steps": [0, *checkpoints],
        "layers": list(session.taps),
        "with_start": np.array(with_start).T,
        "with_end": np.array(with_end).T,
    }
    path = write_result(session.out, "trajectory", request, values, standalone(figure(values)))
    announce(args, path, text(values))


def checkpoints_of(session: Session) -> dict[int, Path]:
    """Step -> checkpoint folder, in order. Raises ValueError for a run with fewer than two."""
    folder = session.run.folder
    if folder is None or session.run.path != folder:
        raise ValueError(f"{session.run.path} is no run directory: its checkpoints are not known")
    found = {
        int(path.name.removeprefix("step-")): path
        for path in sorted((folder / "checkpoints").glob("step-*"))
        if path.name.removeprefix("step-").isdigit()
    }
    if len(found) < 2:
        raise ValueError(
            f"{folder} keeps {counted(len(found), 'checkpoint')}: train with --keep-checkpoints 10 for a trajectory"
        )
    return found


def features_at(args: argparse.Namespace, folder: Path, session: Session) -> dict[str, np.ndarray]:
    """Layer -> float32[n, d] of the model at a checkpoint, from a bank beside the run's own."""
    given = {**vars(args), "run": folder, "out": None, "banks": args.banks}
    there = Session(argparse.Namespace(**given))
    there.features = session.features
    bank = there.bank("end")
    return {name: bank.layer(name, args.pool) for name in session.taps}


def alike(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased linear CKA of two layers [n, d1], [n, d2]."""
    hsic, _ = hsic_of_layers([first, second])
    return float(cka_of_hsic(hsic)[0, 1])


def figure(values: Mapping[str, Any]) -> str:
    """Two heat maps side by side: layers over steps."""
    layers, steps = values["layers"], [str(step) for step in values["steps"]]
    made = [
        heat_map(np.array(values[name], np.float64), layers, steps, title=title, x_title="step", y_title="layer group")
        for name, title in (("with_start", "CKA with the start"), ("with_end", "CKA with the end"))
    ]
    return side_by_side(made, values["about"], 16)


def text(values: Mapping[str, Any]) -> list[str]:
    """CKA with the start for the console."""
    rows = [["layer, with the start", *(f"step {step}" for step in values["steps"])]]
    for layer, found in zip(values["layers"], values["with_start"], strict=True):
        rows.append([layer, *(number(as_float(value)) for value in found)])
    return table(rows)


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, without=("seed",))
    add_pool(made, "both")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
