"""Checkpoints that survive a crash at any moment: written aside, hashed, fsynced, renamed, `latest` moved last.

A checkpoint is a folder `step-00000123`: DeepSpeed's own files (weights, optimizer), `ema.safetensors` where weights
are averaged, and `trainer.json`: our state, the ranks and ZeRO stage that wrote it, size and hash of every file. What
has no whole trainer.json, or a file that does not match, is damaged; the one before it is taken.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from shards.aside import sync_file, sync_folder, write_aside

STATE_FILE = "trainer.json"
LATEST_FILE = "latest"
PART = ".part"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    world: int
    stage: int
    state: dict[str, Any]


def tag_of(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def seal(part: Path, state: Mapping[str, Any], *, world: int, stage: int) -> Path:
    """Turn a folder NAME.part that all ranks have written into the checkpoint NAME; rank 0 alone calls it."""
    final = part.with_name(part.name.removesuffix(PART))
    files = sorted(path for path in part.rglob("*") if path.is_file())
    for path in files:
        sync_file(path)
    listing = {path.relative_to(part).as_posix(): [path.stat().st_size, _digest(path)] for path in files}
    record = {"format": 1, "world": world, "stage": stage, "state": dict(state), "files": listing}
    write_aside(part / STATE_FILE, json.dumps(record).encode())
    part.rename(final)
    sync_folder(final.parent)
    write_aside(final.parent / LATEST_FILE, final.name.encode())
    return final


def fresh(part: Path) -> bool:
    """Clear what an interrupted writer left; False where the checkpoint is there, whole."""
    final = part.with_name(part.name.removesuffix(PART))
    if part.exists():
        shutil.rmtree(part)
    if not final.exists():
        return True
    try:
        read(final)
        return False
    except ValueError:
        shutil.rmtree(final)
        return True


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writers left."""
    for path in _tags(folder)[keep:]:
        shutil.rmtree(path)
    for path in folder.glob(f"*{PART}"):
        shutil.rmtree(path)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint (None without any), and a line about each damaged one that was passed over."""
    damaged: list[str] = []
    for path in _tags(folder):
        try:
            return read(path), damaged
        except ValueError as error:
            damaged.append(str(error))
    return None, damaged


def read(path: Path) -> Checkpoint:
    """Check a checkpoint's files against its trainer.json. Raises ValueError naming what is damaged."""
    try:
        record = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        files = record["files"]
        checkpoint = Checkpoint(path, int(record["world"]), int(record["stage"]), dict(record["state"]))
    except (OSError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"checkpoint {path.name} is damaged: {STATE_FILE}: {error}") from None
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size or _digest(file) != digest:
            raise ValueError(f"checkpoint {path.name} is damaged: {name} is not what was written")
    return checkpoint


def _tags(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.name[5:].isdigit()), reverse=True)


def _digest(path: Path) -> str:
    """xxh3 of a file: against damage, not against an adversary."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            hasher.update(block)
    return hasher.hexdigest()
