"""K folds and repeated splits of a finished set: csv files by key that `--split-file` takes at load time.

    python -m shards split data/shards/DDSM --folds 5            # data/shards/DDSM/splits/fold-0-of-5-seed-0.csv, …
    python -m shards split data/shards/DDSM --repeats 10         # ten splits in the shares .7 .15 .15
    ./launch.sh train --shards data/shards/DDSM --split-file fold-0-of-5-seed-0 …

Grouped, stratified and seeded as a conversion's own split is; no tar is rewritten. Fold i of K tests on part i,
validates on part i + 1 and trains on the rest; with the set's own test split kept, it validates on part i.
`splits/proof.json` states for each file its samples, groups and classes, and how many groups its splits share.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.aside import write_aside
from shards.command_line import Parser, add_output_flags, local_folder, tell
from shards.dealing import deal, intersections, one_hot
from shards.manifest import Manifest
from shards.overrides import SPLIT_ORDER
from shards.storage import SPLITS_FOLDER, open_columns
from shards.writer import class_counts

PROOF_NAME = "proof.json"
MOST_FOLDS, MOST_REPEATS = 1000, 1000
TRAIN, VAL, TEST = range(3)


@dataclass(frozen=True)
class FoldOptions:
    """Which files to write: `folds` of each seed (None: one split in `shares` a seed), `repeats` seeds from `seed` on.

    `keep_test`: the set's own test split stays the test split of every file. Shares are of train, val and test; the
    last is not used where test is kept.
    """

    folds: int | None = 5
    repeats: int = 1
    seed: int = 0
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15)
    keep_test: bool = False

    def __post_init__(self) -> None:
        least = 2 if self.keep_test else 3
        if self.folds is not None and not least <= self.folds <= MOST_FOLDS:
            why = "" if self.keep_test else " (one part tests, one validates, the rest trains; 2 with --keep-test)"
            raise ValueError(f"--folds {self.folds} is outside {least}..{MOST_FOLDS}{why}")
        if not 1 <= self.repeats <= MOST_REPEATS or self.seed < 0:
            raise ValueError(f"--repeats is 1..{MOST_REPEATS}, --seed at least 0")
        if not (min(self.shares) > 0 and abs(sum(self.shares) - 1) <= 1e-9):
            given = " ".join(f"{share:g}" for share in self.shares)
            raise ValueError(f"--shares {given}: three shares above 0 that sum to 1, such as 0.7 0.15 0.15")


class Samples(NamedTuple):
    """What dealing looks at, one entry a sample of the set."""

    keys: list[str]
    labels: np.ndarray  # int16[n, label columns], source labels
    groups: np.ndarray  # uint64[n]
    in_test: np.ndarray  # bool[n], of the set's own test split


def samples_of(folder: Path, manifest: Manifest) -> Samples:
    """One pass over the indices of a local set."""
    parts = [
        (name, open_columns(folder, info, manifest)) for name, split in manifest.splits.items() for info in split.shards
    ]
    return Samples(
        [key for _, columns in parts for key in columns.all_keys()],
        np.concatenate([columns.labels for _, columns in parts]),
        np.concatenate([columns.groups for _, columns in parts]),
        np.concatenate([np.full(len(columns), name == "test") for name, columns in parts]),
    )


def split_codes(samples: Samples, options: FoldOptions) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, how it was made in words, 0 train / 1 val / 2 test a sample: int64[n]) of each file.

    Raises:
        ValueError: fewer groups than parts, no test split to keep, or one whose groups stand outside it, too.
    """
    free = ~samples.in_test if options.keep_test else np.ones(len(samples.keys), bool)
    if options.keep_test:
        _check_test(samples)
    labels, groups = one_hot(samples.labels[free].astype(np.int64)), samples.groups[free]
    kept = ", the set's own test split kept" if options.keep_test else ""
    suffix = "-test-kept" if options.keep_test else ""
    for seed in range(options.seed, options.seed + options.repeats):
        for name, own in _deal(labels, groups, seed, options):
            codes = np.full(len(samples.keys), TEST)
            codes[free] = own
            yield f"{name}{suffix}", f"dealt by seed {seed}, stratified by label, whole groups{kept}", codes


def _deal(labels: np.ndarray, groups: np.ndarray, seed: int, options: FoldOptions) -> Iterator[tuple[str, np.ndarray]]:
    folds = options.folds
    if folds is None:
        shares = np.array(options.shares[:2] if options.keep_test else options.shares)
        yield f"split-seed-{seed}", deal(labels, groups, (shares / shares.sum()).tolist(), seed)
        return
    if (count := len(np.unique(groups))) < folds:
        raise ValueError(f"--folds {folds} needs {folds} groups, there are {count}, and a group is never divided")
    parts = deal(labels, groups, [1 / folds] * folds, seed)
    for fold in range(folds):
        codes = np.full(len(parts), TRAIN)
        codes[parts == fold] = VAL if options.keep_test else TEST
        if not options.keep_test:
            codes[parts == (fold + 1) % folds] = VAL
        yield f"fold-{fold}-of-{folds}-seed-{seed}", codes


def _check_test(samples: Samples) -> None:
    if not samples.in_test.any():
        raise ValueError("--keep-test: the set has no test split")
    shared = np.intersect1d(samples.groups[samples.in_test], samples.groups[~samples.in_test])
    if len(shared):
        raise ValueError(
            f"--keep-test: {len(shared)} groups of the test split stand in other splits, too, and a group is never "
            "divided: leave --keep-test away"
        )


def write_folds(folder: Path, options: FoldOptions) -> dict[str, Any]:
    """Write the split files of a local set and their proof; returns the proof of the files written now.

    The same set and options give the same bytes. Files of other options stay.
    """
    manifest = Manifest.read(folder)
    samples = samples_of(folder, manifest)
    place, proofs, texts = folder / SPLITS_FOLDER, {}, {}
    for name, how, codes in split_codes(samples, options):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("key", "split"))
        writer.writerows(zip(samples.keys, (SPLIT_ORDER[code] for code in codes.tolist()), strict=True))
        texts[name] = text.getvalue().encode()
        digest = hashlib.sha256(texts[name]).hexdigest()
        proofs[name] = {"sha256": digest, "how": how} | prove(samples, codes, manifest)
    place.mkdir(exist_ok=True)
    for name, data in texts.items():
        write_aside(place / f"{name}.csv", data)
    proof = place / PROOF_NAME
    known = json.loads(proof.read_text()) if proof.is_file() else {}
    write_aside(proof, (json.dumps(dict(sorted((known | proofs).items())), indent=1) + "\n").encode())
    return proofs


def prove(samples: Samples, codes: np.ndarray, manifest: Manifest) -> dict[str, Any]:
    """Samples, groups and classes (default view) of each split, and the groups that each pair shares, counted.

    `codes` uint8[n]: the number of each sample's split in SPLIT_ORDER.
    """
    view = manifest.views[manifest.label_view]
    members = {SPLIT_ORDER[code]: codes == code for code in np.unique(codes)}
    groups = {name: np.unique(samples.groups[inside]) for name, inside in members.items()}
    return {
        "splits": {
            name: {
                "samples": int(inside.sum()),
                "groups": len(groups[name]),
                "class_counts": class_counts(samples.labels[inside], view, manifest.label_columns, manifest.task),
            }
            for name, inside in members.items()
        },
        "intersections": intersections(groups),
    }


def describe(proofs: dict[str, Any]) -> str:
    """A line a split of each file."""
    lines = []
    for name, proof in proofs.items():
        shared = ", ".join(f"{pair} {count}" for pair, count in proof["intersections"].items())
        lines.append(f"{name}: groups shared: {shared}")
        for split, content in proof["splits"].items():
            counts = ", ".join(f"{label} {count}" for label, count in content["class_counts"].items())
            lines.append(f"  {split:5} {content['samples']:7} images {content['groups']:7} groups: {counts}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards split`."""
    parser = Parser(
        prog="python -m shards split",
        description="Split files for K folds or repeated splits, by whole groups, stratified; no tar is rewritten.",
        epilog="example: python -m shards split data/shards/DDSM --folds 5\n"
        "         ./launch.sh train --split-file fold-0-of-5-seed-0 …",
    )
    parser.add_argument("folder", type=local_folder, help="shard set, a folder of this machine")
    parser.add_argument(
        "--folds", type=int, help="K: fold i tests on part i, validates on the next, trains on the rest"
    )
    parser.add_argument("--repeats", type=int, default=1, help="so many seeds from --seed on")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first")
    parser.add_argument(
        "--shares", type=float, nargs=3, default=(0.7, 0.15, 0.15), metavar=("TRAIN", "VAL", "TEST"),
        help="of samples, without --folds",
    )  # fmt: skip
    parser.add_argument(
        "--keep-test", action="store_true", help="the set's own test split stays the test of every file"
    )
    add_output_flags(parser, "the proof")
    given = parser.parse_args(argv)
    options = FoldOptions(given.folds, given.repeats, given.seed, tuple(given.shares), given.keep_test)
    proofs = write_folds(given.folder, options)
    where = f"in {given.folder / SPLITS_FOLDER}; train on one with --split-file {next(iter(proofs))}"
    tell(given, proofs, f"{describe(proofs)}\n{where}")
    return 0
