"""The sections of a report in the order of its questions, and where its numbers come from."""

from collections.abc import Sequence
from html import escape

from analysis.report_comparison import comparison
from analysis.report_data import Entry, Report
from analysis.report_reuse import reuse
from analysis.report_scores import scores
from analysis.report_soundness import data
from analysis.report_style import heading, html_table
from analysis.report_trained import trained
from analysis.report_words import card


def sections(report: Report) -> list[tuple[str, str, str]]:
    """(anchor, name for the navigation, HTML) of each section."""
    made = [
        ("trained", "Training", trained(report)),
        ("data", "Data", data(report.entries)),
        ("scores", "Scores", scores(report.entries)),
        ("reuse", "Reuse", reuse(report)),
        ("comparison", "Comparison", comparison(report)),
        ("provenance", "Provenance", provenance(report.entries)),
    ]
    return [section for section in made if section[2]]


def provenance(entries: Sequence[Entry]) -> str:
    """Digests and versions, to find the same numbers again."""
    about = "The same digests give the same numbers."
    rows = []
    for entry in entries:
        for name, found in entry.analyses.items():
            weights = found["request"].get("weights", {})
            digests = "<br>".join(f"{escape(which)} <code>{digest[:16]}</code>" for which, digest in weights.items())
            options = {
                k: v
                for k, v in found["request"].items()
                if isinstance(v, (int, float, str)) and k not in ("transform", "shards")
            }
            told = escape(", ".join(f"{key} {value}" for key, value in options.items()))
            rows.append([escape(entry.name), escape(name), digests, f"<div class=asked>{told}</div>"])
    head_cells = ("run", "analysis", "weights", "asked")
    versions = entries[0].run.record.get("versions") or {}
    told = escape(", ".join(f"{name} {version}" for name, version in versions.items())) or "not recorded"
    body = html_table(head_cells, rows, text_columns=4) if rows else "<p>No analyses.</p>"
    return heading("provenance", "Provenance", about) + card(f"{body}<p>Trained with {told}.</p>")
