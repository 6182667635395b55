"""A config from a file, flags or both; a mistake is one line that names the field, what was got and what is allowed."""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from train.config import Config, fields, sections


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or the known names where none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"


def load(file: Mapping[str, Any] | None = None, flags: Mapping[str, Any] | None = None, *, where: str = "") -> Config:
    """The config of a file's content with flags (field name -> text or value) over it.

    Raises ValueError in one line that names the field, what was got and what is allowed.
    """
    known = fields()
    merged: dict[str, dict[str, Any]] = {}
    for section, content in (file or {}).items():
        merged[section] = dict(_checked_section(section, content, known, where))
    for name, value in (flags or {}).items():
        section, field = known[name]
        merged.setdefault(section, {})[name] = parse_flag(value, field) if isinstance(value, str) else value
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ValueError(one_line(error, flags or {}, where)) from None


def read_file(path: str | Path) -> dict[str, Any]:
    """The content of a JSON or TOML file. Raises ValueError when it is neither."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no config file {path}: write one (see --print-config) or drop --config")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:  # of TOML, JSON, UTF-8, and numbers of thousands of digits
        raise ValueError(f"{path} is not {'TOML' if path.suffix == '.toml' else 'JSON'}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table of sections")
    return content


def parse_flag(text: str, field: FieldInfo) -> Any:
    """A flag's text as the value its field wants: `none`, text as it stands, comma-separated numbers, or JSON."""
    if text.lower() == "none":
        return None
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    wanted = [get_args(each)[0] if get_origin(each) is Annotated else each for each in kinds]
    if str in wanted:
        return text
    if any(get_origin(each) is tuple for each in wanted):
        return [part.strip() for part in text.strip("[]()").split(",") if part.strip()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def one_line(error: ValidationError, flags: Mapping[str, Any], where: str) -> str:
    """The first mistake of a pydantic error, in our words."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    location = [str(part) for part in first["loc"]]
    if len(location) < 2:  # a check over several fields names them itself
        return message + more
    name = location[1]
    origin = (
        f"--{name.replace('_', '-')}"
        if name in flags
        else f"{'.'.join(location[:2])}" + (f" in {where}" if where else "")
    )
    _, field = fields()[name]
    return f"{origin}: got {first['input']!r}; {message[0].lower()}{message[1:]} ({field.description}){more}"


def _checked_section(
    section: str, content: Any, known: Mapping[str, tuple[str, FieldInfo]], where: str
) -> Mapping[str, Any]:
    origin = f" in {where}" if where else ""
    names = [name for name, _ in sections()]
    if section == "deepspeed":
        raise ValueError(
            f"section deepspeed{origin}: what DeepSpeed decides stands in ds_config.json (--ds-config FILE)"
        )
    if section not in names:
        hint = f"it belongs in section {known[section][0]}" if section in known else nearest(section, names)
        raise ValueError(f"unknown section {section!r}{origin}: {hint}")
    if not isinstance(content, Mapping):
        raise ValueError(f"section {section}{origin} holds {content!r}, not a table of fields")
    for name in content:
        if name not in known or known[name][0] != section:
            hint = f"it belongs in section {known[name][0]}" if name in known else nearest(name, list(known))
            raise ValueError(f"unknown key {section}.{name}{origin}: {hint}")
    return content
