"""k-nearest-neighbour classification at the embedding and at every layer: what the features know without a head.

    python analysis/knn.py runs/ddsm --k 20

The bank is the training split under the evaluation transform; k comes from the manifest (fewer where the bank is
smaller). For a run directory the start is measured beside the end. Writes analysis/knn.json and knn.svg. `--split
train` is leave-one-out. `--study-exact` gives the published study's numbers beside ours (analysis/knn-study.json): at
the embedding the end's images are compared with the start's bank, and probabilities pass through a second softmax.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from analysis.banks import Bank
from analysis.chart_parts import number
from analysis.chart_style import standalone
from analysis.charts import Panel, Series, lines, values_or_gaps
from analysis.console import announce, table
from analysis.flags import parser
from analysis.results import as_float, write_result
from analysis.session import EMBEDDING, Session
from shards.command_line import positive
from train.knn import knn_probabilities
from train.metrics import ignoring_unsaid

BANK_SPLIT = "train"
CAPTION = "weighted k-NN by cosine similarity, bank = training split under the evaluation transform"
STUDY_CAPTION = (
    "k-NN as the published study's code has it: at the embedding the bank is of the start, since it is built before "
    "the checkpoint is loaded; probabilities pass through a second softmax (multi-label: sigmoid)"
)


def main(args: argparse.Namespace) -> None:
    """Extract or find the features, classify, write, tell."""
    session = Session(args)
    states = ("end",) if args.study_exact else session.states
    name = "knn-study" if args.study_exact else "knn"
    k = session.shards.manifest.knn_k if args.k is None else args.k
    asked = ("start", "end") if args.study_exact else states
    request = session.request(*asked, k=k, temperature=args.temperature, bank=BANK_SPLIT, study_exact=args.study_exact)
    if session.answered(name, request):
        return
    results = {which: knn_by_layer(session, which, k, args.temperature, args.study_exact) for which in states}
    images = session.num_images(session.split(BANK_SPLIT))
    values = {
        "about": STUDY_CAPTION if args.study_exact else CAPTION,
        "target": session.target,
        "bank_images": images,
        "unsaid_labels": unsaid_labels(session),
        "k_used": min(k, images - (session.args.split == BANK_SPLIT)),
        "states": results,
    }
    title = f"k-NN on {session.split().name}: {session.target}"
    path = write_result(session.out, name, request, values, standalone(figure(values, title)))
    announce(args, path, text(values))


def unsaid_labels(session: Session) -> list[str]:
    """Labels that the bank's images all ignore: neither k-NN nor a probe says anything of them, no metric has them."""
    labels = session.bank("end", BANK_SPLIT).labels
    if labels.ndim == 1:
        return []
    return [name for name, known in zip(session.shards.classes, ~np.isnan(labels).all(0), strict=True) if not known]


def knn_by_layer(session: Session, which: str, k: int, temperature: float, study: bool = False) -> dict[str, Any]:
    """{"embedding": metrics, "layers": {layer: {pooling: metrics}}} of one state of a run."""
    bank, queries = session.bank(which, BANK_SPLIT), session.bank(which)
    unloaded = session.bank("start", BANK_SPLIT) if study else bank
    same = session.split().name == BANK_SPLIT
    multi_label = session.shards.task == "multi-label"

    def measure(layer: str, how: str) -> dict[str, float]:
        near = unloaded if layer == EMBEDDING else bank
        probabilities = knn_probabilities(
            near.layer(layer, how),
            near.labels,
            queries.layer(layer, how),
            num_classes=session.shards.num_classes,
            k=k,
            temperature=temperature,
            multi_label=multi_label,
            exclude_self=same,
        )
        if study:
            probabilities = expit(probabilities) if multi_label else softmax(probabilities, axis=1)
        return session.metrics(*ignoring_unsaid(queries.labels, probabilities))

    layers = {layer: {how: measure(layer, how) for how in poolings(bank, layer)} for layer in session.taps}
    return {"embedding": measure(EMBEDDING, "auto"), "layers": layers}


def poolings(bank: Bank, layer: str) -> tuple[str, ...]:
    """How a layer's activations become one vector: three ways where there is a class token, else one."""
    return ("cls", "mean", "both") if layer in bank.doubled else ("mean",)


def by_layer(state: Mapping[str, Any], target: str, how: str = "best") -> dict[str, float]:
    """Layer -> target metric: of one pooling, or of the best pooling of the layer."""
    found = {}
    for layer, ways in state["layers"].items():
        values = [
            metrics[target] for way, metrics in ways.items() if how in ("best", way) and metrics[target] is not None
        ]
        found[layer] = float(np.nanmax(values)) if values and not np.isnan(values).all() else float("nan")
    return found


def figure(values: Mapping[str, Any], title: str) -> str:
    """Target metric by layer, start and end; the embedding's as a level."""
    target, states = values["target"], values["states"]
    layers = list(next(iter(states.values()))["layers"])
    series, levels = [], []
    for colour, (which, state) in enumerate(states.items()):
        found = values_or_gaps(by_layer(state, target), layers)
        series.append(Series(which, range(len(layers)), found, colour=colour, dash=which == "start"))
        levels.append((as_float(state["embedding"][target]), f"embedding of the {which}", colour))
    note = "● " + "  ■ ".join(states) + "; dotted: at the embedding"
    if any(len(ways) > 1 for state in states.values() for ways in state["layers"].values()):
        note += "; best pooling of each layer, chosen on these images: a little too good"
    return lines([Panel(title, series, levels=levels, height=220)], categories=layers, x_title=f"layer group · {note}")


def text(values: Mapping[str, Any], what: str = "k-NN") -> list[str]:
    """The table for the console."""
    target, states = values["target"], values["states"]
    rows = [[f"{target} of {what}", *states]]
    rows.append([EMBEDDING, *(number(as_float(state["embedding"][target])) for state in states.values())])
    columns = {which: by_layer(state, target) for which, state in states.items()}
    for layer in next(iter(columns.values())):
        rows.append([layer, *(number(column[layer]) for column in columns.values())])
    unsaid = ", ".join(values["unsaid_labels"])
    note = [f"note: all of {BANK_SPLIT} ignores {unsaid}: no metric has it"] if unsaid else []
    return table(rows) + note


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, without=("seed",))
    made.add_argument("--k", type=positive, help="neighbours; default: the manifest's")
    made.add_argument("--temperature", type=float, default=0.1, help="T of the weights exp(similarity / T)")
    made.add_argument("--study-exact", action="store_true", help="the published study's numbers, mistakes and all")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
