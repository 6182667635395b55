"""Join sets with equal classes into one. Keys and sample ids stay; a key or id that two sets share is refused.

    python -m shards merge data/shards/A data/shards/B --out data/shards/AB

That no patient is in two splits can be proved across sets only where they were made with one salt.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from shards.aside import new_folder
from shards.command_line import Parser, add_output_flags, local_folder, tell
from shards.dealing import intersections
from shards.info import totals
from shards.manifest import Grouping, Manifest, ShardInfo, Source, SplitInfo
from shards.progress import progress
from shards.reshard import copy_split, parse_size, shared_fields
from shards.storage import open_columns
from shards.words import counted
from shards.writer import class_counts

NO_SALT = "0" * 32
MUST_AGREE = ("task", "classes", "label_columns", "channels", "bits", "phantom", "target_metric", "label_view")
Parts = Sequence[tuple[Path, Manifest]]


def merge(
    folders: Sequence[Path],
    out: Path,
    *,
    name: str | None = None,
    shard_bytes: int = 256 * 10**6,
    done: Callable[[ShardInfo], None] = lambda info: None,
) -> Manifest:
    """Write the samples of all `folders` to `out`, split by split, in the order given; returns the new manifest.

    Raises:
        ValueError: the sets disagree, share a key or a sample id, or (under one salt) a patient would be in two splits.
    """
    if len(folders) < 2:
        raise ValueError("merging wants two sets or more")
    parts = [(folder, Manifest.read(folder)) for folder in folders]
    _refuse_differences(parts)
    _refuse_collisions(parts)
    grouping, groups, warnings = _grouping(parts)
    first = parts[0][1]
    set_ids = list(dict.fromkeys(set_id for _, manifest in parts for set_id in manifest.set_ids))
    set_id = hashlib.blake2b("".join(set_ids).encode(), digest_size=16, person=b"medshard-merge").hexdigest()
    mean, std = _pooled(parts)
    with new_folder(out) as part:
        splits = {}
        for split in _split_names(parts):
            shards = copy_split(parts, split, part, set_id, shard_bytes, done)
            counts, samples = _counts(parts, split), sum(info.samples for info in shards)
            splits[split] = SplitInfo(samples=samples, groups=groups[split], class_counts=counts, shards=shards)
        fields = first.model_dump() | {
            "name": name or out.name,
            "set_id": set_id,
            "merged_set_ids": set_ids,
            "views": {key: v for key, v in first.views.items() if all(m.views.get(key) == v for _, m in parts)},
            "metadata": shared_fields(parts),
            "mean": mean,
            "std": std,
            "splits": splits,
            "grouping": grouping,
            "left_out": [entry for _, manifest in parts for entry in manifest.left_out],
            "source": _source(parts),
            "conversion": {f"merged_{i}": f"{m.name} {m.digest}" for i, (_, m) in enumerate(parts)},
            "versions": {},
            "warnings": list(dict.fromkeys(w for _, manifest in parts for w in manifest.warnings)) + warnings,
        }
        merged = Manifest.model_validate(fields)
        merged.write(part)
    return merged


def _split_names(parts: Parts) -> list[str]:
    return list(dict.fromkeys(split for _, manifest in parts for split in manifest.splits))


def _refuse_differences(parts: Parts) -> None:
    first = parts[0][1]
    for _, other in parts[1:]:
        for field in MUST_AGREE:
            ours, theirs = getattr(first, field), getattr(other, field)
            if ours != theirs:
                raise ValueError(
                    f"{field} of {first.name} and {other.name} differ: {str(ours)[:80]} and {str(theirs)[:80]}"
                )
        if first.views[first.label_view] != other.views[other.label_view]:
            raise ValueError(
                f"{first.name} and {other.name} map source labels to classes differently: compare their views"
            )


def _gather(parts: Parts, column: str, split: str | None = None) -> np.ndarray:
    """A column of the indices of all parts, of one split or of all."""
    found = [
        getattr(open_columns(folder, info, manifest), column)
        for folder, manifest in parts
        for name, content in manifest.splits.items()
        if split is None or name == split
        for info in content.shards
    ]
    return np.concatenate(found)


def _refuse_collisions(parts: Parts) -> None:
    ids = _gather(parts, "sample_ids")
    if len(np.unique(ids)) < len(ids):
        raise ValueError("the sets share sample ids: is one of them a copy, or a part, of another?")
    owner: dict[str, str] = {}
    for folder, manifest in parts:
        for info in (shard for split in manifest.splits.values() for shard in split.shards):
            for key in open_columns(folder, info, manifest).all_keys():
                if key in owner:
                    raise ValueError(f"key {key} is in {owner[key]} and in {manifest.name}: keys are unique over a set")
                owner[key] = manifest.name


def _grouping(parts: Parts) -> tuple[Grouping, dict[str, int], list[str]]:
    """What can be said of patients: counted under one salt, left open under several."""
    salts = {manifest.grouping.salt_digest for _, manifest in parts}
    names = _split_names(parts)
    groups = {split: np.unique(_gather(parts, "groups", split)) for split in names}
    counts = {split: len(found) for split, found in groups.items()}
    by = ", ".join(dict.fromkeys(manifest.grouping.by for _, manifest in parts))
    if len(salts) > 1 or NO_SALT in salts:
        how = "merged from sets without a common salt: patients are apart within each, between them nothing is known"
        return Grouping(by=by, salt_digest=NO_SALT, intersections={}, how=how), counts, [how]
    shared = intersections(groups)
    for pair, count in shared.items():
        if count:
            raise ValueError(
                f"{count} groups ({by}) would be in both splits of {pair}: split the sources together instead"
            )
    return Grouping(by=by, salt_digest=salts.pop(), intersections=shared, how="counted over the merged set"), counts, []


def _counts(parts: Parts, split: str) -> dict[str, int]:
    first = parts[0][1]
    return class_counts(_gather(parts, "labels", split), first.views[first.label_view], first.label_columns, first.task)


def _pooled(parts: Parts) -> tuple[list[float], list[float]]:
    """Mean and std over all training pixels, from each part's own: E[x] and E[x²] add, weighted by pixels."""
    having = [part for part in parts if "train" in part[1].splits] or list(parts)
    split = "train" if "train" in having[0][1].splits else None
    sides = [[_gather([part], side, split).astype(np.float64) for side in ("heights", "widths")] for part in having]
    pixels = np.array([float(heights @ widths) for heights, widths in sides])[:, None]
    means = np.array([manifest.mean for _, manifest in having])
    squares = np.array([manifest.std for _, manifest in having]) ** 2 + means**2
    mean, square = ((pixels * values).sum(0) / pixels.sum() for values in (means, squares))
    return mean.round(8).tolist(), np.sqrt(np.maximum(square - mean**2, 1e-12)).round(8).tolist()


def _source(parts: Parts) -> Source:
    sources = [manifest.source.model_dump() for _, manifest in parts]
    joined = {field: " + ".join(dict.fromkeys(s[field] for s in sources if s[field])) for field in Source.model_fields}
    return Source.model_validate(joined)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards merge`."""
    parser = Parser(
        prog="python -m shards merge",
        description="Join sets of equal task and classes. Sets made with one salt are proved apart by patient.",
        epilog="example: python -m shards merge data/shards/A data/shards/B --out data/shards/AB",
    )
    parser.add_argument("folders", type=local_folder, nargs="+", help="two shard sets or more")
    parser.add_argument("--out", type=local_folder, required=True, help="where the new set goes, a folder")
    parser.add_argument("--name", help="name of the new set (default: the folder's)")
    parser.add_argument("--shard-size", default="256MB", help="about how large a tar becomes")
    add_output_flags(parser)
    options = parser.parse_args(argv)
    sets = [Manifest.read(folder) for folder in options.folders]
    total = sum(len(split.shards) for manifest in sets for split in manifest.splits.values())
    with progress(total, "merging", "shard", quiet=options.quiet or options.json) as bar:
        merged = merge(
            options.folders,
            options.out,
            name=options.name,
            shard_bytes=parse_size(options.shard_size),
            done=lambda _: bar.update() and None,
        )
    samples = sum(split.samples for split in merged.splits.values())
    tell(options, totals(merged, options.out), f"{options.out}: {counted(samples, 'sample')}")
    return 0
