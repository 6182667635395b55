"""How far each layer went from its start, in weights, biases and norms apart.

    python analysis/l2.py runs/ddsm

Reads the run's init and best weights; writes analysis/l2.json and l2.svg. No images are needed. `--study-exact` writes
the published study's number beside it (analysis/l2-study.json): one for all layers.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from typing import Any

from analysis.changes import KINDS, Change, changes, kinds_of_keys, study_distance
from analysis.chart_parts import number
from analysis.chart_style import standalone
from analysis.charts import Panel, Series, lines
from analysis.console import announce, table
from analysis.flags import IMAGES, parser
from analysis.results import digest_of_state, write_result
from analysis.session import Session

CAPTION = "Euclidean distance of each layer group's own tensors between start and end"
STUDY_CAPTION = (
    "L2 as the published study's code has it: the whole state is passed for every layer, and the mean over its tensors "
    "of |end - start| / (values of the tensor) is taken, so one number stands for all"
)


def main(args: argparse.Namespace) -> None:
    """Measure, write, tell."""
    session = Session(args)
    start, end = session.state("start"), session.state("end")
    request = {
        "model": session.run.info.model,
        "weights": {"start": digest_of_state(start), "end": digest_of_state(end)},
        "layers": list(session.groups),
    }
    if args.study_exact:
        _as_the_study(session, request)
    elif not session.answered("l2", request):
        _measure(session, request)


def _measure(session: Session, request: dict[str, Any]) -> None:
    start, end = session.state("start"), session.state("end")
    measured = changes(start, end, session.groups, kinds_of_keys(session.model))
    path = write_result(session.out, "l2", request, describe(measured), standalone(figure(measured)))
    announce(session.args, path, text(measured))


def _as_the_study(session: Session, request: dict[str, Any]) -> None:
    if session.answered("l2-study", request):
        return
    distance = study_distance(session.state("start"), session.state("end"))
    values = {"about": STUDY_CAPTION, "layers": dict.fromkeys([*session.groups, "total"], distance)}
    series = Series("study", range(len(session.groups)), [distance] * len(session.groups))
    panel = Panel("L2 as published", [series], "mean of |end - start| / values", zero=True)
    drawn = lines([panel], categories=list(session.groups), x_title="layer group · the same whole state for each")
    path = write_result(session.out, "l2-study", request, values, standalone(drawn))
    announce(session.args, path, [f"every layer, and the total: {distance:.6g}"])


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


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, without=(*IMAGES, "seed"))
    made.add_argument("--study-exact", action="store_true", help="the published study's number, mistakes and all")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
