"""A map of the embedding: PCA and UMAP of the end's features, coloured by label, split and error.

    python analysis/embeddings.py runs/ddsm --splits train,test

PCA is a linear view with its share of variance on the axes. UMAP (McInnes et al., 2018) keeps neighbourhoods: who lies
beside whom means something, distances between clusters and their sizes do not. Errors are those of the run's own head.
Writes analysis/embeddings.json and embeddings.svg.
"""

from analysis.launching import launch  # no such module? source .venv/bin/activate

import argparse
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.decomposition import PCA

from analysis.chart_parts import placed, size_of, svg_key, svg_root
from analysis.chart_style import NUM_SERIES, standalone
from analysis.charts import Dots, scatter
from analysis.console import announce
from analysis.flags import parser
from analysis.results import write_result
from analysis.session import EMBEDDING, Session
from shards.command_line import positive
from train.layers import taps

CAPTION = "the pooled embedding of the end; a mark is an image"


def main(args: argparse.Namespace) -> None:
    """Extract or find the features, map, write, tell."""
    session = Session(args)
    names = [name.strip() for name in args.splits.split(",") if name.strip()]
    request = session.request("end", splits=names, neighbours=args.neighbours, methods=args.methods)
    if session.answered("embeddings", request):
        return
    points = gather(session, names)
    ways = {"pca": pca} | ({"umap": umap_of} if args.methods == "both" else {})
    maps = {name: way(points["features"], args.neighbours, args.seed) for name, way in ways.items()}
    values = {
        "about": CAPTION,
        "classes": list(session.shards.classes),
        **{name: points[name] for name in ("label", "split", "right")},
        "sample_ids": [str(one) for one in points["sample_ids"]],
        "maps": maps,
    }
    path = write_result(session.out, "embeddings", request, values, standalone(figure(values)))
    announce(args, path, text(values))


def gather(session: Session, splits: Sequence[str]) -> dict[str, Any]:
    """Features float32[n, d], labels, splits and whether the head was right (None where it cannot be told).

    Of several labels the first positive one colours an image, and right means all of them.
    """
    last = list(taps(session.model))[-1]
    parts: dict[str, list[Any]] = {name: [] for name in ("features", "label", "split", "right", "sample_ids")}
    for split in splits:
        bank = session.bank("end", split)
        logits = bank.layers.get(last)
        multi = bank.labels.ndim == 2
        parts["features"].append(bank.layer(EMBEDDING))
        label = np.where((bank.labels == 1).any(1), (bank.labels == 1).argmax(1), -1) if multi else bank.labels
        parts["label"] += label.tolist()
        parts["split"] += [split] * bank.num_images
        parts["sample_ids"] += bank.sample_ids.tolist()
        if logits is None or logits.shape[1] != session.shards.num_classes:
            parts["right"] += [None] * bank.num_images
        elif multi:
            parts["right"] += (((logits > 0) == (bank.labels == 1)) | np.isnan(bank.labels)).all(1).tolist()
        else:
            parts["right"] += (logits.argmax(1) == bank.labels).tolist()
    return parts | {"features": np.concatenate(parts["features"])}


def pca(features: np.ndarray, _neighbours: int, seed: int) -> dict[str, Any]:
    """Two principal components, float64[n, 2], and their share of the variance.

    Raises:
        ValueError: fewer than 2 images or 2 features.
    """
    if min(features.shape) < 2:
        raise ValueError(f"a map wants at least 2 images and 2 features, got {features.shape}")
    found = PCA(2, svd_solver="full", random_state=seed).fit(np.float64(features))
    return {"points": found.transform(np.float64(features)), "variance": found.explained_variance_ratio_}


def umap_of(features: np.ndarray, neighbours: int, seed: int) -> dict[str, Any]:
    """UMAP in two dimensions, float64[n, 2]; one thread, so that the same seed gives the same map.

    Raises:
        ValueError: fewer than 3 images.
    """
    count = min(neighbours, len(features) - 1)
    if count < 2:
        raise ValueError(f"UMAP wants at least 3 images, got {len(features)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a part that is not installed, its own seed, and small sets
        import umap

        found = umap.UMAP(n_neighbors=count, random_state=seed, n_jobs=1, init="pca").fit_transform(features)
    return {"points": np.float64(found), "neighbours": count}


def colourings(values: Mapping[str, Any]) -> dict[str, tuple[list[str], list[int]]]:
    """What the marks can be coloured by -> (names, number of each image's name; -1: without)."""
    splits = list(dict.fromkeys(values["split"]))
    found = {
        "label": (list(values["classes"]), list(values["label"])),
        "split": (splits, [splits.index(one) for one in values["split"]]),
    }
    if any(one is not None for one in values["right"]):
        found["error"] = (["right", "wrong"], [-1 if one is None else int(not one) for one in values["right"]])
    return found


def figure(values: Mapping[str, Any], width: int = 380) -> str:
    """A row a method, a column a colouring."""
    columns, parts, y = colourings(values), list[str](), 0.0
    for name, found in values["maps"].items():
        points = np.array(found["points"], np.float64)
        row = [panel(points, name, by, names, of, found, width) for by, (names, of) in columns.items()]
        parts += [placed(svg, column * (width + 8), y) for column, svg in enumerate(row)]
        y += max(size_of(svg)[1] for svg in row) + 8
    return svg_root(len(columns) * (width + 8), y, "maps of the embedding", "".join(parts))


def panel(
    points: np.ndarray,
    method: str,
    by: str,
    names: Sequence[str],
    of: Sequence[int],
    found: Mapping[str, Any],
    width: int,
) -> str:
    """One map coloured by one thing, with its key. Colour and shape both tell, so that neither is needed alone.

    `points` float64[n, 2]; `of` has the number of each point's name, -1 for none; `width` in pixels.
    """
    number = np.array(of)
    groups = []
    for i, name in enumerate(names):
        rows = np.flatnonzero(number == i)
        shape = i % 4 if i < NUM_SERIES else (i + 1) % 4
        x, y = points[rows].T.tolist()
        groups.append(Dots(name, x, y, [name] * len(rows), i, shape, [2.6] * len(rows)))
    axes = [f"{method} {i + 1}" for i in (0, 1)]
    if "variance" in found:
        axes = [f"{axis} ({share:.0%} of variance)" for axis, share in zip(axes, found["variance"], strict=True)]
    title = f"{'PCA' if method == 'pca' else 'UMAP'} by {by}"
    svg = scatter(groups, title=title, x_title=axes[0], y_title=axes[1], width=width)
    return svg_key(svg, [(group.name, group.colour, group.shape) for group in groups], width)


def text(values: Mapping[str, Any]) -> list[str]:
    """What the maps hold, for the console."""
    known = [one for one in values["right"] if one is not None]
    lines = [f"{len(values['label'])} images of {', '.join(dict.fromkeys(values['split']))}"]
    if known:
        lines[0] += f", {1 - np.mean(known):.1%} wrong"
    share = float(np.sum(values["maps"]["pca"]["variance"]))
    return [*lines, f"PCA's two directions hold {share:.1%} of the variance"]


def command_line() -> argparse.ArgumentParser:
    """The flags of this script, and those of all."""
    made = parser(__doc__, without=("split", "layers", "taps"))
    made.add_argument("--splits", default="train,test", help="splits on one map, by commas")
    made.add_argument("--neighbours", type=positive, default=15, help="neighbours of UMAP")
    made.add_argument("--methods", choices=("both", "pca"), default="both", help="PCA and UMAP, or PCA alone")
    return made


if __name__ == "__main__":
    launch(command_line(), main)
