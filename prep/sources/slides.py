"""Whole slides cut into tiles: Camelyon16 and 17 with their outlines of tumour, and any folder without labels."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from prep.annotations import read_outlines, tumour_labels
from prep.images import UndecodableImage
from prep.records import RawDataset, Record
from prep.sources.camelyon import CAMELYON
from prep.tables import read_table
from prep.whole_slides import Region, TileOptions, open_slide, side_at_level_0, tiles
from shards.manifest import LabelView
from shards.metadata import Value

SUFFIXES = {".tif", ".tiff", ".svs", ".ndpi", ".scn", ".mrxs", ".bif", ".svslide", ".vms", ".vmu"}
LEAVE_OUT = "leave_out.txt"  # names of slides, one a line
STAGES = "stage_labels.csv"  # Camelyon17: patient_000_node_0.tif,negative
CAMELYON17 = re.compile(r"patient_(\d{3})_node_\d")
PATIENT = re.compile(r"patient_\d+")


def slides_in(root: Path) -> list[Path]:
    """Every slide below `root`, sorted, without masks (their names or folders say so) and those left out by name."""
    named = (root / LEAVE_OUT).read_text().split() if (root / LEAVE_OUT).is_file() else []
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    return [
        path
        for path in found
        if "mask" not in path.relative_to(root).as_posix().lower() and not {path.name, path.stem} & set(named)
    ]


def _tiles(path: Path, where: str, options: TileOptions) -> tuple[list[Region], str]:
    """The tiles of a slide, or the reason why there are none."""
    try:
        side = side_at_level_0(open_slide(path), options)
        found = [] if isinstance(side, str) else list(tiles(path, side, options))
    except UndecodableImage as error:
        return [], str(error)
    return found, side if isinstance(side, str) else "" if found else "a slide without enough tissue for one tile"


def _few(labels: np.ndarray, most: int | None, number: int) -> np.ndarray:
    """The positions kept of each class, at most `most`, drawn by the slide's number."""
    if most is None:
        return np.arange(len(labels))
    rng = np.random.default_rng(number)
    kept = [rng.permutation(np.flatnonzero(labels == label))[:most] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept)) if kept else np.arange(0)


def _records(root: Path, path: Path, number: int, options: TileOptions, label: int | Path | str) -> Iterator[Record]:
    """The tiles of one slide. `label`: of all tiles, or the file of the outlines, or why the slide has none."""
    source, where = path.relative_to(root).as_posix(), f"slide {number}"
    split = "test" if path.stem.lower().startswith("test_") else "train"
    patient = PATIENT.match(path.stem.lower())
    group = patient[0] if patient else path.stem
    told: dict[str, Value] = {"pixel_spacing_mm": options.microns / 1000}
    regions, reason = _tiles(path, where, options) if not isinstance(label, str) else ([], label)
    if reason:
        yield Record(source, path, (0,), group, split, where, reason)
        return
    fixed = np.full(len(regions), label if isinstance(label, int) else 0)
    labels = tumour_labels(regions, read_outlines(label, where)) if isinstance(label, Path) else fixed
    for position in _few(labels, options.most, number):
        region = regions[position]
        name = f"{source} {region.left:.0f},{region.top:.0f} {region.side:.3f}"
        yield Record(
            name,
            path,
            (int(labels[position]),),
            group,
            split,
            f"{where} tile {position}",
            region=region,
            metadata=told | _centre(path),
        )


def _centre(path: Path) -> dict[str, Value]:
    """The hospital of a slide of Camelyon17: twenty patients each, in their order."""
    patient = CAMELYON17.match(path.stem.lower())
    return {"centre": str(int(patient[1]) // 20)} if patient and int(patient[1]) < 200 else {}


def label_of(path: Path, outlines: dict[str, Path], stages: dict[str, str]) -> int | Path | str:
    """0 for a slide without tumour, the file of its outlines, or why its tiles have no label."""
    name = path.stem.lower()
    if name in outlines:
        return outlines[name]
    if name.startswith("normal") or stages.get(name) == "negative":
        return 0
    if name.startswith("test_") and any(other.startswith("test_") for other in outlines):
        return 0  # the test slides with tumour have outlines
    return "a slide with tumour, or of unknown kind, without outlines"


def camelyon_reader(options: TileOptions):  # type: ignore[no-untyped-def]
    """The reader of Camelyon16 and 17 for tiles of these options."""

    def read(root: Path) -> Iterator[Record]:
        CAMELYON_SLIDES.require(root)
        outlines = {path.stem.lower(): path for path in sorted(root.rglob("*.xml"))}
        stages = {
            Path(row["patient"]).stem.lower(): row["stage"]
            for table in sorted(root.rglob(STAGES))
            for _, row in read_table(table, ("patient", "stage"))
        }
        for number, path in enumerate(slides_in(root), 1):
            yield from _records(root, path, number, options, label_of(path, outlines, stages))

    return read


def plain_reader(options: TileOptions):  # type: ignore[no-untyped-def]
    """The reader of any folder of slides."""

    def read(root: Path) -> Iterator[Record]:
        SLIDES.require(root)
        for number, path in enumerate(slides_in(root), 1):
            yield from _records(root, path, number, options, 0)

    return read


CAMELYON_SLIDES = replace(
    CAMELYON,
    name="Camelyon-slides",
    citation="Bejnordi et al., JAMA 318(22):2199-2210, 2017; Bandi et al., IEEE Trans. Med. Imaging 38(2):550-560, "
    "2019",
    where="https://camelyon17.grand-challenge.org/Data/",
    tree=("…/normal_001.tif, tumor_001.tif, test_001.tif or patient_000_node_0.tif", "…/tumor_001.xml", STAGES),
    group_by="slide or patient",
    read=camelyon_reader(TileOptions()),
    phantoms="Camelyon-slides",
    study_split=None,
    unpack=None,
    metadata=("centre", "pixel_spacing_mm"),
    notes=(
        "a tile outside every outline counts as normal: name slides that are outlined in part alone in leave_out.txt",
    ),
)
SLIDES = RawDataset(
    name="slides",
    citation="",
    licence="the owner's",
    where="your own folder",
    tree=("slides of any format that OpenSlide reads, at any depth",),
    task="single-label",
    label_columns=("unlabelled",),
    views={"unlabelled": LabelView(classes=["unlabelled"], mapping={"0": 0})},
    default_view="unlabelled",
    target_metric="accuracy",
    channels=3,
    group_by="slide",
    read=plain_reader(TileOptions()),
    phantoms="Camelyon-slides",
    auto_split="none",
    metadata=("pixel_spacing_mm",),
)


def with_tiles(dataset: RawDataset, options: TileOptions, name: str | None = None) -> RawDataset:
    """The same slides in other tiles, perhaps under another name."""
    if dataset is SLIDES:
        return replace(dataset, name=name or dataset.name, read=plain_reader(options))
    return replace(dataset, read=camelyon_reader(options))
