"""Which executor makes the pixels: DALI where a GPU is, the host elsewhere, or the one that was asked for."""

from importlib import metadata
from typing import Any, Literal

import torch

from shards.host_executor import HostExecutor
from shards.host_operators import refuse_bits
from shards.host_views import HostViews
from shards.joined import JoinedSplit
from shards.layout import Layout
from shards.manifest import Manifest
from shards.split import Split
from shards.views import AnyTransform, Views

CPU = torch.device("cpu")


def choose_executor(executor: Literal["auto", "dali", "host"], device: torch.device) -> Literal["dali", "host"]:
    """The executor that `auto` means on a device. ValueError for unknown names, and where DALI is not installed."""
    if executor not in ("auto", "dali", "host"):
        raise ValueError(f"unknown executor '{executor}'; known: auto, dali, host")
    if executor == "host" or (executor == "auto" and device.type != "cuda"):
        return "host"
    if not any(name.startswith("nvidia-dali-cuda") for name in _distributions()):
        raise ValueError(
            "executor dali: NVIDIA DALI is not installed; install the extra cuda13 or cuda12 (both run without a GPU), "
            "or take --executor host"
        )
    return "dali"


def _distributions() -> list[str]:
    return [each.name for each in metadata.distributions() if each.name]


def check_images(transform: AnyTransform, manifest: Manifest) -> None:
    """ValueError where a transform is not of a set's images: they have other channels, or bits it is not defined on."""
    if transform.stored_channels != manifest.channels:
        raise ValueError(
            f"the transform normalises {transform.stored_channels} channels, the images of {manifest.name} have "
            f"{manifest.channels}: give a mean and a std for each"
        )
    refuse_bits(transform.operators, manifest.bits)


def make_executor(
    name: Literal["dali", "host"],
    split: Split | JoinedSplit,
    transform: AnyTransform,
    *,
    batch: int,
    threads: int = 2,
    device: torch.device = CPU,
    layout: Layout = Layout(),  # noqa: B008
) -> Any:
    """An executor for the images of a split, of at most `batch` at a time; close it at the end."""
    bits = split.manifest.bits
    if name == "host":
        kind: Any = HostViews if isinstance(transform, Views) else HostExecutor
        return kind(transform, bits=bits, threads=threads, layout=layout)
    from shards.dali_executor import DaliExecutor  # takes a second to import, and only this executor needs it

    device_id = (device.index or 0) if device.type == "cuda" else None
    raw = split.manifest.encoding == "raw"
    return DaliExecutor(transform, bits=bits, threads=threads, batch=batch, device_id=device_id, raw=raw, layout=layout)
