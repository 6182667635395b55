"""Who goes into which split: dealt by whole groups, official, by a file, or as the published study had it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prep.places import read_text, there
from prep.tables import read_table
from shards.dealing import deal, one_hot
from shards.words import counted

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def split_random(labels: np.ndarray, groups: Sequence[str], shares: Sequence[float], seed: int) -> list[str]:
    """Train, val and test by `shares` of three, for source labels int[n, L]."""
    return [SPLITS[part] for part in deal(one_hot(labels), groups, shares, seed)]


def split_official(
    official: Sequence[str | None], labels: np.ndarray, groups: Sequence[str], shares: Sequence[float], seed: int
) -> tuple[list[str], list[str]]:
    """Keep the official splits; carve a missing val (or test) off train. Returns (splits, warnings).

    `labels` int[n, L] of source values. A group that the dataset itself has in two splits moves whole to the
    later one, and is counted in a warning.
    """
    result = [split or "train" for split in official]
    last: dict[str, int] = {}
    for split, group in zip(result, groups, strict=True):
        last[group] = max(last.get(group, 0), SPLITS.index(split))
    moved = [SPLITS[last[group]] for group in groups]
    count = len({group for a, b, group in zip(result, moved, groups, strict=True) if a != b})
    warnings = (
        [f"{counted(count, 'group')} stood in two official splits: moved whole to the later one"] if count else []
    )
    present = set(moved)
    parts = [i for i, split in enumerate(SPLITS) if split == "train" or split not in present]
    if len(parts) > 1:
        inside = [i for i, split in enumerate(moved) if split == "train"]
        weights = np.asarray(shares, float)[parts]
        dealt = deal(one_hot(labels[inside]), [groups[i] for i in inside], weights / weights.sum(), seed)
        for i, part in zip(inside, dealt, strict=True):
            moved[i] = SPLITS[parts[part]]
    return moved, warnings


def split_by_source(path: Path, sources: Sequence[str]) -> list[str]:
    """The split of each source by a csv table of source and split; "" for a source that does not stand in it.

    The sources.csv that a conversion leaves in its private folder is such a table.

    Raises:
        ValueError: no such file or column, an unknown split or source, or a source in two splits.
    """
    if not path.is_file():
        raise ValueError(f"there is no split file {path}")
    given: dict[str, str] = {}
    known = set(sources)
    for where, row in read_table(path, ("source", "split")):
        split, source = SPLIT_NAMES.get(row["split"].lower()), row["source"].replace("\\", "/")
        if split is None:
            raise ValueError(f"the split in {where} is none of {', '.join(SPLITS)}")
        if source not in known:
            raise ValueError(
                f"the source in {where} is none of this dataset: sources.csv of a conversion shows their form"
            )
        if given.setdefault(source, split) != split:
            raise ValueError(f"the source in {where} already stands in another split")
    return [given.get(source, "") for source in sources]


def study_shuffle(root: Path, count: int, held_out: float) -> list[str]:
    """The published study's rule: `random.Random(42)` shuffles the row numbers, the first share is held out and halved.

    A `val_ids.json` in the raw folder (row numbers held out, or a dict with train_split and val_split) wins.
    """
    cached = root / "val_ids.json"
    if there(cached, cached.name):
        held = _cached_rows(cached, count)
    else:
        rows = list(range(count))
        random.Random(42).shuffle(rows)
        held = rows[: int(count * held_out)]
    half = len(held) // 2
    splits = ["train"] * count
    for position, row in enumerate(held):
        splits[row] = "val" if position < half else "test"
    return splits


def _cached_rows(path: Path, count: int) -> list[int]:
    try:
        document = json.loads(read_text(path))
        rows = [int(row) for row in (document["val_split"] if isinstance(document, dict) else document)]
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path.name} is neither a list of row numbers nor a dict with val_split: delete or mend it"
        ) from None
    if len(set(rows)) != len(rows) or any(not 0 <= row < count for row in rows):
        raise ValueError(
            f"{path.name} names rows outside 0..{count - 1} or twice: it belongs to another version of the table"
        )
    return rows


def groups_of(splits: Sequence[str], groups: Sequence[str]) -> dict[str, list[str]]:
    """Split -> the groups of its records, in the order of SPLITS; records of no split are left out."""
    pairs = list(zip(splits, groups, strict=True))
    return {name: [group for split, group in pairs if split == name] for name in SPLITS if name in splits}
