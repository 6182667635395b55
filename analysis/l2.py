"""How far each layer went from its start, in weights, biases and norms apart.

    python analysis/l2.py RUN

Reads the run's init and best weights; writes analysis/l2.json and l2.svg. No images are needed.
"""

import argparse
from typing import Any

from analysis.changes import KINDS, Change, changes, kinds_of_keys
from analysis.charts import Panel, Series, lines, number, standalone
from analysis.results import digest_of_state, write_result
from analysis.session import Session, announce, launch, parser, table

CAPTION = "Euclidean distance of each layer group's own tensors between start and end"


def main(args: argparse.Namespace) -> None:
    """Measure, write, tell."""
    session = Session(args)
    start, end = session.state("start"), session.state("end")
    request = {
        "model": session.run.info.model,
        "weights": {"start": digest_of_state(start), "end": digest_of_state(end)},
        "layers": list(session.groups),
    }
    if session.answered("l2", request):
        return
    measured = changes(start, end, session.groups, kinds_of_keys(session.model))
    path = write_result(session.out, "l2", request, describe(measured), standalone(figure(measured)))
    announce(path, text(measured))


def describe(measured: dict[str, dict[str, Change]]) -> dict[str, Any]:
    """The result as JSON values: layer -> kind -> measure."""
    rows = {layer: {kind: change._asdict() for kind, change in row.items()} for layer, row in measured.items()}
    return {"about": CAPTION, "kinds": ["all", *KINDS], "layers": rows}


def figure(measured: dict[str, dict[str, Change]]) -> str:
    """Relative change by layer and kind, and root mean square change of a parameter."""
    layers = list(measured)
    panels = []
    for title, unit, field in (
        ("Relative change", "|end - start| / |start|", "relative"),
        ("Change of a parameter", "|end - start| / √parameters", "per_sqrt_parameter"),
    ):
        series = []
        for colour, kind in enumerate(("all", "weights", "biases", "norms")):
            x = [i for i, layer in enumerate(layers) if kind in measured[layer]]
            y = [getattr(measured[layers[i]][kind], field) for i in x]
            if x:
                series.append(Series(kind, x, y, colour=colour))
        panels.append(Panel(title, series, unit, zero=True))
    return lines(panels, categories=layers, x_title="layer group · ● all ■ weights ▲ biases ◆ norms")


def text(measured: dict[str, dict[str, Change]]) -> list[str]:
    """The table for the console."""
    rows = [["layer", "parameters", "absolute", "relative", "per √p", "cosine"]]
    for layer, row in measured.items():
        of = row["all"]
        values = (of.absolute, of.relative, of.per_sqrt_parameter, of.cosine)
        rows.append([layer, f"{of.parameters:,}", *map(number, values)])
    return table(rows)


if __name__ == "__main__":
    made = parser(__doc__)
    launch(made, main)
