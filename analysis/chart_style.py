"""Colours of charts: light, dark, and written out for a file of its own.

Colours are classes, so that the report can restyle a chart for light, dark and print; `standalone` writes them out.
The series colours keep apart under the three forms of colour blindness (a test holds how far), and so do their markers;
heat maps use one hue, light to dark.
"""

from math import isfinite

import numpy as np

NUM_SERIES = 6
NUM_SHADES = 32
TINY = 10.5  # pixels of the letters at ticks: a chart of 940 has them at 6 pt on A4
TITLE = 12.5
NEUTRAL = -1  # the colour of what is no run: a diagonal, a bound
LIGHT = {
    "surface": "#ffffff",
    "ink": "#1a1c20",
    "soft": "#5b616b",
    "grid": "#e3e6ea",
    "absent": "#eceef1",
    "s0": "#2a78d6",
    "s1": "#e0602c",
    "s2": "#129a6b",
    "s3": "#4a3614",
    "s4": "#86095a",
    "s5": "#4d23b6",
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
    "s3": "#e9e0c6",
    "s4": "#e785c0",
    "s5": "#b6baf6",
}
_RAMPS = {  # 0 .. 1 of a heat map; dark mode runs the other way, so that high values stand out from the page
    "light": ("#f2f6fb", "#c9def7", "#86b6ef", "#3987e5", "#1c5cab", "#0b2f5e"),
    "dark": ("#1c222b", "#17375f", "#1f5ba6", "#3987e5", "#8dbcf2", "#e6f1fd"),
}


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
        f".chart .title{{font-size:{TITLE}px;font-weight:600;fill:var(--ink)}}",
        f".chart .tiny{{font-size:{TINY}px}}",
        ".chart .grid{stroke:var(--grid);stroke-width:1}",
        ".chart .absent{fill:var(--absent)}",
        ".chart .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}",
        ".chart .line.thin{stroke-width:1.1}",
        ".chart .level{stroke-width:1.2;stroke-dasharray:1 4;stroke-linecap:round}",
        ".chart .whisker{stroke:var(--soft);stroke-width:1.3;fill:none}",
        ".chart .ring{stroke:var(--ink);stroke-width:1}",
        ".chart .mark{stroke:var(--surface);stroke-width:1.2}",
    ]
    lines.append(".chart .line.neutral{stroke:var(--soft)}.chart .mark.neutral{fill:var(--soft)}")
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


def colour_class(colour: int) -> str:
    """The class of a series' colour."""
    return "neutral" if colour == NEUTRAL else f"s{colour % NUM_SERIES}"


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
