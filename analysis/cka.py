"""Centred kernel alignment of all layer groups with all: what training kept, and where.

    python analysis/cka.py runs/ddsm --against runs/ddsm-ri

Three matrices: start with start, end with start, end with end; with `--against`, the ends of two runs of one shard set
(any two models). Linear and unbiased, over the whole split and from mini-batches whose HSIC is summed before the
division; with a null level (shuffled images), a ceiling (two halves of a layer's features) and second opinions for each
layer with itself. `--features tokens` compares unpooled activations, which are never stored: by mini-batches, and with
`--whole` over the whole split by tiles of the Grams within `--memory` GB, at the cost of more passes. `--study-exact`
gives the published study's numbers in place of ours (unpooled, batches of 64 as stored, ratios averaged). Writes
analysis/cka.json and cka.svg (cka-NAME.json with `--against`, cka-tokens, cka-study).
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.chart_parts import side_by_side
from analysis.chart_style import standalone
from analysis.charts import heat_map
from analysis.console import announce, table
from analysis.flags import add_pool, parser
from analysis.opinions import cca, ceiling, image_halves, null_level, procrustes
from analysis.results import write_result
from analysis.session import Session
from analysis.similarity import batch_hsics, cka_of_hsic, hsic_of_layers, jackknife_error
from analysis.tokens import TokenHsic, token_hsic, whole_token_hsic
from shards.command_line import positive

CAPTION = "linear CKA with the unbiased HSIC_1 (Song et al., 2012), 1 = same up to rotation and scale, 0 = unrelated"
STUDY_CAPTION = (
    "CKA as the published study's code has it: unpooled, batches of 64 in the order of the shards, the mean of their "
    "ratios; class-sorted data makes it far too small"
)
STUDY_BATCH = 64


def main(args: argparse.Namespace) -> None:
    """Extract or find the features, compare, write, tell."""
    if args.study_exact:
        args = argparse.Namespace(**{**vars(args), "features": "tokens", "taps": "fine", "minibatch": STUDY_BATCH})
    session = Session(args)
    other = _other(args, session)
    sides = _sides(session, other)
    name = _name(args, other)
    request = session.request(
        *session.states,
        features=args.features,
        pool=args.pool if args.features == "pooled" else None,
        minibatch=args.minibatch,
        whole=args.whole or args.features == "pooled",
        study_exact=args.study_exact,
        against=other.request("end") if other is not None else None,
    )
    if session.answered(name, request):
        return
    if args.study_exact:
        values = as_the_study(sides)
    elif args.features == "tokens":
        values = of_tokens(sides, args.minibatch, args.seed, args.memory * 1e9 if args.whole else None)
    else:
        values = of_pooled(sides, args.pool, args.minibatch, args.seed)
    about = STUDY_CAPTION if args.study_exact else CAPTION
    values = {"about": about, "features": args.features, "sides": _labels(sides), **values}
    path = write_result(session.out, name, request, values, standalone(figure(values)))
    announce(args, path, text(values))


def _name(args: argparse.Namespace, other: Session | None) -> str:
    name = "cka" if other is None else f"cka-{other.run.name}"
    if args.study_exact:
        return name + "-study"
    return name + "-tokens" if args.features == "tokens" else name


Side = tuple[str, Session, str]  # what it is called, whose it is, which state


def _other(args: argparse.Namespace, session: Session) -> Session | None:
    if args.against is None:
        return None
    other = Session(argparse.Namespace(**{**vars(args), "run": args.against, "model": None, "out": None}))
    if other.shards.digest != session.shards.digest:
        raise ValueError(
            f"{args.against} and {args.run} are of different shard sets: CKA wants the same images, give --shards DIR"
        )
    return other


def _sides(session: Session, other: Session | None) -> list[Side]:
    if other is not None:
        twin = " (other)" if other.run.name == session.run.name else ""
        return [(f"end of {other.run.name}{twin}", other, "end"), (f"end of {session.run.name}", session, "end")]
    return [(which, session, which) for which in session.states]


def _labels(sides: Sequence[Side]) -> dict[str, list[str]]:
    return {name: list(session.taps) for name, session, _ in sides}


def of_pooled(sides: Sequence[Side], how: str, minibatch: int, seed: int) -> dict[str, Any]:
    """CKA of pooled features: whole split, mini-batches, and what frames the values of a layer with itself.

    Raises ValueError where the sides saw different images.
    """
    banks = [(name, session.bank(state), list(session.taps)) for name, session, state in sides]
    ids = banks[0][1].sample_ids
    if any(not np.array_equal(bank.sample_ids, ids) for _, bank, _ in banks):
        raise ValueError("the two sides saw different images: is an image damaged? check the shards")
    arrays = [bank.layer(layer, how) for _, bank, layers in banks for layer in layers]
    whole, way = hsic_of_layers(arrays)
    batched = batch_hsics(arrays, ids, batch=minibatch, seed=seed)
    sizes = [(name, len(layers)) for name, _, layers in banks]
    values = {
        "pooling": how,
        "images": len(ids),
        "computed": way,
        "whole": blocks(cka_of_hsic(whole), sizes),
        **_minibatch(batched, sizes),
    }
    if len(banks) == 2 and banks[0][2] == banks[1][2]:
        pairs = {layer: (banks[0][1].layer(layer, how), banks[1][1].layer(layer, how)) for layer in banks[0][2]}
        values["same_layer"] = {layer: frame(*pair, seed) for layer, pair in pairs.items()}
    return values


def of_tokens(sides: Sequence[Side], minibatch: int, seed: int, memory: float | None) -> dict[str, Any]:
    """CKA of unpooled activations from mini-batches and, within `memory` bytes, over the whole split."""
    states, sizes = [(session, state) for _, session, state in sides], _sizes(sides)
    found = token_hsic(states, minibatch, seed)
    values = {"pooling": None, "images": found.images, **_minibatch(found.batches, sizes)}
    if memory is None:
        return values
    tiled: TokenHsic = whole_token_hsic(states, memory)
    whole = {"computed": "tiles", "passes": tiled.passes, "whole": blocks(cka_of_hsic(tiled.batches[0]), sizes)}
    return {**values, **whole}


def as_the_study(sides: Sequence[Side]) -> dict[str, Any]:
    """The published numbers: ratios of batches as stored, averaged."""
    found = token_hsic([(session, state) for _, session, state in sides], STUDY_BATCH, 0, as_stored=True)
    ratios = np.mean([cka_of_hsic(batch) for batch in found.batches], 0)
    return {"pooling": None, "images": found.images, "minibatch": blocks(ratios, _sizes(sides))}


def _sizes(sides: Sequence[Side]) -> list[tuple[str, int]]:
    return [(name, len(session.taps)) for name, session, _ in sides]


def _minibatch(hsics: np.ndarray, sizes: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """CKA of summed mini-batches, and how far other batches would have moved it (one standard error)."""
    return {
        "minibatch": blocks(cka_of_hsic(hsics.mean(0)), sizes),
        "minibatch_error": blocks(jackknife_error(hsics), sizes),
    }


def frame(first: np.ndarray, second: np.ndarray, seed: int) -> dict[str, Any]:
    """What a layer's CKA with itself is to be read against, and other measures of the same question.

    `first` and `second` float[n, d]: the layer at the start and at the end, of the same images.
    """
    return {
        "null": null_level(first, second, seed=seed),
        "ceiling": ceiling(second, seed=seed),
        "image_halves": image_halves(first, second, seed=seed),
        "procrustes": procrustes(first, second),
        **cca(first, second),
    }


def blocks(matrix: np.ndarray, sizes: Sequence[tuple[str, int]]) -> dict[str, np.ndarray]:
    """Cut [sum L, sum L] into "a-a", "b-a", "b-b": rows of the first name, columns of the second."""
    ends = np.cumsum([0, *(size for _, size in sizes)])
    cut = {}
    for i, (row, _) in enumerate(sizes):
        for j, (column, _) in enumerate(sizes[: i + 1]):
            cut[f"{row}-{column}"] = matrix[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]
    return cut


def pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(rows, columns) of the matrices, in the order of the figure."""
    names = list(values["sides"])
    return [(names[0], names[0])] if len(names) == 1 else [(names[0],) * 2, (names[1], names[0]), (names[1],) * 2]


def maps(values: Mapping[str, Any], kind: str) -> list[str]:
    """One heat map a matrix."""
    made = []
    for row, column in pairs(values):
        matrix = np.array(values[kind][f"{row}-{column}"], np.float64)
        title = f"{row} with {column}"
        sides = values["sides"]
        made.append(heat_map(matrix, sides[row], sides[column], title=title, x_title=column, y_title=row))
    return made


def figure(values: Mapping[str, Any]) -> str:
    """The matrices side by side."""
    made = maps(values, "whole" if "whole" in values else "minibatch")
    return side_by_side(made, f"{len(made)} matrices of {CAPTION}")


def text(values: Mapping[str, Any]) -> list[str]:
    """Each layer with itself (or of one side with the nearest depth of the other) for the console."""
    names = list(values["sides"])
    if len(names) == 1:
        return [f"{values['images']} images, layers of one state with each other"]
    row, column = names[1], names[0]
    kinds = [kind for kind in ("whole", "minibatch") if kind in values]
    matrices = [np.array(values[kind][f"{row}-{column}"], np.float64) for kind in kinds]
    if values["sides"][row] != values["sides"][column]:
        return [f"{values['images']} images, {len(matrices[0])} layers of {row} with {len(matrices[0].T)} of {column}"]
    rows = [[f"{row} with {column}", *kinds]]
    for i, layer in enumerate(values["sides"][row]):
        rows.append([layer, *(f"{matrix[i, i]:.4f}" for matrix in matrices)])
    return table(rows)


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, rare={"pool", "minibatch", "memory"})
    made.add_argument("--features", choices=("pooled", "tokens"), default="pooled", help="pooled, or every token")
    add_pool(made, "both", "; a stem's cls alone is constant")
    made.add_argument("--minibatch", type=positive, default=64, help="images of a mini-batch")
    made.add_argument("--whole", action="store_true", help="of tokens: over the whole split, too")
    made.add_argument("--memory", type=float, default=2.0, help="GB of activations held for --whole; less costs passes")
    made.add_argument("--study-exact", action="store_true", help="the published study's numbers, mistakes and all")
    made.add_argument("--against", type=Path, help="another run of the set: ends are compared")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
