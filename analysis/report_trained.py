"""What was trained on what: the top of a report, and a row a run."""

from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import Any

from analysis.chart_style import NUM_SERIES
from analysis.report_data import Entry
from analysis.report_style import heading, html_table
from analysis.report_words import card, metric_name, pill, rounded, set_name


def head(entries: Sequence[Entry]) -> str:
    """Title, the result in one sentence, one tile a run; and loudly whether the images are phantoms."""
    sets = sorted({entry.results.get("shards") or set_name(entry) for entry in entries})
    target = entries[0].target
    tiles = "".join(
        f'<div class="tile" style="--tone:var(--s{entry.place % NUM_SERIES})"><div class="what">{escape(entry.name)} '
        f'{pill(entry)}</div><div class="value">{rounded(entry.test_value())}</div>'
        f'<div class="note">{escape(metric_name(entry.target))}, test split</div></div>'
        for entry in entries
    )
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
        f'<p class="lead">{_verdict(entries, target)}</p>{warning}<div class="tiles">{tiles}</div>'
    )


def _verdict(entries: Sequence[Entry], target: str | None) -> str:
    known = [(entry, entry.test_value()) for entry in entries if isfinite(entry.test_value())]
    if not known:
        return "No run of this report has a test result yet."
    sets = list(dict.fromkeys(set_name(entry) for entry, _ in known))
    if len(sets) > 1:
        return f"Runs on {escape(', '.join(sets))}: scores of different sets are not compared with each other."
    name = escape(metric_name(target))
    best, value = max(known, key=lambda pair: pair[1])
    if len(known) == 1:
        return f"<strong>{escape(best.name)}</strong> reaches <strong>{value:.3f}</strong> {name} on the test split."
    worst, low = min(known, key=lambda pair: pair[1])
    return (
        f"<strong>{escape(_who(best))}</strong> reaches <strong>{value:.3f}</strong> {name} on the test split, "
        f"<strong>{value - low:.3f}</strong> above {escape(_who(worst))}."
    )


def _who(entry: Entry) -> str:
    words = {"WT": "pretrained weights", "ST": "pretrained statistics alone", "RI": "a random start"}
    return f"{entry.name} ({words[entry.start]})" if entry.start in words else entry.name


def trained(entries: Sequence[Entry]) -> str:
    """What was trained on what."""
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
    return heading("trained", "What was trained on what", about) + card(html_table(names, rows, text_columns=4))
