"""One page for one or more runs: what was trained on what, is the data sound, how well, and where reuse happens.

    python analysis/report.py RUN [RUN2 …] [--out report.html]

Reads each run's record and the results under its analysis/ folder, which the other scripts write, and works nothing out
anew. Writes one HTML file without script or network (default RUN/report.html), and beside it the same numbers as csv.
Several runs stand side by side.
"""

import argparse
import csv
import io
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from analysis.report_data import Entry, load
from analysis.report_sections import KNOWN, SECTIONS, head
from analysis.report_style import page
from shards.command_line import Parser
from shards.errors import run_cli
from shards.manifest import write_aside

MAX_BYTES = 5_000_000


def main(args: argparse.Namespace) -> None:
    """Read, write, tell."""
    entries = load(args.runs, args.shards, args.model)
    first = entries[0].run
    out = args.out or (first.folder or first.out_dir) / "report.html"
    if out.is_dir() or out.suffix != ".html":
        raise ValueError(f"--out {out}: name a file that ends in .html")
    document = build_report(entries).encode()
    if len(document) > MAX_BYTES:
        raise ValueError(f"the report would have {len(document):,} bytes, above {MAX_BYTES:,}: name fewer runs")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_aside(out.with_suffix(".csv"), values_csv(entries).encode())
    write_aside(out, document)
    print(f"{out} ({len(document) / 1e3:.0f} kB) and {out.with_suffix('.csv').name}")


def build_report(entries: Sequence[Entry]) -> str:
    """The page as text."""
    title = "medshard: " + ", ".join(entry.name for entry in entries)
    sections = [(anchor, name, make(entries)) for anchor, name, make in SECTIONS]
    paths = ", ".join(str(entry.run.path) for entry in entries)
    foot = f"Made by medshard from {escape(paths)}. Values on hover and in tables."
    return page(title, head(entries), sections, foot)


def values_csv(entries: Sequence[Entry]) -> str:
    """The numbers of the page: run, start, what, layer, value; unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("run", "start", "what", "layer", "value"))
    for entry in entries:
        writer.writerows((entry.name, entry.start, *row) for row in _values(entry))
    return text.getvalue()


def _values(entry: Entry) -> Iterator[tuple[str, str, float | None]]:
    for name, value in (entry.results.get("test") or {}).items():
        yield f"test {name}", "", value
    for measure in KNOWN:
        for layer, value in zip(entry.layers, entry.by_layer(measure), strict=True):
            if value == value:
                yield measure, layer, value


if __name__ == "__main__":
    made = Parser(description=__doc__)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories or weights files")
    made.add_argument("--out", type=Path, help="file to write (default RUN/report.html)")
    made.add_argument("--shards", type=Path, help="shard set; default: the one of the training")
    made.add_argument("--model", help="timm name, for weights that do not say what they are of")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = made.parse_args()
    run_cli(lambda: main(args), debug=args.debug)
