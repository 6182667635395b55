"""One page for runs or a study: trained on what, is the data sound, how well, reused where, how runs compare.

    python analysis/report.py runs/ddsm runs/ddsm-ri --out report.html

Reads each run's record and predictions and the results under its analysis/ folder, which the other scripts write; of a
study, the run of each start that is nearest its median score is shown, and all are compared. Writes one HTML file
without script or network (default report.html in the run's or the study's folder), beside it the same numbers as csv
and JSON, and curves by layer for TensorBoard (RUN/tensorboard/analysis).
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import json
from html import escape
from pathlib import Path

from analysis.report_data import Report, chosen, compare_all, gather_finished, load, peers_of
from analysis.report_numbers import values_csv, values_json
from analysis.report_sections import sections
from analysis.report_style import page
from analysis.report_tensorboard import write_curves
from analysis.report_trained import head
from analysis.study_runs import STUDIES, gather
from shards.aside import write_aside
from shards.command_line import Parser, add_output_flags, tell

MAX_BYTES = 5_000_000


def main(args: argparse.Namespace) -> None:
    """Read, write, tell."""
    report, folder = open_report(args)
    out = args.out or folder / "report.html"
    if out.is_dir() or out.suffix != ".html":
        raise ValueError(f"--out {out}: name a file that ends in .html")
    document, numbers = build_report(report).encode(), values_json(report)
    if len(document) > MAX_BYTES:
        raise ValueError(f"the report would have {len(document):,} bytes, above {MAX_BYTES:,}: name fewer runs")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_aside(out.with_suffix(".csv"), values_csv([*report.entries, *report.peers]).encode())
    write_aside(out.with_suffix(".json"), numbers.encode())
    write_aside(out, document)
    for entry in report.entries:
        write_curves(entry)
    where = f"{out} ({len(document) / 1e3:.0f} kB), {out.with_suffix('.csv').name} and {out.with_suffix('.json').name}"
    tell(args, json.loads(numbers), where)


def open_report(args: argparse.Namespace) -> tuple[Report, Path]:
    """The report of the command line, and the folder it belongs to."""
    if any(path.suffix == ".toml" for path in args.runs):
        found = gather(args.runs, args.studies)
        entries = load(chosen(found), args.shards, args.model)
        return compare_all(entries, found, peers=peers_of(entries, found)), found.folder.parent
    entries = load(args.runs, args.shards, args.model)
    first = entries[0].run
    return compare_all(entries, gather_finished(args.runs)), first.folder or first.out_dir


def build_report(report: Report) -> str:
    """The page as text."""
    title = "medshard: " + ", ".join(entry.name for entry in report.entries)
    paths = ", ".join(str(entry.run.path) for entry in report.entries)
    foot = f"Made by medshard from {escape(paths)}. Values on hover and in tables."
    return page(title, head(report), sections(report), foot)


def command_line() -> argparse.ArgumentParser:
    """The flags of this script."""
    made = Parser(description=__doc__)
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN|STUDY", help="run directories, weights or study files")
    made.add_argument("--out", type=Path, help="where the page goes (default report.html of the first run or study)")
    made.add_argument("--shards", help="shard set, a folder or a URL; default: the one of the training")
    made.add_argument("--model", help="timm name, for weights that do not say what they are of")
    made.add_argument("--studies", type=Path, default=STUDIES, help="where studies lie")
    add_output_flags(made, "the numbers")
    return made


if __name__ == "__main__":
    args = command_line().parse_args()
    run_cli(lambda: main(args), debug=args.debug)
