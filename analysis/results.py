"""What an analysis leaves behind: strict JSON that says what was asked and of what, and a figure beside it.

A result opens with its `request`: digests of weights and data, and every option that bears on the numbers. The same
request again is already answered; any other one is worked out anew.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from shards.aside import write_aside

FORMAT = 1


def digest_of_state(state: Mapping[str, Tensor]) -> str:
    """xxh3-128 hex of names, types, shapes and bytes of a state dict, whatever its order."""
    hasher = xxhash.xxh3_128()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return hasher.hexdigest()


def digest_of(value: Mapping[str, Any]) -> str:
    """xxh3-128 hex of a JSON value, keys sorted."""
    return xxhash.xxh3_128_hexdigest(json.dumps(plain(value), sort_keys=True).encode())


def find_result(folder: Path, name: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result NAME.json of the folder if it answers exactly this request, else None."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    found = read_result(path)
    return found if found.get("request") == json.loads(json.dumps(plain(request))) else None


def read_result(path: Path) -> dict[str, Any]:
    """A result, null for what was not finite. Raises ValueError where the file is no result of this release."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and run the analysis again") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{path} is no result of this release: run the analysis again with --force")
    return found


def write_result(folder: Path, name: str, request: Mapping[str, Any], values: Mapping[str, Any], figure: str) -> Path:
    """Write NAME.json (numbers unrounded, what is not finite as null) and NAME.svg, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, "analysis": name, "request": request, **values}
    path = folder / f"{name}.json"
    write_aside(folder / f"{name}.svg", figure.encode())
    write_aside(path, (json.dumps(plain(content), allow_nan=False, indent=1) + "\n").encode())
    return path


def as_float(value: float | None) -> float:
    """A number of a result: NaN for null."""
    return math.nan if value is None else float(value)


def plain(value: Any) -> Any:
    """JSON's own types: arrays as lists, tuples as lists, NaN and infinity as null."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value
