"""k-nearest-neighbour classification at the embedding and at every layer: what the features know without a head.

    python analysis/knn.py RUN [--split test] [--k 200] [--temperature 0.1]

The bank is the training split under the evaluation transform; k comes from the manifest (fewer where the bank is
smaller). For a run directory the start is measured beside the end. Writes analysis/knn.json and knn.svg. `--split
train` is leave-one-out.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.banks import Bank
from analysis.charts import Panel, Series, lines, number, standalone, values_or_gaps
from analysis.results import write_result
from analysis.session import EMBEDDING, Session, announce, launch, parser, table
from train.knn import knn_probabilities

BANK_SPLIT = "train"
CAPTION = "weighted k-NN by cosine similarity, bank = training split under the evaluation transform"


def main(args: argparse.Namespace) -> None:
    """Extract or find the features, classify, write, tell."""
    session = Session(args)
    states = session.states
    k = session.shards.manifest.knn_k if args.k is None else args.k
    request = session.request(*states, k=k, temperature=args.temperature, bank=BANK_SPLIT)
    if session.answered("knn", request):
        return
    results = {which: knn_by_layer(session, which, k, args.temperature) for which in states}
    images = session.num_images(session.split(BANK_SPLIT))
    values = {
        "about": CAPTION,
        "target": session.target,
        "bank_images": images,
        "k_used": min(k, images - (session.args.split == BANK_SPLIT)),
        "states": results,
    }
    title = f"k-NN on {session.split().name}: {session.target}"
    path = write_result(session.out, "knn", request, values, standalone(figure(values, title)))
    announce(path, text(values))


def knn_by_layer(session: Session, which: str, k: int, temperature: float) -> dict[str, Any]:
    """{"embedding": metrics, "layers": {layer: {pooling: metrics}}} of one state of a run."""
    bank, queries = session.bank(which, BANK_SPLIT), session.bank(which)
    same = session.split().name == BANK_SPLIT

    def measure(layer: str, how: str) -> dict[str, float]:
        probabilities = knn_probabilities(
            bank.layer(layer, how),
            bank.labels,
            queries.layer(layer, how),
            num_classes=session.shards.num_classes,
            k=k,
            temperature=temperature,
            multi_label=session.shards.task == "multi-label",
            exclude_self=same,
        )
        return session.metrics(queries.labels, probabilities)

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
        levels.append((_value(state["embedding"][target]), f"embedding of the {which}", colour))
    note = "● " + "  ■ ".join(states) + "; dotted: at the embedding; best pooling of each layer"
    return lines([Panel(title, series, levels=levels, height=220)], categories=layers, x_title=f"layer group · {note}")


def text(values: Mapping[str, Any], what: str = "k-NN") -> list[str]:
    """The table for the console."""
    target, states = values["target"], values["states"]
    rows = [[f"{target} of {what}", *states]]
    rows.append([EMBEDDING, *(number(_value(state["embedding"][target])) for state in states.values())])
    columns = {which: by_layer(state, target) for which, state in states.items()}
    for layer in next(iter(columns.values())):
        rows.append([layer, *(number(column[layer]) for column in columns.values())])
    return table(rows)


def _value(value: float | None) -> float:
    return float("nan") if value is None else value


if __name__ == "__main__":
    made = parser(__doc__)
    made.add_argument("--k", type=int, help="neighbours; default: the manifest's")
    made.add_argument("--temperature", type=float, default=0.1, help="of the weights exp(similarity / T) (default 0.1)")
    launch(made, main)
