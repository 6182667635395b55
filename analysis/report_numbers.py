"""The numbers of a page as csv and JSON, unrounded."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any

from analysis.report_data import KNOWN, Entry, Report
from analysis.report_scores import confusion_of, learning_records, reliability_of
from analysis.results import plain

HEAD = ("run", "start", "what", "layer", "value")


def values_csv(entries: Sequence[Entry]) -> str:
    """The scalars and curves by layer: run, start, what, layer, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEAD)
    for entry in entries:
        writer.writerows((entry.name, entry.start, *row) for row in values_of(entry))
    return text.getvalue()


def values_json(report: Report) -> str:
    """The same numbers, what else the page draws of each run, and the comparison."""
    rows = [
        dict(zip(HEAD, (entry.name, entry.start, *row), strict=True))
        for entry in (*report.entries, *report.peers)
        for row in values_of(entry)
    ]
    content = {
        "format": 2,
        "values": rows,
        "runs": [drawn_of(entry) for entry in report.entries],
        "gains": report.gains,
        "curves": report.curves,
    }
    return json.dumps(plain(content), allow_nan=False, indent=1) + "\n"


def values_of(entry: Entry) -> Iterator[tuple[str, str, float | None]]:
    """(what, layer, value) of one run: test metrics, their bounds, calibration, then every measure by layer."""
    for name, value in (entry.results.get("test") or {}).items():
        yield f"test {name}", "", value
        for bound, end in zip(("low", "high"), entry.test_interval(name)[1:], strict=True):
            if isfinite(end):
                yield f"test {name} {bound}", "", end
    for name in ("brier", "ece"):
        if name in entry.calibration:
            yield f"test {name}", "", entry.calibration[name]
    for measure in KNOWN:
        for layer, value in zip(entry.layers, entry.by_layer(measure), strict=True):
            if isfinite(value):
                yield measure, layer, value


def drawn_of(entry: Entry) -> dict[str, Any]:
    """Learning curves, confusion, calibration and similarity of all layers of one run, as far as they are known."""
    found: dict[str, Any] = {
        "run": entry.name,
        "start": entry.start,
        "path": str(entry.run.path),
        "learning": learning_records(entry),
    }
    if entry.said is not None:
        bins = reliability_of(entry.task, entry.said.labels, entry.said.probabilities)
        found["calibration"] = [dict(zip(("probability", "right", "cases"), row, strict=True)) for row in bins.tolist()]
        if entry.task == "single-label":
            found["confusion"] = {"classes": entry.classes, "counts": confusion_of(entry).tolist()}
    if cka := entry.analyses.get("cka"):
        kept = {name: cka[name] for name in ("sides", "whole", "minibatch", "same_layer") if name in cka}
        found["cka"] = kept
    return found
