"""Pictures for TensorBoard: images of a batch as they enter the net, the confusion matrix, a map of embeddings."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

MOST_IMAGES = 16
MOST_POINTS = 4000  # of a map: UMAP takes seconds for so many


def batch_grid(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """uint8[h, w, 3]: the first images of a batch [b, c, h, w] in rows of four, normalisation undone.

    Other channels than three are shown as the grey of the first.
    """
    shown = images[:MOST_IMAGES].detach().float().cpu()
    level = shown * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    if level.shape[1] != 3:
        level = level[:, :1].expand(-1, 3, -1, -1)
    tiles = (level.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    across = min(len(tiles), 4)
    rows = -(-len(tiles) // across)
    tiles = np.concatenate([tiles, np.zeros((rows * across - len(tiles), *tiles.shape[1:]), np.uint8)])
    return np.concatenate([np.concatenate(list(row), 1) for row in np.split(tiles, rows)])


def confusion_picture(matrix: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """uint8[h, w, 3] of int[C, C]: colour is the share of a true class (a row), numbers are counts."""
    number = len(classes)
    figure = Figure(figsize=(2.5 + 0.5 * number, 2.2 + 0.5 * number), layout="constrained")
    axes = figure.subplots()
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if number <= 20:
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=colour)
    axes.set_xticks(range(number), classes, rotation=45, ha="right", fontsize=9)
    axes.set_yticks(range(number), classes, fontsize=9)
    axes.set(xlabel="predicted", ylabel="true")
    return pixels(figure)


def embedding_map(features: np.ndarray, seed: int) -> np.ndarray:
    """float32[n, 2]: UMAP by cosine distance (McInnes, Healy and Melville 2018), the same for the same seed."""
    near = min(15, len(features) - 1)
    # From so few points no spectral start can be had.
    start = "spectral" if len(features) > 3 * near else "random"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that it could use, and of one thread for one seed
        from umap import UMAP  # takes seconds to import

        made = UMAP(n_neighbors=near, metric="cosine", random_state=seed % 2**32, n_jobs=1, init=start)
        return np.asarray(made.fit_transform(features), np.float32)


def map_picture(places: np.ndarray, kinds: np.ndarray, classes: Sequence[str], title: str) -> np.ndarray:
    """uint8[h, w, 3]: places float[n, 2], coloured by class int[n]."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(classes):
        here = places[kinds == number]
        axes.scatter(here[:, 0], here[:, 1], s=10, color=f"C{number % 10}", label=f"{name} ({len(here)})")
    axes.set(xticks=[], yticks=[], title=title)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return pixels(figure)


def pixels(figure: Figure) -> np.ndarray:
    """A figure as uint8[h, w, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()  # type: ignore[no-untyped-call]
