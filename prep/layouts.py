"""The raw layouts of the datasets, for phantoms: which files and tables, and what is drawn into each image."""

import csv
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from prep.sources.camelyon import FILE as CAMELYON_FILE
from prep.sources.camelyon import PARTS as CAMELYON_PARTS
from prep.sources.chexpert import FINDINGS as CHEXPERT_FINDINGS
from prep.sources.isic2019 import CODES as ISIC_CODES
from prep.sources.isic2019 import METADATA as ISIC_METADATA
from prep.sources.isic2019 import TRUTH as ISIC_TRUTH
from shards.metadata import SITES

Drawing = tuple[Path, str, dict[str, Any]]  # file, drawer, its arguments


@dataclass(frozen=True)
class Layout:
    """How the phantoms of one dataset are laid out: `plan(root, rng, count, size)` writes the tables, yields
    drawings; `pack(root)`, where there is one, puts what was drawn into the dataset's own files.
    """

    plan: Callable[[Path, np.random.Generator, int, int], Iterator[Drawing]]
    size: int
    pack: Callable[[Path], None] | None = None


def sides(rng: np.random.Generator, size: int, ratio: float, spread: float) -> tuple[int, int]:
    """Height and width of one image: the short side within `spread` of `size`, the long one `ratio` times that."""
    short = size * rng.uniform(1 - spread, 1 + spread)
    tall, wide = (short * ratio, short) if ratio >= 1 else (short, short / ratio)
    return round(tall * rng.uniform(0.97, 1.03)), round(wide)


def write_lines(path: Path, lines: list[str]) -> None:
    """A text file of lines, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def write_table(path: Path, rows: list[list[Any]]) -> None:
    """A csv table, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def plan_ddsm(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """ddsm_raw/ and its three lists; cases of one to four views, a case in one list, classes in equal shares."""
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    views = ["LEFT_CC", "LEFT_MLO", "RIGHT_CC", "RIGHT_MLO"]
    names = ("normal", "benign", "cancer")
    drawn, dealt = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    case_numbers = iter(rng.permutation(9000)[:count] + 1000)
    while (total := sum(drawn.values())) < count:
        # Normal takes half, as the default view has two classes; the split goes by whole cases, the fullest need first.
        name = min(names, key=lambda n: drawn[n] / {"normal": 2, "benign": 1, "cancer": 1}[n])
        case, scanner = int(next(case_numbers)), "ABCD"[int(rng.integers(4))]
        cut = dealt[name] % 10
        split = "val" if cut in (3, 7) else "test" if cut in (1, 5, 9) else "train"
        dealt[name] += 1
        for view in rng.permutation(views)[: min(int(rng.integers(1, 4)), count - total)]:
            file = f"{name}_{int(rng.integers(1, 16)):02d}-{scanner}_{case}_1.{view}.png"
            lists[split].append(file)
            drawn[name] += 1
            height, width = sides(rng, size, 1.5, 0.06)
            yield (
                root / "ddsm_raw" / file,
                "breast",
                {
                    "height": height,
                    "width": width,
                    "count": 0 if name == "normal" else int(rng.integers(4, 8)),
                    "shape": "spiculated" if name == "cancer" else "round",
                    "right": view.startswith("RIGHT"),
                    "brightness": rng.uniform(0.14, 0.22),
                },
            )
    for split, lines in lists.items():
        write_lines(root / "ddsm_raw_image_lists" / f"{split}.txt", [lines[i] for i in rng.permutation(len(lines))])


def _fundus(rng: np.random.Generator, grade: int, size: int) -> dict[str, Any]:
    """Arguments of a fundus of a grade: more dark dots with each grade, bright exudates from grade 2 on."""
    dots = (0, 5, 7, 14, 20)[grade] + int(rng.integers(0, 3)) * (grade > 0)
    exudates = (0, 0, 5, 8, 16)[grade] + int(rng.integers(0, 3)) * (grade > 1)
    height, width = sides(rng, size, 0.67, 0.3)
    return {"height": height, "width": width, "counts": (dots, exudates), "brightness": rng.uniform(0.16, 0.24)}


def plan_aptos(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """train.csv (id_code,diagnosis) and train_images/*.png."""
    grades = rng.permutation(np.resize([0, 2, 0, 1, 3, 4], count))
    names = [rng.bytes(6).hex() for _ in range(count)]
    write_table(
        root / "train.csv", [["id_code", "diagnosis"], *([n, int(g)] for n, g in zip(names, grades, strict=True))]
    )
    for name, grade in zip(names, grades, strict=True):
        yield root / "train_images" / f"{name}.png", "fundus", _fundus(rng, int(grade), size)


def plan_idrid(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """The official folders and csv files, with their traps: names that repeat across splits, empty columns, a blank."""
    base = root / "B. Disease Grading"
    test = count // 5
    parts = [
        ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv", count - test, [""] * 9),
        ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv", test, []),
    ]
    for folder, table, images, blanks in parts:
        grades = [int(g) for g in rng.permutation(np.resize([2, 0, 3, 2, 0, 4, 1], images))]
        rows: list[list[Any]] = [["Image name", "Retinopathy grade", "Risk of macular edema ", *blanks]]
        rows += [[f"IDRiD_{i + 1:03d}", grade, min(grade, 2), *blanks] for i, grade in enumerate(grades)]
        write_table(base / "2. Groundtruths" / table, rows)
        for i, grade in enumerate(grades):
            yield base / "1. Original Images" / folder / f"IDRiD_{i + 1:03d}.jpg", "fundus", _fundus(rng, grade, size)


def plan_isic(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """Ground truth with UNK, metadata with blank lesion ids and an extra column, images in two folders."""
    truth: list[list[Any]] = [["image", *ISIC_CODES, "UNK"]]
    metadata: list[list[Any]] = [["image", "age_approx", "anatom_site_general", "lesion_id", "sex"]]
    labels = rng.permutation(np.resize(np.arange(8), count))
    earlier: dict[int, str] = {}  # lesions by class: every fifth image shows one again
    for number, (label, serial) in enumerate(zip(labels, rng.permutation(90_000)[:count], strict=True)):
        name = f"ISIC_{int(serial):07d}"
        truth.append([name, *(f"{float(code == label):.1f}" for code in range(9))])
        lesion = "" if rng.random() < 0.1 else f"HAM_{int(serial):07d}"
        lesion = earlier.get(int(label), lesion) if number % 5 == 4 else lesion
        earlier[int(label)] = lesion
        about = SITES[int(serial) % 8], lesion, ("female", "male")[int(serial) // 8 % 2]  # of no class
        metadata.append([name, int(rng.integers(4, 17)) * 5, *about])
        kinds = (4 + 6 * (int(label) % 4), 7 * (int(label) // 4))
        height, width = sides(rng, size, 0.75, 0.3)
        arguments = {"height": height, "width": width, "counts": kinds, "brightness": rng.uniform(0.16, 0.24)}
        yield root / f"ISIC_2019_Training_Input_{number % 2 + 1}" / f"{name}.jpg", "fundus", arguments
    write_table(root / ISIC_TRUTH, truth)
    write_table(root / ISIC_METADATA, metadata)


def plan_chexpert(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """train.csv and valid.csv with blanks and -1; spiculated spots are Lung Opacity, round ones Lung Lesion.

    Sorted by patient, as the original. Every eighth image is a lateral view of the study before it.
    """
    header = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS]
    tables: dict[str, list[list[Any]]] = {"train": [header], "valid": [header]}
    patients, values = np.sort(rng.permutation(60_000)[:count]), dict[str, str]()
    patient, part, shape = 0, "", ""
    for number in range(count):
        view = "Lateral" if number % 8 == 5 else "Frontal"
        if view == "Frontal":
            patient, part = int(patients[number]), "valid" if number % 10 == 9 else "train"
            shape = ("round", "spiculated", "none")[int(rng.integers(3))]
            values = {name: str(rng.choice(["", "", "0.0", "-1.0"])) for name in CHEXPERT_FINDINGS[1:]}
            values["Lung Lesion"] = "1.0" if shape == "round" else ""
            values["Lung Opacity"] = "1.0" if shape == "spiculated" else ""
        path = f"{part}/patient{patient + 1:05d}/study1/{'view1_frontal' if view == 'Frontal' else 'view2_lateral'}.jpg"
        cells = [values.get(name, "") for name in CHEXPERT_FINDINGS]
        about = ("Female", "Male")[patient % 2], 20 + patient // 2 % 75  # of no class
        projection = ("AP", "PA")[patient % 3 > 0] if view == "Frontal" else ""
        tables[part].append([f"CheXpert-v1.0-small/{path}", *about, view, projection, *cells])
        height, width = sides(rng, size, 1.0, 0.1)
        yield (
            root / path,
            "breast",
            {
                "height": height,
                "width": width,
                "count": 0 if shape == "none" else int(rng.integers(4, 8)),
                "shape": "round" if shape == "none" else shape,
                "right": False,
                "brightness": rng.uniform(0.14, 0.22),
            },
        )
    for part, rows in tables.items():
        write_table(root / f"{part}.csv", rows)


def plan_table(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """labels.csv (path, label, patient) and images/, as a user's own folder: three words for classes."""
    kinds: tuple[tuple[str, int, str], ...] = (("clear", 0, "round"), ("round", 5, "round"), ("spiky", 5, "spiculated"))
    rows: list[list[Any]] = [["path", "label", "patient"]]
    for number, patient in enumerate(np.sort(rng.integers(0, max(count * 2 // 3, 4), count))):
        label, lesions, shape = kinds[int(rng.integers(3))]
        rows.append([f"images/{number:05d}.png", label, f"P{patient:04d}"])
        height, width = sides(rng, size, 1.2, 0.1)
        arguments = {"height": height, "width": width, "count": lesions, "shape": shape, "right": bool(rng.integers(2))}
        yield root / rows[-1][0], "breast", arguments | {"brightness": rng.uniform(0.14, 0.22)}
    write_table(root / "labels.csv", rows)


PATCHES = "patches"  # drawn here first, then packed


def plan_camelyon(root: Path, rng: np.random.Generator, count: int, size: int) -> Iterator[Drawing]:
    """Patches of eight parts train, one valid, one test, four a slide; `pack_camelyon` writes the HDF5 files."""
    for number in range(count):
        part = "valid" if number % 10 == 8 else "test" if number % 10 == 9 else "train"
        tumour = bool(rng.integers(2))
        arguments = {"side": size, "tumour": tumour, "brightness": rng.uniform(0.5, 0.62)}
        yield root / PATCHES / part / f"{number:06d}-{int(tumour)}.png", "tissue", arguments


def _opened(file: Path) -> np.ndarray:
    image = cv2.imread(str(file))
    assert image is not None, file
    return image


def pack_camelyon(root: Path) -> None:
    """The x, y and meta files of each part from the drawn patches, which are removed."""
    import h5py

    for part in CAMELYON_PARTS:
        files = sorted((root / PATCHES / part).glob("*.png"))
        if not files:
            continue
        images = np.stack([cv2.cvtColor(_opened(file), cv2.COLOR_BGR2RGB) for file in files])
        labels = np.array([int(file.stem[-1]) for file in files], np.uint8).reshape(-1, 1, 1, 1)
        for kind, name, data in (("x", "x", images), ("y", "y", labels)):
            with h5py.File(root / f"{CAMELYON_FILE.format(part=part, kind=kind)}.h5", "w") as file:
                file.create_dataset(name, data=data)
        header = ["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"]
        tumours = labels.ravel().astype(bool)
        rows = [[i, 0, 96 * i, bool(t), bool(t), f"camelyon16_{part}_{i // 4:03d}"] for i, t in enumerate(tumours)]
        write_table(root / f"{CAMELYON_FILE.format(part=part, kind='meta')}.csv", [header, *rows])
    shutil.rmtree(root / PATCHES)


LAYOUTS: dict[str, Layout] = {
    "APTOS2019": Layout(plan_aptos, 512),
    "Camelyon": Layout(plan_camelyon, 96, pack_camelyon),
    "CheXpert": Layout(plan_chexpert, 390),
    "DDSM": Layout(plan_ddsm, 1000),
    "IDRiD": Layout(plan_idrid, 512),
    "ISIC2019": Layout(plan_isic, 450),
    "csv": Layout(plan_table, 256),
}
