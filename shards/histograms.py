"""Histograms of a shard set: the sizes of its stored images, from the index, and the intensities of a sample of them.

Splits are compared as shares, so that a small one can be held against a large one.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from shards.decoding import stored_image
from shards.shardset import Split

MAX_IMAGES = 300  # decoded, over all splits
MAX_PIXELS = 300_000_000  # decoded, over all splits: whole mammograms are large
BINS = 48


def sample_positions(split: Split, seed: int, images: int, pixels: int) -> np.ndarray:
    """Positions int64[k] drawn by `seed`: at most `images`, of at most `pixels` together, but at least one."""
    drawn = np.random.default_rng(seed).permutation(split.num_samples)[: max(images, 1)]
    within = np.cumsum(split.sides(drawn).prod(1)) <= pixels
    return np.sort(drawn[: max(int(within.sum()), 1)])


def intensity_shares(split: Split, positions: np.ndarray) -> np.ndarray:
    """Share of each value 0..2^bits - 1 in the images at positions int64[k], all channels together: float64[2^bits].

    Each image counts the same, whatever its size. Sums to 1; to 0 for no images.

    Raises:
        ValueError: an image is damaged or does not decode.
    """
    total = np.zeros(1 << split.manifest.bits)
    for position in positions.tolist():
        image = stored_image(split, position)
        total += np.bincount(image.reshape(-1), minlength=len(total)) / image.size
    return total / max(len(positions), 1)


def side_edges(sides: Sequence[np.ndarray]) -> np.ndarray:
    """Edges between whole pixels of at most BINS equal bins over all sides int[n]: float64[bins + 1]."""
    low, high = min(int(each.min()) for each in sides), max(int(each.max()) for each in sides)
    step = max(-(-(high - low + 1) // BINS), 1)
    bins = -(-(high - low + 1) // step)
    if bins < 8:  # one size for all, or nearly: room on both sides, else a bar fills the picture
        low, bins = low - 4 * step, bins + 8
    return low - 0.5 + step * np.arange(bins + 1)


def grouped_values(shares: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Shares float64[values] of several splits in about BINS bins up to the highest value that occurs: (edges, shares).

    12-bit images stored in 16 bits use a sixteenth of the range; the rest would be an empty picture.
    """
    used = max((int(np.flatnonzero(each).max(initial=0)) for each in shares), default=0) + 1
    width = -(-used // BINS)
    bins = -(-used // width)
    padded = [np.pad(each[:used], (0, bins * width - used)).reshape(bins, width).sum(1) for each in shares]
    return width * np.arange(bins + 1, dtype=float), padded


def draw_sides(axis: Axes, sides: dict[str, np.ndarray], colours: dict[str, str], title: str) -> None:
    """Shares of one side's lengths: {split: int[n], pixels}."""
    edges = side_edges(list(sides.values()))
    for number, (name, lengths) in enumerate(sides.items()):
        shares = 100 * np.histogram(lengths, edges)[0] / len(lengths)
        axis.stairs(shares, edges, color=colours[name], linewidth=_width(number), label=name)
    axis.set_ylabel("% of the split")
    _frame(axis, title, "pixels, as stored")


def draw_intensities(
    axis: Axes, shares: dict[str, np.ndarray], colours: dict[str, str], counts: dict[str, int]
) -> None:
    """Shares of pixel values, on a logarithmic scale: black surroundings hold most pixels of many medical images."""
    edges, grouped = grouped_values(list(shares.values()))
    for number, (name, values) in enumerate(zip(shares, grouped, strict=True)):
        axis.stairs(100 * values, edges, color=colours[name], linewidth=_width(number), label=name)
    axis.set_yscale("log")
    axis.yaxis.set_minor_formatter(NullFormatter())
    rarest = min((float(values[values > 0].min(initial=1)) for values in grouped), default=1)
    axis.set_ylim(bottom=100 * max(10.0 ** math.floor(math.log10(rarest)), 1e-6))  # a decade's line, at least
    axis.set_ylabel("% of values", labelpad=0)
    drawn = ", ".join(f"{name} {count}" for name, count in counts.items())
    _frame(axis, "Intensities", f"value, as stored; images: {drawn}")


def _width(number: int) -> float:
    """Later lines are thinner, so that equal ones do not hide each other."""
    return max(2.6 - 0.9 * number, 0.8)


def _frame(axis: Axes, title: str, below: str) -> None:
    axis.set_title(title, loc="left", fontsize=11, weight="bold")
    axis.set_xlabel(below, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
