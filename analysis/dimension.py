"""How many directions do the features of a layer really use? Intrinsic dimension by layer, start beside end.

    python analysis/dimension.py runs/ddsm --split train

TwoNN (Facco et al., 2017) on pooled features; in trained networks it rises, then falls towards the head (Ansuini et
al., NeurIPS 2019). Also on halves and quarters of the images: where these differ much from the whole, the number
belongs to that many images and not to the layer. Writes analysis/dimension.json and dimension.svg.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from collections.abc import Mapping
from typing import Any

from analysis.chart_parts import number
from analysis.chart_style import standalone
from analysis.charts import Panel, Series, lines
from analysis.console import announce, table
from analysis.flags import add_pool, parser
from analysis.results import as_float, write_result
from analysis.session import EMBEDDING, Session
from analysis.twonn import dimension

CAPTION = "TwoNN intrinsic dimension of pooled features (Facco et al., 2017), the tenth with the largest ratio left out"


def main(args: argparse.Namespace) -> None:
    """Extract or find the features, measure, write, tell."""
    session = Session(args)
    request = session.request(*session.states, pool=args.pool)
    if session.answered("dimension", request):
        return
    states = {which: by_layer(session, which, args.pool) for which in session.states}
    values = {"about": CAPTION, "pooling": args.pool, "states": states}
    path = write_result(session.out, "dimension", request, values, standalone(figure(values)))
    announce(args, path, text(values))


def by_layer(session: Session, which: str, how: str) -> dict[str, dict[str, float]]:
    """Layer (and the embedding) -> dimension and what belongs to it."""
    bank = session.bank(which)
    return {
        name: dimension(bank.layer(name, how), seed=session.args.seed)._asdict() for name in (*session.taps, EMBEDDING)
    }


def figure(values: Mapping[str, Any]) -> str:
    """Dimension by layer, start and end, with the spread of halves."""
    states = values["states"]
    layers = list(next(iter(states.values())))
    series = []
    for colour, (which, found) in enumerate(states.items()):
        middle = [as_float(found[layer]["value"]) for layer in layers]
        error = [as_float(found[layer]["error"]) for layer in layers]
        low, high = ([m + sign * e for m, e in zip(middle, error, strict=True)] for sign in (-1, 1))
        series.append(
            Series(which, range(len(layers)), middle, colour=colour, dash=which == "start", low=low, high=high)
        )
    note = "● " + "  ■ ".join(states)
    panel = Panel("Intrinsic dimension", series, "TwoNN", zero=True, height=220)
    return lines([panel], categories=layers, x_title=f"layer group · {note}")


def text(values: Mapping[str, Any]) -> list[str]:
    """The table for the console."""
    states = values["states"]
    rows = [["layer", *(f"{which}{part}" for which in states for part in ("", ", halves"))]]
    for layer in next(iter(states.values())):
        rows.append(
            [layer, *(number(as_float(found[layer][part])) for found in states.values() for part in ("value", "half"))]
        )
    return [*table(rows), *(f"–: {line}" for line in reasons(values))]


def reasons(values: Mapping[str, Any]) -> list[str]:
    """Why numbers are missing: each reason once, with the layers it is of."""
    found: dict[str, list[str]] = {}
    for which, layers in values["states"].items():
        for layer, row in layers.items():
            if row.get("reason"):
                found.setdefault(row["reason"], []).append(f"{which} {layer}")
    every = sum(map(len, values["states"].values()))
    return [f"{why} ({'all layers' if len(of) == every else ', '.join(of)})" for why, of in found.items()]


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__)
    add_pool(made, "mean")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
