"""Linear probes by layer: how well a linear classifier on frozen features does, at the embedding and at every layer.

    python analysis/probe.py runs/ddsm --strength 0.01

Logistic regression on the training split's features under the evaluation transform; the penalty's strength is chosen
on the validation split, layer by layer, unless given. For a run directory the start is measured beside the end. Writes
analysis/probe.json and probe.svg. The features are those of knn.py, made once.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from typing import Any

from analysis.banks import Bank
from analysis.chart_style import standalone
from analysis.console import announce
from analysis.flags import parser
from analysis.knn import BANK_SPLIT, figure, poolings, text, unsaid_labels
from analysis.linear import STRENGTHS, Probe, Samples, probe
from analysis.results import write_result
from analysis.session import EMBEDDING, Session
from train.metrics import ignoring_unsaid

VALIDATION_SPLIT = "val"
CAPTION = "logistic regression on frozen features of the training split, strength by validation"


def main(args: argparse.Namespace) -> None:
    """Extract or find the features, fit, write, tell."""
    session = Session(args)
    _refuse(session, args)
    strengths = STRENGTHS if args.strength is None else (args.strength,)
    request = session.request(*session.states, bank=BANK_SPLIT, pool=args.pool, strengths=strengths)
    if session.answered("probe", request):
        return
    results = {which: probe_by_layer(session, which, args.pool, strengths) for which in session.states}
    images = session.num_images(session.split(BANK_SPLIT))
    values = {
        "about": CAPTION,
        "target": session.target,
        "bank_images": images,
        "unsaid_labels": unsaid_labels(session),
        "states": results,
    }
    title = f"Linear probe on {session.split().name}: {session.target}"
    path = write_result(session.out, "probe", request, values, standalone(figure(values, title)))
    announce(args, path, text(values, "linear probe"))


def _refuse(session: Session, args: argparse.Namespace) -> None:
    if session.split().name == BANK_SPLIT:
        raise ValueError(f"a probe fitted on {BANK_SPLIT} says nothing of {BANK_SPLIT}: give --split test or val")
    if args.strength is None and VALIDATION_SPLIT not in session.shards.split_names:
        raise ValueError(f"{session.shards.path} has no {VALIDATION_SPLIT} split to choose by: give --strength 0.01")


def probe_by_layer(session: Session, which: str, pool: str, strengths: tuple[float, ...]) -> dict[str, Any]:
    """{"embedding": metrics, "layers": {layer: {pooling: metrics}}, "chosen": …} of one state of a run."""
    bank, queries = session.bank(which, BANK_SPLIT), session.bank(which)
    validation = session.bank(which, VALIDATION_SPLIT) if len(strengths) > 1 else None
    chosen: dict[str, dict[str, Any]] = {}

    def measure(layer: str, how: str) -> dict[str, float]:
        found = _probe(session, layer, how, (bank, validation, queries), strengths)
        chosen[f"{layer} {how}"] = {"strength": found.strength, "converged": found.converged}
        return session.metrics(*ignoring_unsaid(queries.labels, found.probabilities))

    layers = {}
    for layer in session.taps:
        ways = poolings(bank, layer)
        wanted = ways if pool == "all" else tuple(way for way in ways if way == pool) or ways[-1:]
        layers[layer] = {how: measure(layer, how) for how in wanted}
    return {"embedding": measure(EMBEDDING, "auto"), "layers": layers, "chosen": chosen}


def _probe(
    session: Session, layer: str, how: str, banks: tuple[Bank, Bank | None, Bank], strengths: tuple[float, ...]
) -> Probe:
    bank, validation, queries = banks
    return probe(
        Samples(bank.layer(layer, how), bank.labels),
        Samples(validation.layer(layer, how), validation.labels) if validation is not None else None,
        queries.layer(layer, how),
        num_classes=session.shards.num_classes,
        multi_label=session.shards.task == "multi-label",
        strengths=strengths,
    )


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, without=("seed",))
    made.add_argument(
        "--pool", choices=("cls", "mean", "both", "all"), default="both", help="what of a transformer's tokens"
    )
    made.add_argument("--strength", type=float, help="weight of the penalty, a sample; default: chosen on validation")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
