"""What a set may tell of patients and devices: an explicit list of fields, each with a closed vocabulary or a range.

Nothing else can enter: the writer refuses it, the manifest refuses it, and a category is stored as a number into its
vocabulary, so no text of a header or a table can stand in an index. Subgroups are reported by these fields. What a
raw value means is decided in prep; FORMAT.md says how the values are stored.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Value = str | float
Metadata = Mapping[str, Value]


@dataclass(frozen=True)
class Field:
    """One field: the values of a category, or the range of a number; and what it means, with its unit."""

    meaning: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers, not categories."""
        return not self.values


SITES = (
    "anterior torso", "head/neck", "lateral torso", "lower extremity", "oral/genital", "palms/soles", "posterior torso",
    "upper extremity",
)  # fmt: skip
VIEWS = (
    "CC", "MLO", "ML", "LM", "LMO", "XCC", "SIO", "FB", "AT", "CV",
    "AP", "PA", "frontal", "lateral", "oblique", "decubitus",
)  # fmt: skip
VENDORS = (
    "Agfa", "Canon", "Carestream", "Fujifilm", "GE", "Giotto", "Hologic", "Howtek", "Konica Minolta", "Lumisys",
    "Philips", "Planmed", "Samsung", "Siemens", "Toshiba", "other",
)  # fmt: skip

# Values are never moved or taken away: a set stores their places. New ones go to the end.
FIELDS: dict[str, Field] = {
    "age": Field("years, in bands of ten", (*(f"{low}-{low + 9}" for low in range(0, 90, 10)), "90+")),
    "sex": Field("as stated by the source", ("F", "M", "O")),
    "side": Field("of the body", ("left", "right")),
    "view": Field("projection", VIEWS),
    "vendor": Field("maker of the device", VENDORS),
    "density": Field("of the breast, BI-RADS a to d as 1 to 4", ("1", "2", "3", "4")),
    "site": Field("on the skin", SITES),
    "skin_type": Field("Fitzpatrick I to VI as 1 to 6", ("1", "2", "3", "4", "5", "6")),
    "lesion": Field("kind of a mammographic finding", ("mass", "calcification")),
    "centre": Field("number of the hospital, as published", tuple(str(number) for number in range(100))),
    "pixel_spacing_mm": Field("millimetres a stored pixel, down the rows", low=1e-6, high=100),
    "crop_left": Field("left edge of the part that was kept, in pixels of the upright source", low=0, high=65535),
    "crop_top": Field("its upper edge, likewise", low=0, high=65535),
    "crop_width": Field("its width, likewise", low=1, high=65535),
    "crop_height": Field("its height, likewise", low=1, high=65535),
    "flipped": Field("whether left and right were exchanged after the crop", ("no", "yes")),
}


def find_field(name: str) -> Field:
    """The field of that name; ValueError with all known names otherwise."""
    if name not in FIELDS:
        raise ValueError(f"metadata field {name[:40]!r} is not on the list; known: {', '.join(FIELDS)}")
    return FIELDS[name]


def code_of(name: str, value: Value | None) -> float:
    """What the index stores: a category's place in its vocabulary, a number as it is, NaN for unknown.

    Raises:
        ValueError: a field or a value that is not on the list. The value is not quoted: it may be private.
    """
    field = find_field(name)
    if value is None:
        return float("nan")
    if field.is_number:
        if not isinstance(value, int | float) or not field.low <= value <= field.high:
            raise ValueError(f"a value of metadata field {name} is no number in {field.low:g}..{field.high:g}")
        return float(value)
    if value not in field.values:
        raise ValueError(f"a value of metadata field {name} is none of {', '.join(field.values[:20])}")
    return float(field.values.index(str(value)))


def rounded(metadata: Metadata) -> dict[str, Value]:
    """As it is written: numbers to 6 significant digits, which float32 keeps."""
    return {name: value if isinstance(value, str) else float(f"{value:.6g}") for name, value in metadata.items()}


def codes_of(names: Sequence[str], metadata: Metadata) -> list[float]:
    """One row of the index for the fields `names`; ValueError where `metadata` has a field that is not among them."""
    if strange := [name for name in metadata if name not in names]:
        raise ValueError(
            f"metadata field {strange[0][:40]!r} is none of this set's ({', '.join(names) or 'it has none'})"
        )
    return [code_of(name, metadata.get(name)) for name in names]


def decoded(codes: np.ndarray, values: Sequence[str]) -> np.ndarray:
    """Stored codes float32[n] as they are read: str[n] with "" for unknown, or numbers float32[n] with NaN."""
    if not values:
        return codes.astype(np.float32)
    return np.array(["", *values])[np.where(np.isnan(codes), 0, codes + 1).astype(np.int64)]


def problem_of(codes: np.ndarray, name: str, values: Sequence[str]) -> str:
    """What is wrong with the stored column of a field, float32[n]; "" where nothing is."""
    known = codes[~np.isnan(codes)]
    if not values:
        low, high = FIELDS[name].low * (1 - 1e-6), FIELDS[name].high
        return "" if ((known >= low) & (known <= high)).all() else f"its {name} leaves {low:g}..{high:g}"
    whole = (known == np.floor(known)) & (known >= 0) & (known < len(values))
    return "" if whole.all() else f"a value of its {name} is outside the manifest's list"
