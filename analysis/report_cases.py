"""The surest mistakes of a run as thumbnails with what was said and what is true, by key."""

from collections.abc import Sequence
from html import escape

import numpy as np

from analysis.report_data import Entry
from analysis.report_soundness import square
from analysis.report_words import named
from analysis.saliency import jpeg
from train.predictions import Told

MOST = 10  # a run
RUNS = 6


def worst_cases(known: Sequence[Entry]) -> str:
    """A strip a run; without the shard set, keys and words alone."""
    about = "Wrong, and surest of it. Keys lead to the source in NAME.private/sources.csv; nothing else here does."
    strips = "".join(_strip(entry) for entry in known[:RUNS])
    return f"<h3>The surest mistakes</h3><p class=hint>{about}</p>{strips}"


def _strip(entry: Entry) -> str:
    assert entry.said is not None
    rows = surest_mistakes(entry.said, MOST)
    if not len(rows):
        return f"<h4>{named(entry)}</h4><p>No mistake.</p>"
    return f'<h4>{named(entry)}</h4><div class="cases">{"".join(_case(entry, int(row)) for row in rows)}</div>'


def surest_mistakes(said: Told, count: int) -> np.ndarray:
    """Rows int64[k] of wrong predictions, the surest first, at most `count`; of several labels the image with the label
    farthest off.
    """
    if said.labels.ndim == 1:
        wrong = said.probabilities.argmax(1) != said.labels
        sure = np.where(wrong, said.probabilities.max(1), -1.0)
    else:
        off = np.nan_to_num(np.abs(said.probabilities - said.labels), nan=0.0).max(1)
        sure = np.where(off > 0.5, off, -1.0)
    order = np.argsort(-sure, kind="stable")[:count]
    return order[sure[order] >= 0]


def _case(entry: Entry, row: int) -> str:
    assert entry.said is not None
    told, image = words_of(entry.said, row, entry.classes), ""
    place = entry.places.get(entry.said.keys[row])
    if place is not None and entry.shards is not None:
        picture = square(entry.shards.split("test"), place)
        image = f'<img alt="" width="84" height="84" loading="lazy" src="{jpeg(picture)}">'
    return f'<div class="case">{image}<span>{told}</span><code>{escape(entry.said.keys[row])}</code></div>'


def words_of(said: Told, row: int, classes: Sequence[str]) -> str:
    """Such as "called moderate (.93), is mild"."""
    label, scores = said.labels[row], said.probabilities[row]
    if said.labels.ndim == 1:
        called = int(scores.argmax())
        return f"{escape(classes[called])} ({scores[called]:.2f}), is {escape(classes[int(label)])}"
    worst = int(np.nan_to_num(np.abs(scores - label), nan=0.0).argmax())
    return f"{escape(classes[worst])} {scores[worst]:.2f}, is {'present' if label[worst] == 1 else 'absent'}"
