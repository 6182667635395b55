"""The manifest of a shard set: all that training and analysis may know of the data. FORMAT.md says it in prose."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from shards.aside import write_aside
from shards.metadata import FIELDS, find_field

FORMAT = "medshard-1"
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 << 20
MAX_MANIFEST_VALUES = 5_000_000  # what json makes of them takes at most about 100 bytes each
BLANK_LABEL = -32768
PACKED_FIELDS = ("packed_bytes", "packed_sha256")  # of a shard; how it lies there, not what it holds

Task = Literal["single-label", "multi-label"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ +-]{0,127}$")]
SplitName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{0,15}$")]
ShardName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}\.tar$")]
Text = Annotated[str, Field(max_length=4096)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]
Classes = Annotated[list[ClassName], Field(min_length=1, max_length=10_000)]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Real = Annotated[float, Field(allow_inf_nan=False)]
Scalar = bool | int | Real | Text | None
SourceValue = Annotated[str, Field(pattern=r"^(-?[0-9]{1,5})?$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelView(_Part):
    """How source labels become classes.

    Single-label: `mapping` takes a source value (as text, "" for blank) to an index of `classes`; a sample whose value
    is not mapped is left out of the view. Multi-label: `classes` are some of the set's label columns, `mapping` takes a
    source value to 0 or 1; what is not mapped is ignored (NaN).
    """

    classes: Classes
    mapping: Annotated[dict[SourceValue, Annotated[int, Field(ge=0, lt=10_000)]], Field(max_length=65_536)]
    note: Text = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("a class name stands twice in the view")
        if any(value and not -32768 < int(value) <= 32767 for value in self.mapping):
            raise ValueError("a source value is outside -32767..32767")
        return self


class ShardInfo(_Part):
    """One tar: its file name, its samples and bytes, and the sha256 of the tar and of its .cols.

    packed_bytes, packed_sha256: of the .tar.zst that lies in the tar's place; no part of the set's digest.
    """

    name: ShardName
    samples: Annotated[int, Field(ge=1, lt=1 << 32)]
    bytes: Count
    sha256: Hex64
    index_sha256: Hex64
    packed_bytes: Annotated[int, Field(ge=1, lt=1 << 53)] | None = None
    packed_sha256: Hex64 | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.packed_bytes is None) != (self.packed_sha256 is None):
            raise ValueError("packed_bytes and packed_sha256 come together")
        return self

    @model_serializer(mode="wrap")
    def _without_blanks(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}

    @property
    def packed(self) -> bool:
        """Whether it lies there as a .tar.zst."""
        return self.packed_sha256 is not None

    @property
    def stem(self) -> str:
        """The name without .tar; `.idx` and `.cols` bear it too."""
        return self.name.removesuffix(".tar")


class SplitInfo(_Part):
    """One split: samples, groups, samples (or positives) of each class in the default view, shards in stored order."""

    samples: Count
    groups: Count
    class_counts: dict[ClassName, Count]
    shards: Annotated[list[ShardInfo], Field(max_length=200_000)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(shard.samples for shard in self.shards) != self.samples:
            raise ValueError(
                f"the shards hold {sum(s.samples for s in self.shards)} samples, the split says {self.samples}"
            )
        return self


class Grouping(_Part):
    """How the splits were kept apart: by what, under which salt, how large the pairwise intersections are, in words."""

    by: Text
    salt_digest: Hex32
    intersections: dict[Text, Count]
    how: Text


class MetadataField(_Part):
    """One field of `metadata.FIELDS` that the set holds. `values` are its categories in the order of their numbers in
    the index; empty for a number.
    """

    name: Text
    values: Annotated[list[Text], Field(max_length=1000)] = []

    @model_validator(mode="after")
    def _on_the_list(self) -> Self:
        field = find_field(self.name)
        if not set(self.values) <= set(field.values) or bool(self.values) == field.is_number:
            raise ValueError(f"metadata field {self.name} has other values than the list of FORMAT.md")
        return self


class LeftOut(_Part):
    """A sample that was left out, and why. `key` is the key it would have had; never a source path."""

    key: Text
    reason: Text
    split: Text


class Source(_Part):
    """Where the images come from."""

    dataset: Text = ""
    citation: Text = ""
    licence: Text = ""
    where: Text = ""


class Manifest(_Part):
    """All that a set says of itself. Frozen, JSON only, every size bounded; unknown fields are refused."""

    format: Literal["medshard-1"] = "medshard-1"
    name: Name
    set_id: Hex32
    merged_set_ids: Annotated[list[Hex32], Field(max_length=1000)] = []
    phantom: bool = False
    task: Task
    label_columns: Classes
    classes: Classes
    label_view: Name = "default"
    views: Annotated[dict[Name, LabelView], Field(min_length=1, max_length=100)]
    channels: Literal[1, 3]
    bits: Literal[8, 16] = 8
    mean: list[Real]
    std: list[Real]
    metadata: Annotated[list[MetadataField], Field(max_length=64)] = []
    target_metric: Name
    knn_k: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    encoding: Name
    splits: Annotated[dict[SplitName, SplitInfo], Field(min_length=1, max_length=16)]
    grouping: Grouping
    left_out: Annotated[list[LeftOut], Field(max_length=1_000_000)] = []
    source: Source = Source()
    conversion: dict[Text, Scalar] = {}
    versions: dict[Text, Text] = {}
    warnings: list[Text] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.label_view not in self.views:
            raise ValueError(f"the default view {self.label_view!r} is not among the views {sorted(self.views)}")
        if self.classes != self.views[self.label_view].classes:
            raise ValueError("classes differ from the default view's")
        if self.task == "single-label" and len(self.label_columns) != 1:
            raise ValueError(f"a single-label set has one label column, not {len(self.label_columns)}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers each")
        if min(self.std) <= 0:
            raise ValueError("std must be above 0")
        names = [shard.name for split in self.splits.values() for shard in split.shards]
        if len(set(names)) != len(names):
            raise ValueError("a shard stands twice")
        if len({field.name for field in self.metadata}) != len(self.metadata):
            raise ValueError("a metadata field stands twice")
        for name, view in self.views.items():
            self._check_view(name, view)
        return self

    def _check_view(self, name: str, view: LabelView) -> None:
        top = 1 if self.task == "multi-label" else len(view.classes) - 1
        if any(index > top for index in view.mapping.values()):
            raise ValueError(f"view {name!r} maps to an index above {top}")
        if self.task == "multi-label" and not set(view.classes) <= set(self.label_columns):
            raise ValueError(f"view {name!r} names classes that are no label column")

    @model_serializer(mode="wrap")
    def _without_empty_metadata(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A set without metadata says nothing of it: its file and digest are those of releases that know none."""
        document: dict[str, Any] = write(self)
        if not document["metadata"]:
            del document["metadata"]
        return document

    @property
    def set_ids(self) -> list[str]:
        """The set ids under which samples got theirs: this set's, or those of the sets that were merged into it."""
        return self.merged_set_ids or [self.set_id]

    @classmethod
    def read(cls, path: str | Path) -> "Manifest":
        """Read a manifest from its file or its folder. ValueError in one line if it is missing, too big or wrong."""
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        if not path.is_file():
            raise ValueError(f"no manifest at {path}: is this a shard set? make one with prep/make_shards.py")
        if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
            raise ValueError(f"{path} has {size} bytes, a manifest has at most {MAX_MANIFEST_BYTES}")
        return cls.parse(path.read_bytes(), str(path))

    @classmethod
    def parse(cls, data: bytes, where: str = MANIFEST_NAME) -> "Manifest":
        """Read a manifest from bytes; `where` names them in errors.

        Raises:
            ValueError: no manifest of this release; one line says what is wrong.
        """
        if (values := sum(data.count(mark) for mark in (b",", b"[", b"{"))) > MAX_MANIFEST_VALUES:
            raise ValueError(f"{where} has over {values} values, a manifest has at most {MAX_MANIFEST_VALUES}")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}): restore the file, or make the set again") from None
        version = document.get("format") if isinstance(document, dict) else None
        if version != FORMAT:
            raise ValueError(f"{where}: format {str(version)[:40]!r} is unknown, this release reads {FORMAT!r}")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ValueError(f"{where} is no valid manifest: {_first_problem(error)}") from None

    def write(self, path: str | Path) -> None:
        """Write to a file, or as manifest.json into a folder: aside, fsync, rename."""
        path = Path(path)
        path = path / MANIFEST_NAME if path.is_dir() else path
        write_aside(path, (json.dumps(self.model_dump(), indent=1, ensure_ascii=False) + "\n").encode())

    @property
    def digest(self) -> str:
        """sha256 hex of the canonical JSON: keys sorted, no blanks, so reformatting the file does not change it.

        Nor does packing: a set and its packed copy are one set.
        """
        document = self.model_dump()
        for shard in (shard for split in document["splits"].values() for shard in split["shards"]):
            for name in PACKED_FIELDS:
                shard.pop(name, None)
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex as a manifest states it; it is read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def metadata_fields(names: Iterable[str]) -> list[MetadataField]:
    """What a manifest says of these fields, in the order of the list."""
    wanted = set(names)
    for name in wanted:
        find_field(name)
    return [MetadataField(name=name, values=list(FIELDS[name].values)) for name in FIELDS if name in wanted]


def _first_problem(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    where = ".".join(str(part)[:60] for part in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return " ".join(f"{where}: {problems[0]['msg']}{more}".split())[:500]
