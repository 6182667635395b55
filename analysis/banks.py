"""Feature banks: pooled activations of all layers of one state on one split, memory-mapped, made once and reused.

    FOLDER/<digest>/  bank.json  labels.npy  sample_ids.npy  layer-000.npy …   float32 [images, features]

The digest covers weights, data, transform, layers and limit, so an analysis meets only features of its own question.
One pass over the images fills all layers; rows are flushed as they come, and an interrupted extraction goes on where
it stopped. Memory holds one batch, whatever the number of images: 300,000 images of 25 layers are 12 GB on disk.
Transformers with a class token are kept as class token and patch mean side by side; `Bank.layer` gives either or
both.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.results import digest_of
from shards.aside import write_aside
from shards.progress import progress
from train.hooks import HOWS, Layout, Tap, evaluating, layout_of, pool, tapped

BANK_FILE = "bank.json"
FLUSH_BATCHES = 32
EMPTY: dict[str, Any] = {"rows": 0, "consumed": 0, "doubled": [], "complete": False}


@dataclass(frozen=True)
class Bank:
    """Features of n images, in the split's stored order."""

    layers: dict[str, np.ndarray]  # float32[n, d], memory-mapped
    doubled: frozenset[str]  # layers that hold class token and patch mean side by side
    labels: np.ndarray  # int64[n], or float32[n, classes] with NaN for ignored labels
    sample_ids: np.ndarray  # uint64[n]

    def layer(self, name: str, how: str = "auto") -> np.ndarray:
        """float32[n, d] of one layer: "cls", "mean" or "both" where it has both; "auto" is cls.

        Raises:
            ValueError: an unknown pooling.
        """
        if how not in HOWS:
            raise ValueError(f"unknown pooling {how!r}; known: {', '.join(HOWS)}")
        array = self.layers[name]
        if name not in self.doubled or how == "both":
            return array
        half = array.shape[1] // 2
        return array[:, half:] if how == "mean" else array[:, :half]

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return len(self.sample_ids)


def open_bank(
    folder: Path,
    key: Mapping[str, Any],
    model: nn.Module,
    taps: Mapping[str, Tap],
    loader_from: Callable[[int], Iterable[Any]],
    num_images: int,
    *,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    name: str = "features",
    reuse_only: bool = False,
    quiet: bool = False,
    shares: Callable[[], Sequence["Bank"]] | None = None,
) -> Bank:
    """The bank of `key` under `folder`, extracted now where it is not there or not whole.

    `loader_from(consumed)` gives batches (images, labels, sample ids, valid) from that image of the split on; it is
    called only where something is missing, and so is the model, in evaluation mode. Masked images are left out. With
    `shares`, what is missing is joined from the banks that it returns: those of parts of the split, in order.

    Raises ValueError where no image is valid, a layer is never called, a folder holds the bank of something else, or
    `reuse_only` and there is none.
    """
    key = {**key, "layers": list(taps), "images": num_images}
    place = folder / digest_of(key)[:16]
    if reuse_only and not (place / BANK_FILE).is_file():
        raise ValueError(f"{folder} holds no bank of this question: {_difference(folder, key)}; leave --banks out")
    place.mkdir(parents=True, exist_ok=True)
    with _locked(place):
        state = _read_state(place, taps, key)
        if not state["complete"]:
            if shares is not None:
                state = _joined(_Writer(place, key, list(taps), num_images, dict(EMPTY)), shares())
            else:
                writer = _Writer(place, key, list(taps), num_images, state)
                with progress(num_images, name, "image", already=state["consumed"], quiet=quiet) as bar:
                    _fill(writer, model, taps, loader_from, device, autocast, bar)
                state = writer.finish()
    rows = state["rows"]
    layers = {tap: np.load(place / file, mmap_mode="r")[:rows] for tap, file in _files(taps).items()}
    labels, ids = (np.load(place / f"{column}.npy", mmap_mode="r")[:rows] for column in ("labels", "sample_ids"))
    return Bank(layers, frozenset(state["doubled"]), np.array(labels), np.array(ids))


class _Writer:
    """Columns on disk that grow row by row; `state` is what bank.json says."""

    def __init__(
        self, place: Path, key: Mapping[str, Any], names: Sequence[str], num_images: int, state: dict[str, Any]
    ):
        self.place, self.key, self.num_images, self.state = place, dict(key), num_images, state
        self.files = {**_files(names), "labels": "labels.npy", "sample_ids": "sample_ids.npy"}
        self.columns: dict[str, np.memmap] = {}

    def add(self, blocks: Mapping[str, np.ndarray], consumed: int, doubled: Iterable[str]) -> None:
        """Append one batch's valid rows; `consumed` images of the split are behind it."""
        if not self.columns:
            self.state["doubled"] = sorted(doubled)
            self.columns = {column: self._open(column, block) for column, block in blocks.items()}
        first = self.state["rows"]
        for column, block in blocks.items():
            self.columns[column][first : first + len(block)] = block
        self.state.update(rows=first + len(blocks["labels"]), consumed=consumed)

    def _open(self, column: str, block: np.ndarray) -> np.memmap:
        path = self.place / self.files[column]
        if self.state["rows"]:
            return np.lib.format.open_memmap(path, mode="r+")
        (self.place / BANK_FILE).unlink(missing_ok=True)  # it speaks of other rows, those of files that were damaged
        shape = (self.num_images, *block.shape[1:])
        opened = np.lib.format.open_memmap(path, mode="w+", dtype=block.dtype, shape=shape)
        _reserve(path)
        return opened

    def flush(self) -> None:
        """Make what was added durable, then say so."""
        for column in self.columns.values():
            column.flush()
        write_aside(self.place / BANK_FILE, json.dumps({**self.state, "key": self.key}, default=str).encode())

    def finish(self) -> dict[str, Any]:
        """Close the bank. Raises ValueError for one without a row."""
        if not self.state["rows"]:
            raise ValueError("no valid image came out of the loader: is the split empty, or every image damaged?")
        self.state["complete"] = True
        self.flush()
        self.columns = {}
        return self.state


def _joined(writer: _Writer, parts: Sequence[Bank], rows: int = 4096) -> dict[str, Any]:
    """The parts one after the other, `rows` at a time: what one process would have written."""
    for part in parts:
        for start in range(0, part.num_images, rows):
            some = slice(start, start + rows)
            blocks = {tap: array[some] for tap, array in part.layers.items()}
            blocks |= {"labels": part.labels[some], "sample_ids": part.sample_ids[some]}
            writer.add(blocks, writer.num_images, part.doubled)
    return writer.finish()


def _fill(
    writer: _Writer,
    model: nn.Module,
    taps: Mapping[str, Tap],
    loader_from: Callable[[int], Iterable[Any]],
    device: torch.device | str,
    autocast: torch.dtype | None,
    bar: Any,
) -> None:
    layout, consumed, total = layout_of(model), writer.state["consumed"], writer.num_images
    model.to(device)
    kind = torch.device(device).type
    try:
        with evaluating(model), tapped(taps) as outputs, torch.inference_mode():
            for count, (images, labels, ids, valid, *_) in enumerate(loader_from(consumed)):
                room = total - consumed
                keep = valid.cpu().numpy() & (np.arange(len(ids)) < room)
                outputs.clear()
                with torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
                    model(images.to(device))
                pooled, doubled = _pooled(outputs, taps, layout)
                blocks = {tap: array[keep] for tap, array in pooled.items()}
                blocks |= {
                    "labels": labels.cpu().numpy()[keep],
                    "sample_ids": ids.cpu().numpy()[keep].view(np.uint64),
                }
                step = min(len(ids), room)
                consumed += step
                writer.add(blocks, consumed, doubled)
                bar.update(step)
                if consumed >= total:
                    break
                if count % FLUSH_BATCHES == FLUSH_BATCHES - 1:
                    writer.flush()
    except BaseException:
        if writer.columns:
            writer.flush()  # what is there is right: the next call goes on from here
        raise


def _pooled(
    outputs: Mapping[str, torch.Tensor], taps: Mapping[str, Tap], layout: Layout
) -> tuple[dict[str, np.ndarray], list[str]]:
    silent = [tap for tap in taps if tap not in outputs]
    if silent:
        raise ValueError(f"the forward pass never called {', '.join(silent)}: leave these layers out with --layers")
    both = {tap: pool(outputs[tap], "both", layout) for tap in taps}
    doubled = [tap for tap in taps if both[tap].shape[1] == 2 * pool(outputs[tap], "mean", layout).shape[1]]
    return {tap: tensor.float().cpu().numpy() for tap, tensor in both.items()}, doubled


def _files(names: Iterable[str]) -> dict[str, str]:
    return {name: f"layer-{number:03d}.npy" for number, name in enumerate(names)}


def _difference(folder: Path, key: Mapping[str, Any]) -> str:
    """What the bank nearest to `key` differs in."""
    wanted = json.loads(json.dumps(key, default=str))
    found = [json.loads(path.read_text(encoding="utf-8")).get("key", {}) for path in folder.glob(f"*/{BANK_FILE}")]
    odd = [[name for name in wanted if other.get(name) != wanted[name]] for other in found]
    nearest = min(odd, key=len, default=[])
    return f"the nearest is of other {', '.join(nearest)}" if nearest else "there is none"


def _read_state(place: Path, taps: Mapping[str, Tap], key: Mapping[str, Any]) -> dict[str, Any]:
    """What bank.json says, if it and its columns are readable; else the state of an empty bank.

    Raises ValueError where it is the bank of something else: a folder that was renamed or copied.
    """
    try:
        state = json.loads((place / BANK_FILE).read_text(encoding="utf-8"))
        wanted = json.loads(json.dumps(key, default=str))
        odd = [name for name in wanted if state["key"].get(name) != wanted[name]]
        for file in [*_files(taps).values(), "labels.npy", "sample_ids.npy"]:
            if len(np.load(place / file, mmap_mode="r")) < state["rows"]:
                return dict(EMPTY)
        found = {name: state[name] for name in EMPTY}
    except (OSError, ValueError, KeyError, EOFError):
        return dict(EMPTY)
    if odd:
        raise ValueError(f"{place} is a bank of other {', '.join(odd)}: remove that folder, and it is made anew")
    return found


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Two analyses that want one bank: the second waits, then finds it whole."""
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _reserve(path: Path) -> None:
    """Take all of a file's room on the disk now: on a full one, writing into its mapped holes would end us by SIGBUS.

    Raises OSError, with the path, where there is too little.
    """
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
