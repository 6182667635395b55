"""The page of `shards view`: tiles and captions placed in inches, so that nothing can overlap."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

# Of versions and their windows; distinguishable without colour vision (Tol's "bright").
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
DPI = 110
TILE = 2.0  # inches; half as much again is what two executors share
GAP = 0.16
FONT_POINTS = 6.5
BETWEEN = 0.03  # the tiles of two executors
HEAD = 0.62
PAD = 0.09  # from a tile to its caption
LINE = FONT_POINTS * 1.28 / 72  # inches
SMALL_LETTER = 0.068  # inches of a letter of 8 points of DejaVu Sans, on average
LETTER = FONT_POINTS * 0.602 / 72  # DejaVu Sans Mono is .602 em wide: lines wrapped by count never overlap


class Row(NamedTuple):
    """One sample and what v epochs make of it."""

    key: str
    label: str
    stored: np.ndarray  # [h, w, C] of stored values
    versions: Mapping[str, Sequence[np.ndarray]]  # executor -> v images [H, W, C], 0..1
    captions: list[list[str]]  # of each version, a line for each operator that acts
    windows: list[tuple[float, float, float, float] | None]  # top, left, height, width in stored pixels
    heads: tuple[str, ...]  # of each version: an epoch, or a view
    windowed: bool = False  # 16 bits are shown as they come


def picture(rows: Sequence[Row], title: str, subtitle: str) -> Figure:
    """The sheet: everything is placed in inches, a row is as high as its longest caption needs."""
    names, versions = list(rows[0].versions), len(rows[0].captions)
    tile = TILE if len(names) == 1 else 0.75 * TILE
    cell = tile * len(names) + BETWEEN * (len(names) - 1)
    texts = [
        [stored_caption(row), *(caption_of(row, v, int(cell / LETTER) - 1) for v in range(versions))] for row in rows
    ]
    width = max(2 * GAP + TILE + versions * (cell + GAP), 7)
    below = textwrap.wrap(subtitle, int((width - 2 * GAP) / SMALL_LETTER)) or [""]
    tops = [HEAD + (len(below) - 1) * LINE]
    for row, own in zip(rows, texts, strict=True):
        ends = [_shown_height(row), *([tile] * versions)]
        tops.append(tops[-1] + GAP + max(e + PAD + (t.count("\n") + 1) * LINE for e, t in zip(ends, own, strict=True)))
    figure = Figure(figsize=(width, tops[-1]), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    page = _Page(figure)
    page.text(GAP, 0.12, title, size=13, weight="bold")
    page.text(GAP, 0.38, "\n".join(below), size=8, color="#555555")
    for row, own, top in zip(rows, texts, tops, strict=False):
        page.stored(row, top)
        page.caption(GAP, top + _shown_height(row) + PAD, own[0])
        for v in range(versions):
            left = 2 * GAP + TILE + v * (cell + GAP)
            for n, name in enumerate(names):
                page.image(
                    row.versions[name][v] if row.windowed else _stretched(row.versions[name][v], row),
                    left + n * (tile + BETWEEN),
                    top,
                    tile,
                    tile,
                )
            page.bar(left, top + tile + 0.02, cell, 0.035, COLOURS[v % len(COLOURS)])
            page.caption(left, top + tile + PAD, own[1 + v])
    return figure


def stored_caption(row: Row) -> str:
    """Key, class and size of a stored image, as wide as its tile."""
    columns = int(TILE / LETTER) - 1
    label = textwrap.shorten(row.label, 3 * columns, placeholder=" …")
    return f"{row.key}\n{textwrap.fill(label, columns)}\nstored {row.stored.shape[0]} x {row.stored.shape[1]}"


def _shown_height(row: Row) -> float:
    height, width = row.stored.shape[:2]
    return TILE * height / max(height, width)


def caption_of(row: Row, version: int, columns: int) -> str:
    """What was drawn for a version, wrapped; with two executors, how far apart they are, in levels of 255."""
    lines = [row.heads[version], *(line.replace(", ", ",") for line in row.captions[version])]
    if len(row.versions) == 2:
        one, other = (made[version] for made in row.versions.values())
        apart = 255 * np.abs(one - other)
        lines[0] += f"   {' | '.join(row.versions)}: mean {apart.mean():.2f}, most {apart.max():.0f} levels apart"
    return "\n".join(part for line in lines for part in textwrap.wrap(line, columns, subsequent_indent="  "))


def _stretched(image: np.ndarray, row: Row) -> np.ndarray:
    """Levels on the 0..1 scale as they are shown: 16 bit is stretched by the stored image, or it would be black."""
    if row.stored.dtype == np.uint8:
        return image
    low, high = np.percentile(row.stored, [0.5, 99.5]) / 65535
    return (image - low) / max(high - low, 1 / 65535)


class _Page:
    """A figure addressed in inches from its top left corner."""

    def __init__(self, figure: Figure):
        self._figure = figure
        self._width, self._height = figure.get_size_inches()

    def _box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        return left / self._width, 1 - (top + height) / self._height, width / self._width, height / self._height

    def text(self, left: float, top: float, text: str, **style: Any) -> None:
        self._figure.text(left / self._width, 1 - top / self._height, text, va="top", linespacing=1.15, **style)

    def caption(self, left: float, top: float, text: str) -> None:
        self.text(left, top, text, size=FONT_POINTS, family="DejaVu Sans Mono")

    def bar(self, left: float, top: float, width: float, height: float, colour: str) -> None:
        x, y, w, h = self._box(left, top, width, height)
        self._figure.add_artist(Rectangle((x, y), w, h, facecolor=colour, transform=self._figure.transFigure))

    def image(self, image: np.ndarray, left: float, top: float, width: float, height: float) -> Axes:
        axes = self._figure.add_axes(self._box(left, top, width, height))
        axes.set_axis_off()
        shown = np.clip(image, 0, 1)
        axes.imshow(shown if shown.shape[2] == 3 else shown[:, :, 0], cmap="gray", vmin=0, vmax=1, aspect="auto")
        return axes

    def stored(self, row: Row, top: float) -> None:
        """The stored image under the frames of the windows that its versions show."""
        height, width = row.stored.shape[:2]
        share = row.stored / float(np.iinfo(row.stored.dtype).max)
        across = TILE * width / max(height, width)
        axes = self.image(_stretched(share, row), GAP, top, across, _shown_height(row))
        for v, window in enumerate(row.windows):
            if window is not None:
                y, x, tall, wide = window
                colour = COLOURS[v % len(COLOURS)]
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), wide, tall, fill=False, edgecolor=colour, linewidth=1.2))
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)
