"""Charts as SVG text: lines over layers or steps, heat maps of all pairs, dots. One maker for files and the report.

Colours are classes, so that the report can restyle a chart for light, dark and print; `standalone` writes them out
for a file of its own. Series differ in colour, marker and dash, and every mark carries its value as a tooltip. The
series colours keep apart under the common forms of colour blindness; heat maps use one hue, light to dark.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape, unescape
from math import floor, isfinite, log10, nan

import numpy as np

NUM_SERIES = 6
NUM_SHADES = 32
LIGHT = {
    "surface": "#ffffff",
    "ink": "#1a1c20",
    "soft": "#5b616b",
    "grid": "#e3e6ea",
    "absent": "#eceef1",
    "s0": "#2a78d6",
    "s1": "#e0602c",
    "s2": "#129a6b",
    "s3": "#a87400",
    "s4": "#c9518a",
    "s5": "#5b4bc4",
}
DARK = {
    "surface": "#15181d",
    "ink": "#e8eaed",
    "soft": "#a0a7b2",
    "grid": "#2c313a",
    "absent": "#23272f",
    "s0": "#5aa2f2",
    "s1": "#f0834f",
    "s2": "#3cc592",
    "s3": "#d9a52b",
    "s4": "#ec85b3",
    "s5": "#a398f5",
}
_RAMPS = {  # 0 .. 1 of a heat map; dark mode runs the other way, so that high values stand out from the page
    "light": ("#f2f6fb", "#c9def7", "#86b6ef", "#3987e5", "#1c5cab", "#0b2f5e"),
    "dark": ("#1c222b", "#17375f", "#1f5ba6", "#3987e5", "#8dbcf2", "#e6f1fd"),
}
_DASHES = ("", "5 3", "2 3")


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


@dataclass(frozen=True)
class Panel:
    """One coordinate system. `levels` are horizontal lines (value, what it is, colour)."""

    title: str
    series: Sequence[Series]
    unit: str = ""
    levels: Sequence[tuple[float, str, int]] = field(default_factory=tuple)
    zero: bool = False  # the axis shows 0
    height: int = 150


def style(mode: str = "light") -> str:
    """CSS of the charts with the colours of one mode as custom properties on the root element."""
    colours = {"light": LIGHT, "dark": DARK}[mode]
    pairs = [f"--{name}:{value}" for name, value in colours.items()]
    pairs += [f"--h{step}:{_shade(step / (NUM_SHADES - 1), mode)}" for step in range(NUM_SHADES)]
    return ":root{" + ";".join(pairs) + "}"


def rules() -> str:
    """CSS rules of the charts, written with custom properties."""
    lines = [
        ".chart text{font:11px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:var(--soft)}",
        ".chart .title{font-size:12.5px;font-weight:600;fill:var(--ink)}",
        ".chart .tiny{font-size:9.5px}",
        ".chart .grid{stroke:var(--grid);stroke-width:1}",
        ".chart .absent{fill:var(--absent)}",
        ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}",
        ".chart .line.thin{stroke-width:1.1}",
        ".chart .level{stroke-width:1.2;stroke-dasharray:1 4;stroke-linecap:round}",
        ".chart .whisker{stroke:var(--soft);stroke-width:1.3;fill:none}",
        ".chart .ring{stroke:var(--ink);stroke-width:1}",
        ".chart .mark{stroke:var(--surface);stroke-width:1.2}",
    ]
    for i in range(NUM_SERIES):
        lines.append(f".chart .line.s{i},.chart .level.s{i}{{stroke:var(--s{i})}}.chart .mark.s{i}{{fill:var(--s{i})}}")
    lines += [f".chart .h{step}{{fill:var(--h{step})}}" for step in range(NUM_SHADES)]
    return "\n".join(lines)


def standalone(svg: str) -> str:
    """The chart as an SVG file: light colours written out, on a ground of its own, for any viewer and for print."""
    css = rules()
    values = dict(pair.split(":") for pair in style()[6:-1].split(";"))
    for name in sorted(values, key=len, reverse=True):
        css = css.replace(f"var({name})", values[name])
    head, rest = svg.split(">", 1)
    ground = f'<rect width="100%" height="100%" fill="{LIGHT["surface"]}"/>'
    return f"{head}><style>{css}</style>{ground}{rest}\n"


def lines(panels: Sequence[Panel], *, categories: Sequence[str] = (), x_title: str = "", width: int = 760) -> str:
    """Panels one above another on a common x axis: numbers, or `categories` by place."""
    left, right, top, gap = 56, 18, 26, 34
    places = [x for panel in panels for series in panel.series for x in series.x]
    low, high = (min(places, default=0.0), max(places, default=1.0))
    if categories:
        low, high = -0.3, max(len(categories) - 0.7, 0.7)
    span = (high - low) or 1.0
    inner = width - left - right
    parts, y = [], top
    for panel in panels:
        parts.append(f'<g transform="translate({left} {y})">{_panel(panel, low, span, inner, categories)}</g>')
        y += panel.height + gap
    bottom = y - gap
    parts.append(f'<g transform="translate({left} {bottom})">{_x_axis(low, high, inner, categories, x_title)}</g>')
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
    left = 26 + max((_text_width(name, 9.5) for name in rows), default=0)
    top, depth = 30, 10 + max((_text_width(name, 9.5) for name in columns), default=0)
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
    for i, row in enumerate(rows):
        if i % every == 0:
            middle_y = top + cell * (len(rows) - 1 - i if first_row_below else i) + cell / 2 + 3
            parts.append(f'<text class="tiny" x="{left - 5}" y="{middle_y:.1f}" text-anchor="end">{escape(row)}</text>')
    for j, column in enumerate(columns):
        if j % every == 0:
            x, y = left + cell * j + cell / 2 + 3, top + tall + 6
            parts.append(
                f'<text class="tiny" transform="translate({x:.1f} {y}) rotate(-90)" text-anchor="end">'
                f"{escape(column)}</text>"
            )
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
        stroke = f' stroke-dasharray="{_DASHES[dash % 3]}"' if dash % 3 else ""
        line = f'<line class="line s{colour % NUM_SERIES}" x1="1" x2="29" y1="6" y2="6"{stroke}/>'
        sign = mark(15, 6, colour, colour, 3.2, "")
        swatch = f'<svg class="chart" width="30" height="12" aria-hidden="true">{line}{sign}</svg>'
        items.append(f"<li>{swatch}{escape(name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def svg_key(svg: str, entries: Sequence[tuple[str, int, int]], width: float) -> str:
    """The chart with a key of (name, colour, shape) below it, in rows that fit the width."""
    size = [float(svg.split(f' {side}="')[1].split('"')[0]) for side in ("width", "height")]
    parts, x, y = [], 12.0, size[1] + 12
    for name, colour, shape in entries:
        wide = 22 + _text_width(name, 9.5)
        if x + wide > width and x > 12:
            x, y = 12.0, y + 15
        parts.append(mark(x, y - 3, colour, shape, 3.4, ""))
        parts.append(f'<text class="tiny" x="{x + 8:.0f}" y="{y:.0f}">{escape(name)}</text>')
        x += wide
    inside, label = svg.split(">", 1)[1].removesuffix("</svg>"), svg.split('aria-label="')[1].split('"')[0]
    return svg_root(size[0], y + 8, unescape(label), inside + "".join(parts))


def svg_root(width: float, height: float, label: str, inside: str) -> str:
    """The outer element of a chart, named for screen readers."""
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(label, quote=True)}">{inside}</svg>'
    )


def _panel(panel: Panel, low: float, span: float, inner: float, categories: Sequence[str]) -> str:
    values = [y for series in panel.series for y in series.y if y is not None and isfinite(y)]
    values += [y for series in panel.series for y in (*series.low, *series.high) if isfinite(y)]
    values += [level for level, _, _ in panel.levels if isfinite(level)] + ([0.0] if panel.zero else [])
    marks_at = ticks(min(values, default=0.0), max(values, default=1.0), 4 if panel.height > 110 else 3)
    bottom, rise = marks_at[0], (marks_at[-1] - marks_at[0])
    tall = panel.height

    def place(x: float, y: float) -> tuple[float, float]:
        return inner * (x - low) / span, tall - tall * (y - bottom) / rise

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
                f'<line class="level s{colour % NUM_SERIES}" x1="0" x2="{inner}" y1="{y:.1f}" y2="{y:.1f}">'
                f"<title>{escape(name)}: {number(value)}</title></line>"
            )
    for series in panel.series:
        parts.append(_series(series, place, categories))
    return "".join(parts)


def _series(series: Series, place, categories: Sequence[str]) -> str:  # type: ignore[no-untyped-def]
    runs: list[list[str]] = [[]]
    marks = []
    for x, y in zip(series.x, series.y, strict=True):
        if y is None or not isfinite(y):
            runs.append([])
            continue
        left, top = place(x, y)
        runs[-1].append(f"{left:.1f} {top:.1f}")
        where = categories[round(x)] if categories else number(x)
        if series.marks:
            marks.append(
                mark(left, top, series.colour, series.colour, series.size, f"{series.name} · {where}: {number(y)}")
            )
    dash = f' stroke-dasharray="{_DASHES[series.dash % 3]}"' if series.dash % 3 else ""
    colour = series.colour % NUM_SERIES
    paths = [f'<path class="line s{colour}" d="M{" L".join(run)}"{dash}/>' for run in runs if len(run) > 1]
    return "".join(paths + _whiskers(series, place) + marks)


def _whiskers(series: Series, place) -> list[str]:  # type: ignore[no-untyped-def]
    parts = []
    for x, low, high in zip(series.x, series.low, series.high, strict=False):
        if isfinite(low) and isfinite(high):
            (left, bottom), (_, top) = place(x, low), place(x, high)
            ends = f"M{left - 3:.1f} {top:.1f}h6M{left:.1f} {top:.1f}V{bottom:.1f}M{left - 3:.1f} {bottom:.1f}h6"
            parts.append(f'<path class="line thin s{series.colour % NUM_SERIES}" d="{ends}"/>')
    return parts


def mark(x: float, y: float, colour: int, shape: int, size: float, note: str) -> str:
    """One mark: circle, square, triangle or diamond by `shape`, with its value as a tooltip."""
    tip = f"<title>{escape(note)}</title>" if note else ""
    kind = f'class="mark s{colour % NUM_SERIES}"'
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


def _x_axis(low: float, high: float, inner: float, categories: Sequence[str], x_title: str) -> str:
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
        for tick in ticks(low, high, 6):
            if low <= tick <= high:
                x = inner * (tick - low) / ((high - low) or 1)
                parts.append(f'<text class="tiny" x="{x:.1f}" y="15" text-anchor="middle">{number(tick)}</text>')
    if x_title:
        depth = _label_depth(categories, inner) if categories else 18
        parts.append(f'<text x="{inner / 2:.0f}" y="{depth + 15}" text-anchor="middle">{escape(x_title)}</text>')
    return "".join(parts)


def _label_depth(categories: Sequence[str], inner: float) -> float:
    """Pixels that the labels take below the axis: one line where they fit side by side, else their length, turned."""
    widest = max((_text_width(name, 9.5) for name in categories), default=0)
    return 18 if widest + 6 <= inner / max(len(categories), 1) else widest + 12


def _text_width(text: str, size: float) -> int:
    return int(len(text) * size * 0.58) + 2


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


def shade_class(value: float, low: float, high: float) -> str:
    """The class of the shade of a value between low and high; "absent" for NaN."""
    if not isfinite(value):
        return "absent"
    share = min(max((value - low) / ((high - low) or 1), 0.0), 1.0)
    return f"h{round(share * (NUM_SHADES - 1))}"


def _shade(share: float, mode: str) -> str:
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in _RAMPS[mode]])
    place = share * (len(stops) - 1)
    channels = [np.interp(place, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return "#" + "".join(f"{round(float(channel)):02x}" for channel in channels)


def values_or_gaps(mapping: dict[str, float], names: Sequence[str]) -> list[float]:
    """Values of `names` in order, NaN where the mapping lacks one or holds null."""
    found = [mapping.get(name) for name in names]
    return [nan if value is None else float(value) for value in found]
