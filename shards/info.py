"""What a shard set says of itself.

python -m shards info data/shards/DDSM [--json]        or the URL of a set
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards.command_line import Parser, add_debug_flag
from shards.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Manifest
from shards.storage import is_url
from shards.words import counted


def describe(manifest: Manifest) -> str:
    """A manifest as text that fits a screen."""
    phantom = "  PHANTOM: synthetic images, no medical meaning" if manifest.phantom else ""
    packed = [shard.packed_bytes or 0 for split in manifest.splits.values() for shard in split.shards if shard.packed]
    depth = f"{manifest.channels} channel{'s' * (manifest.channels > 1)}, {manifest.bits} bit, {manifest.encoding}"
    numbers = [f"{value:.4f}" for value in (*manifest.mean, *manifest.std)]
    lines = [
        f"{manifest.name}  ({manifest.format}, digest {manifest.digest[:16]}){phantom}",
        f"task       {manifest.task}, {len(manifest.classes)} classes: {_shorten(', '.join(manifest.classes))}",
        f"views      {', '.join(f'{name}*' if name == manifest.label_view else name for name in manifest.views)}",
        f"images     {depth}",
        f"mean, std  {' '.join(numbers[: manifest.channels])}, {' '.join(numbers[manifest.channels :])}",
        f"metric     {manifest.target_metric}; k of k-NN {manifest.knn_k}",
        f"{'split':10} {'samples':>9} {'groups':>9} {'shards':>7} {'MB':>9}  classes",
    ]
    for name, split in manifest.splits.items():
        megabytes = sum(shard.bytes for shard in split.shards) / 1e6
        counts = _shorten(" ".join(str(count) for count in split.class_counts.values()), 60)
        lines.append(f"{name:10} {split.samples:9} {split.groups:9} {len(split.shards):7} {megabytes:9.1f}  {counts}")
    shared = ", ".join(f"{pair} {count}" for pair, count in manifest.grouping.intersections.items()) or "not counted"
    lines.append(f"apart      by {manifest.grouping.by}; shared groups: {shared}")
    if manifest.metadata:
        lines.append(f"metadata   {_shorten(', '.join(field.name for field in manifest.metadata))}")
    if packed:
        lines.append(f"packed     {counted(len(packed), 'shard')} as .tar.zst, {sum(packed) / 1e6:.1f} MB")
    lines.append(f"left out   {counted(len(manifest.left_out), 'sample')}")
    if manifest.source.dataset:
        lines.append(f"source     {manifest.source.dataset}, {manifest.source.licence or 'licence unknown'}")
    return "\n".join(lines + [f"warning    {warning}" for warning in manifest.warnings])


def totals(manifest: Manifest, place: str | Path) -> dict[str, Any]:
    """What a tool that made a set prints under --json: where it lies, its digest, and each split's counts."""
    splits = {
        name: {"samples": split.samples, "groups": split.groups, "shards": len(split.shards)}
        for name, split in manifest.splits.items()
    }
    return {"out": str(place), "digest": manifest.digest, "splits": splits, "warnings": manifest.warnings}


def _shorten(text: str, most: int = 90) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def manifest_at(place: str) -> Manifest:
    """The manifest of a set in a folder or at a URL; no tar is fetched."""
    if not is_url(place):
        return Manifest.read(Path(place))
    from shards.fetching import Patience, Place  # fsspec is needed only there

    there = Place(place, Patience())
    return Manifest.parse(there.read(MANIFEST_NAME, MAX_MANIFEST_BYTES), f"{there.shown}/{MANIFEST_NAME}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards info`."""
    parser = Parser(
        prog="python -m shards info",
        description="Show what a shard set says of itself (its manifest; no tar is opened).",
        epilog="example: python -m shards info data/shards/DDSM",
    )
    parser.add_argument("shards", help="shard set, a folder or a URL; or its manifest.json")
    parser.add_argument("--json", action="store_true", help="print the whole manifest as one JSON document")
    add_debug_flag(parser)
    options = parser.parse_args(argv)
    manifest = manifest_at(options.shards)
    print(json.dumps(manifest.model_dump(), indent=1, ensure_ascii=False) if options.json else describe(manifest))
    return 0
