"""Make indices: of a set whose own are missing or damaged, or of tars that others wrote.

python -m shards index data/shards/DDSM
python -m shards index downloads/tars --classes benign,malignant
"""

from collections.abc import Sequence
from pathlib import Path

from shards.command_line import Parser, local_folder
from shards.foreign import index_foreign
from shards.indexing import mend
from shards.manifest import MANIFEST_NAME


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `python -m shards index`."""
    parser = Parser(
        prog="python -m shards index",
        description="With a manifest in the folder, make missing or damaged indices again. Without one, index the "
        "WebDataset tars in it (KEY.jpg with KEY.cls or KEY.json) and write a manifest, so that our loader reads them.",
        epilog="example: python -m shards index downloads/tars --classes benign,malignant",
    )
    parser.add_argument("folder", type=local_folder, help="a shard set, or a folder of .tar files")
    parser.add_argument("--private", type=Path, help="the set's private folder (default: NAME.private beside it)")
    parser.add_argument("--classes", help="foreign tars: class names, separated by commas (default: the labels)")
    parser.add_argument("--split", default="train", help="foreign tars not called train*, val*, test* (default train)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        raise ValueError(f"no folder {options.folder}: give the folder that holds the tars")
    if (options.folder / MANIFEST_NAME).is_file():
        mended = mend(options.folder, options.private)
        print(f"{mended} indices made again" if mended else "every index was whole")
        return 0
    classes = options.classes.split(",") if options.classes else None
    manifest = index_foreign(options.folder, classes=classes, split=options.split)
    samples = sum(split.samples for split in manifest.splits.values())
    print(f"{options.folder}: {samples} samples indexed; nothing is known of their patients")
    return 0
