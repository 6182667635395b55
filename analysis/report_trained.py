"""What was trained on what: the top of a report, and a row a run."""

from html import escape
from typing import Any

from analysis.chart_style import NUM_SERIES
from analysis.report_data import Entry, Report
from analysis.report_style import heading, html_table
from analysis.report_verdict import seeds_of, verdict
from analysis.report_words import card, metric_name, pill, rounded, set_name


def head(report: Report) -> str:
    """Title, the result in one paragraph, one tile a run; and loudly whether the images are phantoms."""
    entries = report.entries
    sets = sorted({entry.results.get("shards") or set_name(entry) for entry in entries})
    tiles = "".join(_tile(entry, seeds_of(entry, report)) for entry in entries)
    warning = ""
    if any(entry.phantom for entry in entries):
        warning = (
            '<p class="warning" role="note"><strong>Phantoms, not patients.</strong> These images are drawn '
            "by a program in a real dataset's layout. The numbers show that the machinery works, and nothing "
            "about medicine.</p>"
        )
    return (
        f'<p class="eyebrow">medshard · {escape(", ".join(sets))}</p>'
        "<h1>What did transfer bring, and where is it reused?</h1>"
        f'<p class="lead">{verdict(report)}</p>{warning}<div class="tiles">{tiles}</div>'
    )


def _tile(entry: Entry, over: dict[str, Any] | None) -> str:
    """The run's score; where its start has several seeds, their mean, and what the run itself has."""
    name, own = escape(metric_name(entry.target)), rounded(entry.test_value())
    what, value, note = f"{escape(entry.name)} {pill(entry)}", own, f"{name}, test split"
    if over:
        what, value = f"{pill(entry)} {over['runs']} seeds", rounded(over["mean"])
        note = f"{name}, test split: mean, {rounded(over['low'])} to {rounded(over['high'])}"
        note += f"<br>in detail below: {escape(entry.name)} ({own})"
    if own == "–":
        note += f": {entry.why_no_score}"
    tone = f"--tone:var(--s{entry.place % NUM_SERIES})"
    return (
        f'<div class="tile" style="{tone}"><div class="what">{what}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
    )


def entries_told(report: Report) -> str:
    """Which of a study's runs the page shows."""
    found = report.gathered
    if found is None or len(found.runs) == len(report.entries):
        return ""
    return (
        f"Of {len(found.runs)} finished runs {len(report.entries)} are shown in detail: of each start the one whose "
        "score is nearest the median, of those that were analysed. All are compared at the end."
    )


def trained(report: Report) -> str:
    """What was trained on what."""
    entries = report.entries
    about = "WT starts from pretrained weights, ST from their mean and spread alone, RI from a random initialisation."
    names = (
        "run",
        "start",
        "model",
        "set",
        "pixels",
        "epochs",
        "steps",
        "batch",
        "optimizer",
        "rate",
        "seed",
        "best at",
    )
    rows = []
    for entry in entries:
        config, results, info = entry.run.config, entry.results, entry.run.info
        batch = (entry.run.record.get("deepspeed") or {}).get("train_batch_size", "–")
        best = results.get("best") or {}
        cells: list[Any] = [escape(entry.name), pill(entry), f"<code>{escape(info.model)}</code>"]
        cells += [escape(str(results.get("shards") or set_name(entry))), info.img_size]
        if config is None:
            cells += ["–"] * 6
        else:
            made, train = config.optimizer, config.training
            epochs = train.model_dump().get("epochs", "–")
            cells += [epochs, results.get("steps", "–"), batch, escape(made.optimizer), f"{made.lr:g}", train.seed]
        cells.append(f"epoch {best['epoch']:.1f}" if best else "–")
        rows.append([str(cell) for cell in cells])
    if told := entries_told(report):
        about += f" {told}"
    return heading("trained", "What was trained on what", about) + card(html_table(names, rows, text_columns=4))
