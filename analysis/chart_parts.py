"""What charts are put together from: marks, ticks, keys, numbers for reading, the outer element."""

from collections.abc import Sequence
from html import escape, unescape
from math import floor, isfinite, log10

from analysis.chart_style import NUM_SHADES, TINY, colour_class

DASHES = ("", "5 3", "2 3")


def number(value: float) -> str:
    """A value for reading: four significant digits, "–" for NaN."""
    if not isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        text = f"{value:.{max(0, 3 - floor(log10(abs(value))))}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{value:.2e}"


def legend(entries: Sequence[tuple[str, int, int]]) -> str:
    """An HTML list of (name, colour, dash): a swatch with the series' own marker and dash, and its name."""
    items = []
    for name, colour, dash in entries:
        stroke = f' stroke-dasharray="{DASHES[dash % 3]}"' if dash % 3 else ""
        line = f'<line class="line {colour_class(colour)}" x1="1" x2="29" y1="6" y2="6"{stroke}/>'
        sign = mark(15, 6, colour, colour, 3.2, "")
        swatch = f'<svg class="chart" width="30" height="12" aria-hidden="true">{line}{sign}</svg>'
        items.append(f"<li>{swatch}{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def svg_key(svg: str, entries: Sequence[tuple[str, int, int]], width: float) -> str:
    """The chart with a key of (name, colour, shape) below it, in rows that fit the width."""
    size = size_of(svg)
    parts, x, y = [], 12.0, size[1] + 12
    for name, colour, shape in entries:
        wide = 22 + text_width(name)
        if x + wide > width and x > 12:
            x, y = 12.0, y + 15
        parts.append(mark(x, y - 3, colour, shape, 3.4, ""))
        parts.append(f'<text class="tiny" x="{x + 8:.0f}" y="{y:.0f}">{escape(name)}</text>')
        x += wide
    inside, label = svg.split(">", 1)[1].removesuffix("</svg>"), svg.split('aria-label="')[1].split('"')[0]
    return svg_root(size[0], y + 8, unescape(label), inside + "".join(parts))


def size_of(svg: str) -> tuple[float, float]:
    """Width and height of a chart, pixels."""
    wide, high = (float(svg.split(f' {side}="')[1].split('"')[0]) for side in ("width", "height"))
    return wide, high


def placed(svg: str, x: float, y: float) -> str:
    """A chart at a place within another."""
    return svg.replace("<svg ", f'<svg x="{x:.0f}" y="{y:.0f}" ', 1)


def side_by_side(charts: Sequence[str], label: str, gap: float = 10) -> str:
    """Charts in a row, as one."""
    parts, x = [], 0.0
    for svg in charts:
        parts.append(placed(svg, x, 0))
        x += size_of(svg)[0] + gap
    return svg_root(x, max(size_of(svg)[1] for svg in charts), label, "".join(parts))


def svg_root(width: float, height: float, label: str, inside: str) -> str:
    """The outer element of a chart, named for screen readers."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(label, quote=True)}">{inside}</svg>'
    )


def mark(x: float, y: float, colour: int, shape: int, size: float, note: str) -> str:
    """One mark: circle, square, triangle or diamond by `shape`, with its value as a tooltip."""
    tip = f"<title>{escape(note)}</title>" if note else ""
    kind = f'class="mark {colour_class(colour)}"'
    s = size
    if shape % 4 == 0:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="{s:.1f}">{tip}</circle>'
    if shape % 4 == 1:
        return f'<rect {kind} x="{x - s:.1f}" y="{y - s:.1f}" width="{2 * s:.1f}" height="{2 * s:.1f}">{tip}</rect>'
    points = {
        2: f"M{x:.1f} {y - 1.25 * s:.1f}L{x + 1.2 * s:.1f} {y + s:.1f}L{x - 1.2 * s:.1f} {y + s:.1f}Z",
        3: f"M{x:.1f} {y - 1.4 * s:.1f}L{x + 1.4 * s:.1f} {y:.1f}L{x:.1f} {y + 1.4 * s:.1f}L{x - 1.4 * s:.1f} {y:.1f}Z",
    }
    return f'<path {kind} d="{points[shape % 4]}">{tip}</path>'


def text_width(text: str, size: float = TINY) -> int:
    """Pixels of a line of text, a little too many."""
    return int(len(text) * size * 0.58) + 2


def shortened(text: str, room: float, size: float = TINY) -> str:
    """The text, cut with an ellipsis where it takes more than `room` pixels."""
    fits = int((room - 2) / (size * 0.62))
    return text if len(text) <= fits else text[: max(fits - 1, 1)] + "…"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose low..high, about `wanted` of them."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300) or not isfinite(high - low):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / max(wanted - 1, 1)
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = floor(low / step + 1e-9), -floor(-high / step + 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def colour_bar(x: float, y: float, tall: float, low: float, high: float) -> str:
    """The shades of a heat map beside their values."""
    step = tall / NUM_SHADES
    parts = [
        f'<rect class="h{i}" x="{x}" y="{y + tall - step * (i + 1):.2f}" width="10" height="{step + 0.4:.2f}"/>'
        for i in range(NUM_SHADES)
    ]
    parts.append(f'<text class="tiny" x="{x + 14}" y="{y + 8}">{number(high)}</text>')
    parts.append(f'<text class="tiny" x="{x + 14}" y="{y + tall}">{number(low)}</text>')
    return "".join(parts)
