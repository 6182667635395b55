"""What the split files of `--folds` and `--repeats` will hold by the plan: told or refused before a pixel is read."""

from dataclasses import replace

import numpy as np

from prep.planning import Planned
from shards.folds import FoldOptions, Samples, split_codes
from shards.manifest import BLANK_LABEL
from shards.overrides import SPLIT_ORDER

MOST_LINES = 10


def planned_samples(plan: Planned) -> Samples:
    """The samples of a plan as dealing looks at them; those that will not decode are among them."""
    rows = [(split, key, record) for split, part in plan.parts.items() for key, record in part]
    labels = [[BLANK_LABEL if value is None else value for value in record.labels] for _, _, record in rows]
    _, groups = np.unique([record.group for _, _, record in rows], return_inverse=True)
    in_test = np.array([split == "test" for split, _, _ in rows])
    return Samples([key for _, key, _ in rows], np.array(labels, np.int64), groups.astype(np.uint64), in_test)


def check_folds(plan: Planned, options: FoldOptions) -> None:
    """ValueError where the files cannot be made: fewer groups than folds, no test split to keep."""
    list(split_codes(planned_samples(plan), replace(options, repeats=1)))  # the seed decides nothing of this


def describe_folds(plan: Planned, options: FoldOptions) -> list[str]:
    """A line a split file; of many, the first ones."""
    samples, count = planned_samples(plan), 0
    lines: list[str] = []
    for name, _, codes in split_codes(samples, options):
        count += 1
        if len(lines) < MOST_LINES:
            sizes = ", ".join(f"{SPLIT_ORDER[code]} {int((codes == code).sum())}" for code in np.unique(codes))
            lines.append(f"  split file {name}: {sizes} images, whole groups")
    return lines + [f"  and {count - len(lines)} more split files"] * (count > len(lines))
