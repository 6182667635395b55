"""Charts as SVG text: lines over layers or steps, heat maps of all pairs, dots. One maker for files and the report.

Series differ in colour, marker and dash, and every mark carries its value as a tooltip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil, floor, inf, isfinite, log10

import numpy as np

from analysis.chart_parts import DASHES, colour_bar, mark, number, svg_root, text_width, ticks
from analysis.chart_style import colour_class, shade_class
from analysis.results import as_float


@dataclass(frozen=True)
class Series:
    """One line: values y over x (numbers, or places 0.. of categories). NaN leaves a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: int = 0
    marks: bool = True
    low: Sequence[float] = ()  # of an interval around each y, with `high`; empty: none
    high: Sequence[float] = ()
    size: float = 3.4  # of its marks, pixels
    thin: bool = False  # a line behind the others
    shift: float = 0  # pixels to the right, so that whiskers at one x stand side by side


@dataclass(frozen=True)
class Panel:
    """One coordinate system. `levels` are horizontal lines (value, what it is, colour)."""

    title: str
    series: Sequence[Series]
    unit: str = ""
    levels: Sequence[tuple[float, str, int]] = field(default_factory=tuple)
    zero: bool = False  # the axis shows 0
    log: bool = False  # the axis is logarithmic where all values are above 0
    height: int = 150


def lines(
    panels: Sequence[Panel],
    *,
    categories: Sequence[str] = (),
    x_title: str = "",
    width: int = 760,
    x_marks: Mapping[float, str] | None = None,
) -> str:
    """Panels one above another on a common x axis: numbers, or `categories` by place.

    `x_marks`: where the axis of numbers is marked, and with what; round numbers without.
    """
    left, right, top, gap = 56, 18, 26, 34
    places = [x for panel in panels for series in panel.series for x in series.x]
    low, high = (min(places, default=0.0), max(places, default=1.0))
    if x_marks:  # room for the first and the last name, and for whiskers
        low, high = low - 0.05 * ((high - low) or 1), high + 0.05 * ((high - low) or 1)
    if categories:
        low, high = -0.3, max(len(categories) - 0.7, 0.7)
    span = (high - low) or 1.0
    inner = width - left - right
    parts, y = [], top
    for panel in panels:
        parts.append(f'<g transform="translate({left} {y})">{_panel(panel, low, span, inner, categories)}</g>')
        y += panel.height + gap
    bottom = y - gap
    parts.append(
        f'<g transform="translate({left} {bottom})">{_x_axis(low, high, inner, categories, x_title, x_marks)}</g>'
    )
    depth = _label_depth(categories, inner) if categories else 18
    height = bottom + depth + (24 if x_title else 10)
    return svg_root(width, height, "; ".join(panel.title for panel in panels), "".join(parts))


def heat_map(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x_title: str,
    y_title: str,
    low: float = 0.0,
    high: float = 1.0,
    first_row_below: bool = True,
    notes: Sequence[Sequence[str]] | None = None,
) -> str:
    """A matrix [rows, columns] as shaded cells; the first row stands below, as depth grows upwards. NaN stays grey.

    `notes` [rows][columns]: more for the tooltips of cells.
    """
    cell = max(6, min(22, 300 // max(len(rows), len(columns), 1)))
    left = 26 + max((text_width(name) for name in rows), default=0)
    top, depth = 30, 10 + max((text_width(name) for name in columns), default=0)
    wide, tall = cell * len(columns), cell * len(rows)
    parts = [f'<text class="title" x="{left}" y="16">{escape(title)}</text>']
    for i, row in enumerate(rows):
        y = top + cell * (len(rows) - 1 - i if first_row_below else i)
        for j, column in enumerate(columns):
            value = float(values[i, j])
            parts.append(
                f'<rect class="{shade_class(value, low, high)}" x="{left + cell * j}" y="{y}" width="{cell}" '
                f'height="{cell}"><title>{escape(y_title)} {escape(row)} · {escape(x_title)} {escape(column)}: '
                f"{number(value)}{f' ({escape(notes[i][j])})' if notes else ''}</title></rect>"
            )
    every = -(-11 // cell)
    for i, row in enumerate(rows[::every]):
        place = len(rows) - 1 - every * i if first_row_below else every * i
        middle_y = top + cell * place + cell / 2 + 3
        parts.append(f'<text class="tiny" x="{left - 5}" y="{middle_y:.1f}" text-anchor="end">{escape(row)}</text>')
    for j, column in enumerate(columns[::every]):
        turned = f"translate({left + cell * every * j + cell / 2 + 3:.1f} {top + tall + 6}) rotate(-90)"
        parts.append(f'<text class="tiny" transform="{turned}" text-anchor="end">{escape(column)}</text>')
    parts.append(
        f'<text x="{left + wide / 2:.0f}" y="{top + tall + depth + 8}" text-anchor="middle">{escape(x_title)}</text>'
    )
    middle = f"translate(12 {top + tall / 2:.0f}) rotate(-90)"
    parts.append(f'<text transform="{middle}" text-anchor="middle">{escape(y_title)}</text>')
    parts.append(colour_bar(left + wide + 12, top, tall, low, high))
    return svg_root(left + wide + 58, top + tall + depth + 18, title, "".join(parts))


@dataclass(frozen=True)
class Dots:
    """Points in a plane: x, y [n]; what each is; colour and shape by number."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str]
    colour: int = 0
    shape: int = 0
    sizes: Sequence[float] | None = None


def scatter(groups: Sequence[Dots], *, title: str, x_title: str, y_title: str, width: int = 460) -> str:
    """Point clouds on plain axes; a point's tooltip is its note."""
    left, top, side = 46, 28, width - 46 - 16
    xs, ys = ([v for dots in groups for v in getattr(dots, axis) if isfinite(v)] for axis in "xy")
    x_ticks, y_ticks = ticks(min(xs, default=0), max(xs, default=1)), ticks(min(ys, default=0), max(ys, default=1))
    x_low, x_span = x_ticks[0], x_ticks[-1] - x_ticks[0]
    y_low, y_span = y_ticks[0], y_ticks[-1] - y_ticks[0]
    parts = [f'<text class="title" x="{left}" y="16">{escape(title)}</text>']
    for tick in y_ticks:
        y = top + side - side * (tick - y_low) / y_span
        parts.append(f'<line class="grid" x1="{left}" x2="{left + side}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tiny" x="{left - 6}" y="{y + 3:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x_ticks:
        x = left + side * (tick - x_low) / x_span
        parts.append(f'<text class="tiny" x="{x:.1f}" y="{top + side + 15}" text-anchor="middle">{number(tick)}</text>')
    for dots in groups:
        sizes = dots.sizes if dots.sizes is not None else [3.2] * len(dots.x)
        for x, y, note, size in zip(dots.x, dots.y, dots.notes, sizes, strict=True):
            place = left + side * (x - x_low) / x_span, top + side - side * (y - y_low) / y_span
            parts.append(mark(*place, dots.colour, dots.shape, size, note))
    parts.append(f'<text x="{left + side / 2:.0f}" y="{top + side + 32}" text-anchor="middle">{escape(x_title)}</text>')
    middle = f"translate(11 {top + side / 2:.0f}) rotate(-90)"
    parts.append(f'<text transform="{middle}" text-anchor="middle">{escape(y_title)}</text>')
    return svg_root(width, top + side + 40, title, "".join(parts))


def _panel(panel: Panel, low: float, span: float, inner: float, categories: Sequence[str]) -> str:
    values = [y for series in panel.series for y in series.y if y is not None and isfinite(y)]
    values += [y for series in panel.series for y in (*series.low, *series.high) if isfinite(y)]
    values += [level for level, _, _ in panel.levels if isfinite(level)] + ([0.0] if panel.zero else [])
    is_log = panel.log and min(values, default=0.0) > 0
    marks_at = _log_ticks(min(values), max(values)) if is_log else _ticks_of(panel, values)
    scale = log10 if is_log else float
    bottom, top = scale(marks_at[0]), scale(marks_at[-1])
    tall = panel.height

    def place(x: float, y: float) -> tuple[float, float]:
        return inner * (x - low) / span, tall - tall * (scale(y) - bottom) / (top - bottom)

    parts = [f'<text class="title" x="-44" y="-10">{escape(panel.title)}<tspan class="tiny" dx="6" font-weight="400">']
    parts.append(f"{escape(panel.unit)}</tspan></text>")
    for tick in marks_at:
        y = place(low, tick)[1]
        parts.append(f'<line class="grid" x1="0" x2="{inner}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tiny" x="-7" y="{y + 3.3:.1f}" text-anchor="end">{number(tick)}</text>')
    for value, name, colour in panel.levels:
        if isfinite(value):
            y = place(low, value)[1]
            parts.append(
                f'<line class="level {colour_class(colour)}" x1="0" x2="{inner}" y1="{y:.1f}" y2="{y:.1f}">'
                f"<title>{escape(name)}: {number(value)}</title></line>"
            )
    for series in panel.series:
        parts.append(_series(series, place, categories))
    return "".join(parts)


def _ticks_of(panel: Panel, values: Sequence[float]) -> list[float]:
    return ticks(min(values, default=0.0), max(values, default=1.0), 4 if panel.height > 110 else 3)


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten that enclose low..high; also their doubles and fives within two decades."""
    first, last = floor(log10(low)), ceil(log10(high))
    fine = [round(factor * 10.0**power, 12) for power in range(first, last + 1) for factor in (1, 2, 5)]
    if last - first > 2:
        return [10.0**power for power in range(first, last + 1)]
    start = max(value for value in fine if value <= low * (1 + 1e-9))
    return [value for value in fine if start <= value <= next(each for each in fine if each >= high and each > start)]


def _series(series: Series, place, categories: Sequence[str]) -> str:  # type: ignore[no-untyped-def]
    runs: list[list[str]] = [[]]
    marks: list[tuple[int, str]] = []
    for x, y in zip(series.x, series.y, strict=True):
        if y is None or not isfinite(y):
            runs.append([])
            continue
        left, top = place(x, y)
        left += series.shift
        runs[-1].append(f"{left:.1f} {top:.1f}")
        where = categories[round(x)] if categories else number(x)
        note = f"{series.name} · {where}: {number(y)}"
        marks.append((len(runs) - 1, mark(left, top, series.colour, series.colour, series.size, note)))
    dash = f' stroke-dasharray="{DASHES[series.dash % 3]}"' if series.dash % 3 else ""
    kind = f"line {'thin ' if series.thin else ''}{colour_class(series.colour)}"
    paths = [f'<path class="{kind}" d="M{" L".join(run)}"{dash}/>' for run in runs if len(run) > 1]
    # A value between gaps has no line: without its mark it would not be seen.
    shown = [each for run, each in marks if series.marks or len(runs[run]) == 1]
    return "".join(paths + _whiskers(series, place) + shown)


def _whiskers(series: Series, place) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    for x, low, high in zip(series.x, series.low, series.high, strict=False):
        if isfinite(low) and isfinite(high):
            (left, bottom), (_, top) = place(x, low), place(x, high)
            left += series.shift
            ends = f"M{left - 3:.1f} {top:.1f}h6M{left:.1f} {top:.1f}V{bottom:.1f}M{left - 3:.1f} {bottom:.1f}h6"
            parts.append(f'<path class="line thin {colour_class(series.colour)}" d="{ends}"/>')
    return parts


def _x_axis(
    low: float,
    high: float,
    inner: float,
    categories: Sequence[str],
    x_title: str,
    x_marks: Mapping[float, str] | None,
) -> str:
    parts = []
    if categories:
        step = inner / (high - low)
        every = max(1, -(-12 // max(int(step), 1)))
        flat = _label_depth(categories, inner) < 20
        for i, name in enumerate(categories):
            if i % every:
                continue
            x = step * (i - low)
            turn = f"translate({x:.1f} 15)" if flat else f"translate({x + 3:.1f} 9) rotate(-90)"
            anchor = "middle" if flat else "end"
            parts.append(f'<text class="tiny" transform="{turn}" text-anchor="{anchor}">{escape(name)}</text>')
    else:
        parts += _x_numbers(low, high, inner, x_marks)
    if x_title:
        depth = _label_depth(categories, inner) if categories else 18
        parts.append(f'<text x="{inner / 2:.0f}" y="{depth + 15}" text-anchor="middle">{escape(x_title)}</text>')
    return "".join(parts)


def _x_numbers(low: float, high: float, inner: float, x_marks: Mapping[float, str] | None) -> list[str]:
    named = x_marks or {tick: number(tick) for tick in ticks(low, high, 6) if low <= tick <= high}
    parts, free = [], -inf
    for tick, name in sorted(named.items()):
        x, half = inner * (tick - low) / ((high - low) or 1), text_width(name) / 2
        if x - half < free:
            continue  # it would lie on its neighbour
        free = x + half + 4
        parts.append(f'<text class="tiny" x="{x:.1f}" y="15" text-anchor="middle">{escape(name)}</text>')
    return parts


def _label_depth(categories: Sequence[str], inner: float) -> float:
    """Pixels that the labels take below the axis: one line where they fit side by side, else their length, turned."""
    widest = max((text_width(name) for name in categories), default=0)
    return 18 if widest + 6 <= inner / max(len(categories), 1) else widest + 12


def values_or_gaps(mapping: dict[str, float], names: Sequence[str]) -> list[float]:
    """Values of `names` in order, NaN where the mapping lacks one or holds null."""
    return [as_float(mapping.get(name)) for name in names]
