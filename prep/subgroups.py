"""From cells of tables and headers of DICOM files to the metadata that a set may hold (shards/metadata.py).

Whatever is not understood stays unknown: no text of a cell or a header goes any further than this file.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shards.metadata import FIELDS, Value, find_field

# What begins so, in lower case, is of that maker; the longest names come first where one begins another.
MAKERS = {
    "agfa": "Agfa", "canon": "Canon", "carestream": "Carestream", "kodak": "Carestream", "fuji": "Fujifilm", "ge": "GE",
    "general electric": "GE", "giotto": "Giotto", "ims": "Giotto", "hologic": "Hologic", "lorad": "Hologic",
    "howtek": "Howtek", "konica": "Konica Minolta", "lumisys": "Lumisys", "philips": "Philips", "sectra": "Philips",
    "planmed": "Planmed", "samsung": "Samsung", "siemens": "Siemens", "toshiba": "Toshiba",
}  # fmt: skip
PROJECTIONS = {
    "XCCL": "XCC", "XCCM": "XCC", "ISO": "SIO", "LL": "lateral", "RL": "lateral", "LATERAL": "lateral",
    "LAT": "lateral", "FRONTAL": "frontal", "LLO": "oblique", "RLO": "oblique", "LAO": "oblique", "RAO": "oblique",
    "LLD": "decubitus", "RLD": "decubitus",
}  # fmt: skip
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O", "diverse": "O"}
SKIN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
AGE = re.compile(r"(\d{1,3})(\.\d+)?([DWMY]?)")
DICOM_FIELDS = ("age", "sex", "side", "view", "vendor", "pixel_spacing_mm")
TAGS = (
    "PatientAge", "PatientBirthDate", "StudyDate", "PatientSex", "ImageLaterality", "Laterality", "ViewPosition",
    "Manufacturer", "ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing",
)  # fmt: skip


def age(text: str) -> str | None:
    """The band of an age: "54", "54.0", or DICOM's "054Y" and "018M". "000Y" is how anonymisers say nothing."""
    found = AGE.fullmatch(text.strip().upper())
    if found is None or text.strip().upper() == "000Y":
        return None
    years = int(found[1]) // {"D": 365, "W": 52, "M": 12}.get(found[3], 1)
    if years > 130:
        return None
    return FIELDS["age"].values[min(years // 10, 9)]


def vendor(text: str) -> str | None:
    """The maker on the list; "other" for one that is not on it."""
    words = text.strip().lower()
    found = next((maker for name, maker in MAKERS.items() if re.match(rf"{name}(film)?\b", words)), None)
    return found or ("other" if words else None)


def view(text: str) -> str | None:
    """The projection: "MLO", "L-CC", "PA", "Frontal"."""
    word = text.strip().upper().removeprefix("L-").removeprefix("R-")
    return _listed("view", PROJECTIONS.get(word, word))


def _density(text: str) -> str | None:
    return _listed("density", {"a": "1", "b": "2", "c": "3", "d": "4"}.get(text.lower(), text.removesuffix(".0")))


def _spacing(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if FIELDS["pixel_spacing_mm"].low <= value <= FIELDS["pixel_spacing_mm"].high else None


def _listed(field: str, text: str) -> str | None:
    return text if text in FIELDS[field].values else None


FROM_TEXT: dict[str, Callable[[str], Value | None]] = {
    "age": age,
    "sex": lambda text: SEXES.get(text.lower()),
    "side": lambda text: {"l": "left", "left": "left", "r": "right", "right": "right"}.get(text.lower()),
    "view": view,
    "vendor": vendor,
    "density": _density,
    "site": lambda text: _listed("site", text.lower()),
    "skin_type": lambda text: _listed("skin_type", SKIN.get(text.lower(), text.removesuffix(".0"))),
    "lesion": lambda text: _listed("lesion", text.lower()),
    "centre": lambda text: _listed("centre", text.removesuffix(".0")),
    "pixel_spacing_mm": _spacing,
}


def of_row(row: Mapping[str, str], columns: Mapping[str, str]) -> dict[str, Value]:
    """What a table's row tells, by {field: column}; a column that the table lacks tells nothing."""
    found = {field: FROM_TEXT[field](row[column].strip()) for field, column in columns.items() if row.get(column)}
    return {field: value for field, value in found.items() if value is not None}


def of_header(header: Any) -> dict[str, Value]:
    """What a DICOM header (pydicom's data set) tells. The spacing is that of the file's pixels."""
    given = {
        "age": str(header.get("PatientAge") or "") or _years(header),
        "sex": str(header.get("PatientSex") or ""),
        "side": str(header.get("ImageLaterality") or header.get("Laterality") or ""),
        "view": str(header.get("ViewPosition") or ""),
        "vendor": str(header.get("Manufacturer") or ""),
        "pixel_spacing_mm": _first_spacing(header),
    }
    return of_row(given, {field: field for field in given})


def _years(header: Any) -> str:
    """The age on the day of the study, from both dates; "" where one is missing."""
    born, seen = (str(header.get(name) or "") for name in ("PatientBirthDate", "StudyDate"))
    if not (re.fullmatch(r"\d{8}", born) and re.fullmatch(r"\d{8}", seen) and seen >= born):
        return ""
    return str((int(seen) - int(born)) // 10_000)


def _first_spacing(header: Any) -> str:
    """Of the first spacing that the header has, that between rows."""
    for name in ("ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing"):
        value = header.get(name)
        if value:
            return str(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
    return ""


def of_dicom(data: bytes) -> dict[str, Value]:
    """What the bytes of a DICOM file tell; nothing where the header cannot be read."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their texts quote header values
        try:
            return of_header(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=list(TAGS)))
        except Exception:  # a broken header is told of, with its reason, when the pixels are decoded
            return {}


def chosen(wanted: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """The fields that a set holds, in the list's order: those `wanted` ("all", "none" or names) of those `known`.

    Raises:
        ValueError: a field that is not on the list, or that this dataset does not tell.
    """
    asked, known = set(wanted), set(known)
    if asked == {"all"}:
        asked = known
    elif asked == {"none"}:
        asked = set()
    for name in sorted(asked):
        find_field(name)
        if name not in known:
            raise ValueError(f"this dataset does not tell {name!r}; it tells {', '.join(sorted(known)) or 'nothing'}")
    return tuple(name for name in FIELDS if name in asked)
