"""Panels of dots whose size and shade carry a value each, with whiskers: the chart of gains, as SVG text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import inf, isfinite, sqrt

from analysis.chart_parts import colour_bar, number, shortened, svg_root, text_width, ticks
from analysis.chart_style import NUM_SHADES, TINY, TITLE, shade_class

SMALL, LARGE = 4.5, 15.0  # radii in pixels of the least and the largest size


@dataclass(frozen=True)
class Dot:
    """A place (x: a number or the place of a category) with whiskers, a size of any unit and a shade 0..1."""

    x: float
    y: float
    low: float
    high: float
    size: float
    shade: float
    note: str
    label: str = ""


def dot_panels(
    panels: Sequence[tuple[str, Sequence[Dot]]],
    *,
    categories: Sequence[str] = (),
    x_title: str,
    y_title: str,
    size_title: str,
    width: int = 940,
) -> str:
    """Panels side by side on one y axis, (title, dots) each; a key of sizes and shades to the right.

    Area grows linearly with size. What has no size or no shade is drawn small or grey, and its note says so.
    """
    left, top, tall, right, gap = 58, 34, 250, 118, 18
    dots = [dot for _, found in panels for dot in found]
    inner = (width - left - right - gap * (len(panels) - 1)) / max(len(panels), 1)
    y_values = [v for dot in dots for v in (dot.y, dot.low, dot.high) if isfinite(v)] + [0.0]
    marks = ticks(min(y_values), max(y_values), 5)
    named = dict(enumerate(categories)) if categories else {d.x: f"{d.label} ({number(d.x)})" for d in dots}
    margin = 0.6 if categories else 0.1 * ((max(named, default=1) - min(named, default=0)) or 1)
    x_low, x_high = min(named, default=0) - margin, max(named, default=1) + margin
    sizes = [dot.size for dot in dots if isfinite(dot.size)]
    span = (min(sizes, default=0.0), max(sizes, default=1.0))
    widest = max(map(text_width, named.values()), default=0)
    flat = bool(categories) and (widest + 4) * (len(named) + 0.2) <= inner
    below = 16 if flat else widest + 10
    parts = []
    for column, (title, found) in enumerate(panels):
        x0 = left + column * (inner + gap)
        parts.append(f'<g transform="translate({x0:.1f} {top})">')
        parts.append(f'<text class="title" x="0" y="-12">{escape(shortened(title, inner, TITLE))}</text>')
        parts += _grid(marks, inner, tall, labelled=column == 0)
        parts += _x_labels({inner * (x - x_low) / (x_high - x_low): name for x, name in named.items()}, tall, flat=flat)
        for dot in found:
            x = inner * (dot.x - x_low) / (x_high - x_low)
            parts.append(_dot(dot, x, marks, tall, span))
        parts.append("</g>")
    middle = left + (width - left - right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{top + tall + below + 20}" text-anchor="middle">{escape(x_title)}</text>')
    turned = f"translate(13 {top + tall / 2:.0f}) rotate(-90)"
    parts.append(f'<text transform="{turned}" text-anchor="middle">{escape(y_title)}</text>')
    parts.append(_key(width - right + 16, top, span, size_title, shades=any(isfinite(dot.shade) for dot in dots)))
    return svg_root(width, top + tall + below + 30, f"{y_title} by {x_title}", "".join(parts))


def _grid(marks: Sequence[float], inner: float, tall: float, *, labelled: bool) -> list[str]:
    parts = []
    for mark in marks:
        y = tall - tall * (mark - marks[0]) / (marks[-1] - marks[0])
        parts.append(f'<line class="grid" x1="0" x2="{inner:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        if labelled:
            parts.append(f'<text class="tiny" x="-7" y="{y + 3.3:.1f}" text-anchor="end">{number(mark)}</text>')
    return parts


def _x_labels(named: Mapping[float, str], tall: float, *, flat: bool) -> list[str]:
    """Names at pixels; turned ones at least a line apart."""
    parts, free = [], -inf
    for x, name in sorted(named.items()):
        at = x if flat else max(x, free)
        free = at + TINY + 2
        turn = f"translate({at:.1f} {tall + 16})" if flat else f"translate({at + 3:.1f} {tall + 8}) rotate(-90)"
        anchor = "middle" if flat else "end"
        parts.append(f'<text class="tiny" transform="{turn}" text-anchor="{anchor}">{escape(name)}</text>')
    return parts


def radius(size: float, span: tuple[float, float]) -> float:
    """Pixels of a size, so that the area is linear in it between SMALL and LARGE."""
    low, high = span
    share = (size - low) / (high - low) if isfinite(size) and high > low else 0.0 if not isfinite(size) else 0.5
    return sqrt(SMALL**2 + share * (LARGE**2 - SMALL**2))


def _dot(dot: Dot, x: float, marks: Sequence[float], tall: float, span: tuple[float, float]) -> str:
    def place(value: float) -> float:
        return tall - tall * (value - marks[0]) / (marks[-1] - marks[0])

    if not isfinite(dot.y):
        tip = f"<title>{escape(dot.note)}</title>"
        return f'<text class="tiny" x="{x:.1f}" y="{tall - 6}" text-anchor="middle">–{tip}</text>'
    parts, r = [], radius(dot.size, span)
    if isfinite(dot.low) and isfinite(dot.high):
        y1, y2 = place(dot.low), place(dot.high)
        parts.append(f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>')
        for y in (y1, y2):
            parts.append(f'<line class="whisker" x1="{x - 4:.1f}" x2="{x + 4:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    kind = f"{shade_class(dot.shade, 0, 1)} ring"
    parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{place(dot.y):.1f}" r="{r:.1f}">')
    parts.append(f"<title>{escape(dot.note)}</title></circle>")
    return "".join(parts)


def _key(x: float, y: float, span: tuple[float, float], size_title: str, *, shades: bool) -> str:
    low, high = span
    shown = [low, (low + high) / 2, high] if high > low else [low]
    parts = [f'<g transform="translate({x:.0f} {y})"><text class="tiny" x="0" y="0">{escape(size_title)}</text>']
    depth = 8.0
    for size in shown:
        r = radius(size, span)
        depth += r
        parts.append(f'<circle class="absent ring" cx="16" cy="{depth:.1f}" r="{r:.1f}"/>')
        parts.append(f'<text class="tiny" x="38" y="{depth + 3:.1f}">{number(size)}</text>')
        depth += r + 6
    if not shades:  # one cell alone
        return "".join(parts) + "</g>"
    parts.append(f'<text class="tiny" x="0" y="{depth + 14:.0f}">share of features</text>')
    parts.append(f'<text class="tiny" x="0" y="{depth + 25:.0f}">over all cells</text>')
    parts.append(colour_bar(0, depth + 32, NUM_SHADES * 2.4, 0, 1) + "</g>")
    return "".join(parts)
