"""How the pixels of a batch lie in memory: their number type, and channels first or last."""

from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from shards.operators import Size, require

DTYPES: dict[str, tuple[Any, torch.dtype]] = {
    "float32": (np.float32, torch.float32),
    "float16": (np.float16, torch.float16),
}


class Layout(NamedTuple):
    """Of a batch [b, C, H, W]; channels_last is torch's memory format: the same shape, stored as [b, H, W, C]."""

    dtype: Literal["float32", "float16"] = "float32"
    channels_last: bool = False

    @property
    def numpy_type(self) -> Any:
        """The number type in numpy."""
        return DTYPES[self.dtype][0]

    @property
    def torch_type(self) -> torch.dtype:
        """The number type in torch."""
        return DTYPES[self.dtype][1]

    def stored(self, count: int, channels: int, size: Size) -> tuple[int, ...]:
        """The shape in memory of `count` images."""
        return (count, *size, channels) if self.channels_last else (count, channels, *size)

    def planes(self, stored: Any) -> Any:
        """The view [b, C, H, W] of an array or tensor that lies as `stored` says."""
        if not self.channels_last:
            return stored
        return stored.permute(0, 3, 1, 2) if isinstance(stored, torch.Tensor) else stored.transpose(0, 3, 1, 2)

    def zeros(self, count: int, channels: int, size: Size, device: torch.device) -> torch.Tensor:
        """A batch of zeros [b, C, H, W]."""
        return self.planes(torch.zeros(self.stored(count, channels, size), dtype=self.torch_type, device=device))


def layout_of(dtype: str, channels_last: bool) -> Layout:
    """A layout. ValueError for an unknown number type."""
    require(dtype in DTYPES, f"unknown dtype {dtype!r} of a batch; known: {', '.join(DTYPES)}")
    return Layout(dtype, channels_last)  # type: ignore[arg-type]
