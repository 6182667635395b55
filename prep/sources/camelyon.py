"""PatchCamelyon: 327,680 patches of 96 x 96 px in HDF5, tumour in the centre or not, official splits by slide."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from prep.hdf5 import open_images
from prep.places import there
from prep.records import RawDataset, Record
from prep.tables import read_table
from shards.aside import aside
from shards.manifest import LabelView

PARTS = {"train": "train", "valid": "val", "test": "test"}
FILE = "camelyonpatch_level_2_split_{part}_{kind}"
MAX_UNPACKED_BYTES = 1 << 34  # the largest of the nine has 7.3 GB


def slides(root: Path, part: str, count: int) -> list[str]:
    """The slide of each patch from the meta table; without the table every patch is its own group.

    Raises:
        ValueError: the table has another number of rows.
    """
    table = root / f"{FILE.format(part=part, kind='meta')}.csv"
    if not there(table, table.name):
        return [f"{part} {row}" for row in range(count)]
    names = [row["wsi"] for _, row in read_table(table, ("wsi",))]
    if len(names) != count:
        raise ValueError(f"{table.name} has {len(names)} rows for {count} patches: they belong to different versions")
    return names


def packed_files(root: Path) -> list[Path]:
    """The .h5.gz files of which no .h5 lies beside them."""
    return [path for path in sorted(root.glob("camelyonpatch_*.h5.gz")) if not path.with_suffix("").exists()]


def unpack(root: Path) -> None:
    """Unpack each .h5.gz beside itself, once: written aside, synced, renamed. The packed file stays.

    Raises:
        ValueError: the file is damaged, larger than any of PatchCamelyon, or the folder cannot be written to.
    """
    for packed in packed_files(root):
        try:
            with (
                aside(packed.with_suffix(""), shared=True) as part,
                gzip.open(packed) as source,
                part.open("wb") as file,
            ):
                while block := source.read(1 << 22):
                    if file.tell() + len(block) > MAX_UNPACKED_BYTES:
                        raise ValueError(
                            f"{packed.name} unpacks to over {MAX_UNPACKED_BYTES} bytes: is this PatchCamelyon's?"
                        )
                    file.write(block)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise ValueError(f"{packed.name} is damaged or half-loaded: get it again") from None
        except OSError as error:
            raise ValueError(
                f"{packed.name} cannot be unpacked beside itself ({error.strerror}): free space, or put links to the "
                ".gz files into a folder that can be written to and name that with --raw"
            ) from None


def read(root: Path) -> Iterator[Record]:
    """Yield the three official parts in file order.

    Raises:
        ValueError: files are missing, still packed, or do not belong together.
    """
    names = [f"{FILE.format(part=part, kind=kind)}.h5" for part in PARTS for kind in "xy"]
    CAMELYON.require(root)
    if packed := packed_files(root):
        raise ValueError(
            f"{packed[0].name} is still packed: a conversion unpacks it once, or run gunzip --keep {root}/*.h5.gz"
        )
    CAMELYON.require(root, *names)
    for part, split in PARTS.items():
        path = root / f"{FILE.format(part=part, kind='x')}.h5"
        labels = np.asarray(open_images(root / f"{FILE.format(part=part, kind='y')}.h5", "y")).reshape(-1)
        if len(labels) != len(open_images(path)):
            raise ValueError(f"{path.name} has {len(open_images(path))} patches, its labels are {len(labels)}")
        for row, slide in enumerate(slides(root, part, len(labels))):
            where = f"{path.name} row {row}"
            yield Record(where, path, (int(labels[row]),), slide, split, where, row=row)


def study_split(root: Path, records: list[Record]) -> list[str]:
    """The official parts, as the published study used them."""
    return [record.split or "train" for record in records]


CAMELYON = RawDataset(
    name="Camelyon",
    citation="Veeling et al., Rotation Equivariant CNNs for Digital Pathology, MICCAI 2018; Bejnordi et al., JAMA 2017",
    licence="CC0",
    where="https://github.com/basveeling/pcam",
    tree=tuple(f"{FILE.format(part=part, kind=kind)}" for part in PARTS for kind in ("x.h5", "y.h5", "meta.csv")),
    task="single-label",
    label_columns=("tumour",),
    views={"2class": LabelView(classes=["normal", "tumour"], mapping={"0": 0, "1": 1})},
    default_view="2class",
    target_metric="roc_auc",
    channels=3,
    group_by="slide",
    read=read,
    phantoms="Camelyon",
    study_split=study_split,
    unpack=unpack,
)
