"""Make indices: of a set whose own are missing or damaged, or of tars that others wrote.

python -m shards index data/shards/DDSM
python -m shards index downloads/tars --classes benign,malignant
"""

from collections.abc import Sequence
from pathlib import Path

from shards.command_line import Parser, add_output_flags, local_folder, tell
from shards.foreign import index_foreign
from shards.indexing import mend
from shards.info import totals
from shards.manifest import MANIFEST_NAME, Manifest
from shards.words import counted


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
    parser.add_argument("--split", default="train", help="split of foreign tars not called train*, val*, test*")
    add_output_flags(parser)
    options = parser.parse_args(argv)
    folder = options.folder
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}: give the folder that holds the tars")
    if (folder / MANIFEST_NAME).is_file():
        mended = mend(folder, options.private)
        text = f"{mended} indices made again" if mended else "every index was whole"
        tell(options, totals(Manifest.read(folder), folder) | {"mended": mended}, text)
        return 0
    classes = options.classes.split(",") if options.classes else None
    manifest = index_foreign(folder, classes=classes, split=options.split)
    samples = counted(sum(split.samples for split in manifest.splits.values()), "sample")
    text = f"{folder}: {samples} indexed; nothing is known of their patients"
    tell(options, totals(manifest, folder) | {"mended": 0}, text)
    return 0
