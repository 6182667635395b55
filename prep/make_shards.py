"""Raw dataset -> shard set.

    python prep/make_shards.py --dataset IDRiD [--raw data/raw/IDRiD] [--out data/shards/IDRiD] [--short-side 256]

Reads the raw folder as the dataset publishes it. Writes the set to --out and, beside it, OUT.private/ (mode 0700)
with what must not travel: sources, groups, salt. Where --out is a URL, that stays here, in data/shards/NAME.private.
Killed at any moment, the same command goes on and ends with the same bytes.
"""

from shards.script import run_cli  # no such module? source .venv/bin/activate

import argparse
import json
import os
import time
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from prep.convert import convert
from prep.cropping import CROPS
from prep.delivery import deliver_folds
from prep.dry_run import dry_run
from prep.finishing import describe
from prep.idle_flags import idle_flag
from prep.images import FORMATS, PixelOptions
from prep.places import is_far, open_place
from prep.planning import SPLIT_MODES, ConvertOptions
from prep.records import RawDataset
from prep.sources import DATASETS, find_dataset
from prep.sources import slides as slide_sources
from prep.sources.own_table import TableColumns, table_dataset
from prep.whole_slides import TileOptions
from shards.command_line import Parser, add_output_flags, positive
from shards.folds import FoldOptions, write_folds
from shards.folds import describe as describe_folds
from shards.manifest import Manifest
from shards.metadata import find_field
from shards.redaction import shown
from shards.storage import SPLITS_FOLDER, is_url

CORES = len(os.sched_getaffinity(0))
CSV_FLAGS = "with --dataset csv"
SLIDE_FLAGS = "with --dataset Camelyon-slides or slides"

# --help shows the others; --help-all these, too.
RARE = {
    "quality", "chroma", "salt", "shard_samples", "strict", "burned_in", "repeats", "keep_test", "near_duplicates",
    "enlarge", "cluster", "compress", "max_bad", "metadata", CSV_FLAGS, SLIDE_FLAGS,
}  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(
        description="Convert a raw dataset into a shard set. Killed at any moment, the same command goes on.",
        epilog="example: python prep/make_shards.py --dataset DDSM --raw data/raw/DDSM",
        rare=RARE,
    )
    add = parser.add_argument
    names = add("--dataset", required=True, help=f"one of {', '.join(DATASETS)}, or csv: your own folder and table")
    names.completer = lambda **_: [*DATASETS, "csv"]  # type: ignore[attr-defined]  # Tab's
    add("--raw", help="the raw folder as published, or its URL: s3://, https://, … (default: data/raw/NAME)")
    add("--out", help="where the set goes, a folder or a URL (default: data/shards/NAME)")
    add(
        "--short-side",
        type=int,
        help="pixels of the short side; smaller images stay; 0 keeps all (default: 256, tiles of slides as they are)",
    )
    add("--enlarge", action="store_true", help="images smaller than --short-side grow to it, bicubic")
    add("--format", default="jpeg", help=f"one of {', '.join(FORMATS)}")
    add("--quality", type=int, default=95, help="of JPEG, 1..100")
    add("--chroma", choices=("4:2:0", "4:4:4"), default="4:2:0", help="colour resolution of JPEG")
    add(
        "--split",
        default="auto",
        help=f"one of {', '.join(SPLIT_MODES)}; auto: official where there is one, else random",
    )
    add("--split-file", type=Path, help="csv with columns source and split, as sources.csv in NAME.private/")
    add(
        "--shares",
        type=float,
        nargs=3,
        default=(0.7, 0.15, 0.15),
        metavar=("TRAIN", "VAL", "TEST"),
        help="of samples, where they are dealt",
    )
    add("--seed", type=int, default=0, help="seed of the split and of the stored order")
    add("--folds", type=int, help="K: write split files for K folds, too (OUT/splits, for the trainer's --split-file)")
    add("--repeats", type=int, default=1, help="so many seeds of folds or, without --folds, of splits from --seed on")
    add("--keep-test", action="store_true", help="with --folds or --repeats: the test split stays in all of them")
    add("--salt", type=Path, help="a file of 32 bytes, to share group hashes over several sets (default: a new one)")
    add("--shard-samples", type=int, help="samples a shard (default: by the size of the split, at most 4096)")
    add("--workers", type=positive, default=CORES, help="processes; any number gives the same bytes")
    add("--cluster", help="address of a Dask scheduler that takes the work instead, such as tcp://node1:8786")
    add("--compress", default="none", help="zstd: .tar.zst for transport; readers unpack into their cache")
    add("--max-bad", type=float, default=0.01, help="share of images that may fail to decode")
    add("--strict", action="store_true", help="stop at the first image that does not decode")
    add(
        "--bits",
        type=int,
        default=8,
        choices=(8, 16),
        help="16 keeps DICOM and 16-bit values; needs --format png, htj2k or raw",
    )
    add("--crop", choices=CROPS, default="none", help="mammograms to the breast, fundus photographs to the disc")
    add("--mirror", action="store_true", help="with --crop breast: right breasts become left ones")
    add(
        "--burned-in",
        choices=("refuse", "keep"),
        default="refuse",
        help="DICOM files whose header says that text, perhaps a name, is burned into the pixels",
    )
    add(
        "--metadata",
        nargs="+",
        default=["all"],
        metavar="FIELD",
        help="what the set tells for subgroups, such as age sex; all or none; with csv FIELD=COLUMN",
    )
    add("--near-duplicates", action="store_true", help="look for images that two splits share but for size or quality")
    add("--dry-run", action="store_true", help="count, split and estimate; write nothing")
    own = parser.add_argument_group(CSV_FLAGS)
    own.add_argument("--table", type=Path, help="the csv table (default: RAW/labels.csv)")
    own.add_argument("--name", help="name of the set, for --dataset slides too (default: csv or slides)")
    own.add_argument("--path-column", default="path", help="image paths relative to --raw")
    own.add_argument("--label-columns", nargs="+", default=["label"], help="one for classes, several for multi-label")
    own.add_argument("--group-column", help="patient, lesion or slide: its images stay in one split")
    own.add_argument("--split-column", help="train, val or test")
    own.add_argument("--channels", type=int, choices=(1, 3), default=3, help="1 stores grey images")
    own.add_argument("--target-metric", help="such as roc_auc, accuracy or quadratic_kappa")
    cut = parser.add_argument_group(SLIDE_FLAGS)
    cut.add_argument("--tile-size", type=int, default=96, help="pixels of a tile's side")
    cut.add_argument("--microns", type=float, default=0.972, help="micrometres a pixel (0.972: PatchCamelyon's)")
    cut.add_argument("--min-tissue", type=float, default=0.5, help="least share of tissue of a tile, 0..1")
    cut.add_argument("--tiles-per-slide", type=int, help="at most so many a slide and class, drawn (default: all)")
    add_output_flags(parser)
    args = parser.parse_args(argv)
    groups = ({action.dest for action in group._group_actions} for group in (own, cut))
    known = args.dataset in DATASETS or args.dataset == "csv"
    if known and (idle := idle_flag(args, parser.get_default, *groups)):
        parser.error(idle)
    return args


def own_dataset(args: argparse.Namespace, raw: Path) -> RawDataset:
    """The user's own table as a dataset."""
    table = args.table or raw / "labels.csv"
    columns = TableColumns(
        table,
        args.path_column,
        tuple(args.label_columns),
        args.group_column,
        args.split_column,
        named_columns(args.metadata),
    )
    return table_dataset(args.name or "csv", columns, channels=args.channels, target_metric=args.target_metric)


def output_place(given: str | None, name: str) -> tuple[Path, str | None]:
    """(folder, URL or None). For a URL the folder is made only as FOLDER.private: what must not travel stays here.

    Raises:
        ValueError: a URL with user or password in it.
    """
    if given is None:
        return Path("data/shards") / name, None
    if not is_url(given):
        return Path(given), None
    if given.startswith("file://"):
        return Path(unquote(urlsplit(given).path)), None
    if "@" in urlsplit(given).netloc:
        raise ValueError(
            f"{shown(given)}: leave user and password out of the URL; the environment has a place for them"
        )
    return Path("data/shards") / (PurePosixPath(urlsplit(given).path).name or name), given.rstrip("/")


def fold_options(args: argparse.Namespace) -> FoldOptions | None:
    """Which split files to write besides, if any; wrong ones are told before anything is done.

    Raises:
        ValueError: flags that contradict each other or do nothing.
    """
    if args.folds is None and args.repeats == 1:
        if args.keep_test:
            raise ValueError("--keep-test is of the split files of --folds or --repeats: give one of them, too")
        return None
    return FoldOptions(args.folds, args.repeats, args.seed, tuple(args.shares), args.keep_test)


def named_columns(entries: list[str]) -> dict[str, str]:
    """{field: column} of --metadata; ValueError for a field that is not on the list."""
    named = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    for field in named:
        find_field(field)
    return named


def pixel_options(args: argparse.Namespace, dataset: RawDataset, short_side: int | None) -> PixelOptions:
    """How the pixels of this dataset are stored."""
    stored = args.format, args.quality, args.chroma, args.bits, args.crop, args.mirror, args.burned_in, args.enlarge
    return PixelOptions(dataset.channels, short_side, *stored)


def chosen_dataset(args: argparse.Namespace, raw: Path) -> tuple[RawDataset, int]:
    """The dataset that the flags name, and the short side in pixels that its images are stored with, 0 as they are.

    Raises:
        ValueError: no such dataset, or slides at a URL.
    """
    dataset = own_dataset(args, raw) if args.dataset == "csv" else find_dataset(args.dataset)
    slides = dataset in (slide_sources.CAMELYON_SLIDES, slide_sources.SLIDES)
    if slides and is_far(raw):
        raise ValueError("slides are read from a local disk (OpenSlide knows no URL): copy the folder, give --raw DIR")
    if slides:
        cut = TileOptions(args.tile_size, args.microns, args.min_tissue, args.tiles_per_slide)
        dataset = slide_sources.with_tiles(dataset, cut, args.name)
    return dataset, args.short_side if args.short_side is not None else 0 if slides else 256


def convert_options(
    args: argparse.Namespace, dataset: RawDataset, short_side: int, url: str | None, folds: FoldOptions | None
) -> ConvertOptions:
    """What the flags say of a conversion. ValueError where two of them do not fit."""
    return ConvertOptions(
        pixels=pixel_options(args, dataset, short_side or None),
        split=args.split,
        shares=tuple(args.shares),
        seed=args.seed,
        shard_samples=args.shard_samples,
        max_bad=args.max_bad,
        strict=args.strict,
        workers=args.workers,
        quiet=args.quiet or args.json,
        split_file=args.split_file,
        compress=args.compress,
        cluster=args.cluster,
        url=url,
        metadata=tuple(entry.partition("=")[0] for entry in args.metadata),
        near_duplicates=args.near_duplicates,
        folds=folds,
    )


def main(args: argparse.Namespace) -> None:
    """Convert and say what became of it.

    Raises:
        ValueError: whatever the user can mend, in one line.
    """
    name = (args.name if args.dataset in ("csv", "slides") else None) or args.dataset
    raw = open_place(args.raw or Path("data/raw") / name)
    dataset, short_side = chosen_dataset(args, raw)
    out, url = output_place(args.out, dataset.name)
    files = fold_options(args)
    options = convert_options(args, dataset, short_side, url, files)
    place = out if url is None else shown(url)
    if args.dry_run:
        print(dry_run(dataset, raw, place, options))
        return
    start = time.monotonic()
    manifest, made = convert(dataset, raw, out, options, args.salt)
    proofs = {} if files is None else write_folds(out, files) if url is None else deliver_folds(url, files)
    seconds = time.monotonic() - start
    if args.json:
        print(json.dumps(_summary(manifest, out, place, made), indent=1))
    if args.json or args.quiet:
        return
    state = f"made in {seconds:.0f} s" if made else "already done, nothing to do"
    print(f"{manifest.name}{' (phantoms)' if manifest.phantom else ''}: {place} {state}")
    print(describe(manifest))
    if url is not None:
        print(f"  sources, groups and salt stay on this machine: {out}.private")
    if proofs:
        print(f"split files in {place}/{SPLITS_FOLDER} (train --split-file NAME):\n{describe_folds(proofs)}")


def _summary(manifest: Manifest, out: Path, place: Path | str, made: bool) -> dict[str, Any]:
    splits = {name: {"samples": split.samples, "groups": split.groups} for name, split in manifest.splits.items()}
    told = {"out": str(place), "private": f"{out}.private", "made": made, "digest": manifest.digest, "splits": splits}
    return told | {"left_out": len(manifest.left_out), "warnings": manifest.warnings}


if __name__ == "__main__":
    arguments = parse_args()
    run_cli(lambda: main(arguments), debug=arguments.debug)
