"""The raw layouts of mammograms beside the study's whole images: CBIS-DDSM as published, patches, plain folders."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from prep.layouts import Drawing, Layout, sides, write_lines, write_table
from prep.sources.cbis_ddsm import COLUMNS, PATHOLOGIES, TABLES

TYPES = {"mass": "mass", "calc": "calcification"}
DRAWN = "drawn"  # drawn here first, then packed
STUDY, SERIES = "07-20-2016-DDSM-30678", "1.000000-full mammogram images-24515"  # as the archive's retriever names them


def _breast(rng: np.random.Generator, size: int, count: int, shape: str, right: bool) -> dict[str, Any]:
    height, width = sides(rng, size, 1.5, 0.06)
    arguments = {"height": height, "width": width, "count": count, "shape": shape, "right": right}
    return arguments | {"brightness": rng.uniform(0.14, 0.22)}


def plan_cbis(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """The four tables with their traps, one or two views a patient; every tenth mammogram stands in both kinds of
    table. `pack_cbis` writes the DICOM files.
    """
    tables: dict[str, list[list[str]]] = {name: [] for name in TABLES}
    for number in range(count):
        patient, view = f"P_{number // 2 + 1:05d}", ("LEFT", ("CC", "MLO")[number % 2])
        split = "test" if number // 2 % 5 == 4 else "train"
        pathology = list(PATHOLOGIES)[(1, 2, 0, 2)[int(rng.integers(4))]]
        cases = []
        for kind in ("mass", "calc") if number % 10 == 5 else (("mass", "calc")[number // 2 % 2],):
            case = f"{kind.title()}-{'Training' if split == 'train' else 'Test'}_{patient}_{'_'.join(view)}"
            uids = f"1.3.6.1.4.1.9590.100.1.2.{number + 1}/1.3.6.1.4.1.9590.100.1.2.{number + 900}"
            full, cropped = f"{case}/{uids}/000000.dcm", f"{case}_1/{uids}/{number % 2:06d}.dcm\n"
            full = full.replace("/", "\\") if number % 7 == 3 else full
            tables[f"{kind}_case_description_{split}_set.csv"].append(
                [patient, *view, pathology, full, cropped, str(1 + number // 2 % 4), TYPES[kind]]
            )
            cases.append(case)
        shape = "spiculated" if pathology == "MALIGNANT" else "round"
        yield (
            root / DRAWN / f"{' '.join(cases)}.png",
            "breast",
            _breast(rng, size, int(rng.integers(3, 7)), shape, False),
        )
    for name, rows in tables.items():
        density = "breast_density" if name.startswith("mass") else "breast density"  # as published
        write_table(root / name, [[*COLUMNS, density, "abnormality type"], *rows])


def _write_dicom(path: Path, pixels: np.ndarray, case: str) -> None:
    """Pixels uint8[h, w] as a DICOM file of 16 stored bits, as CBIS-DDSM has them."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian
    from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation as Mammogram

    data, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = data.SOPClassUID = Mammogram
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID("1.3.6.1.4.1.9590.100.1.2.1")
    data.file_meta, data.Modality, data.PatientID = meta, "MG", case
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = (pixels.astype("<u2") * 257).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def pack_cbis(root: Path) -> None:
    """One DICOM file a mammogram, and its cut-out and mask in either order, renumbered, in folders of other names."""
    for number, drawn in enumerate(sorted((root / DRAWN).glob("*.png"))):
        pixels = cv2.imread(str(drawn), cv2.IMREAD_GRAYSCALE)
        assert pixels is not None, drawn
        height, width = pixels.shape
        box = (slice(height // 3, 2 * height // 3), slice(0, width // 2))
        mask = np.zeros_like(pixels)
        mask[box] = 255
        pair = (pixels[box], mask) if number % 2 else (mask, pixels[box])
        for case in drawn.stem.split():
            _write_dicom(root / "CBIS-DDSM" / case / STUDY / SERIES / "1-1.dcm", pixels, case)
            for place, picture in enumerate(pair, 1):
                folder = root / "CBIS-DDSM" / f"{case}_1" / STUDY / SERIES
                _write_dicom(folder / f"1-{place}.dcm", picture, f"{case}_1")
    shutil.rmtree(root / DRAWN)


def plan_patches(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """ddsm_patches/ and ddsm_labels/{2,3}class/*.txt ("path label"), a case in one list."""
    lists: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for number in range(count):
        case, label = number // 2, int(rng.choice([0, 0, 1, 2]))
        split = ("train", "train", "val", "train", "test")[case % 5]
        file = f"{'ABCD'[case % 4]}_{1000 + case}_1.LEFT_CC_{number % 2}.png"
        lists[split].append((file, label))
        shape = "spiculated" if label == 2 else "round"
        yield root / "ddsm_patches" / file, "breast", _breast(rng, size, 0 if label == 0 else 5, shape, False)
    for classes in (2, 3):
        for split, rows in lists.items():
            lines = [f"{file} {min(label, classes - 1)}" for file, label in rows]
            write_lines(root / "ddsm_labels" / f"{classes}class" / f"{split}.txt", lines)


def plan_folder(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """normal/, benign/ and cancer/ with PNG and TIFF conversions, two views a case."""
    for number in range(count):
        case, name = number // 2, ("normal", "cancer", "benign", "normal")[number // 2 % 4]
        file = f"{'ABCD'[case % 4]}_{1000 + case}_1.LEFT_{('CC', 'MLO')[number % 2]}{('.png', '.tif')[number % 3 == 0]}"
        lesions = 0 if name == "normal" else int(rng.integers(4, 8))
        shape = "spiculated" if name == "cancer" else "round"
        yield root / name / file, "breast", _breast(rng, size, lesions, shape, False)


LAYOUTS: dict[str, Layout] = {
    "CBIS-DDSM": Layout(plan_cbis, 800, pack_cbis),
    "DDSM-folder": Layout(plan_folder, 800),
    "DDSM-patches": Layout(plan_patches, 224),
}
