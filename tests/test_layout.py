"""Batches as float16 and channels-last hold the numbers of float32 planes, from either executor, at 8 and 16 bits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shards.dali_executor import DaliExecutor
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.layout import Layout
from shards.loader import Loader
from shards.operators import Erasing, HorizontalFlip, Normalize, RandomResizedCrop
from shards.shardset import ShardSet
from shards.transforms import Transform, train_transform

COUNT = 5


def executed(executor: str, channels: int, bits: int, layout: Layout) -> torch.Tensor:
    rng, kind = np.random.default_rng(0), np.uint8 if bits == 8 else np.uint16
    sizes = np.array([[40, 50 + i] for i in range(COUNT)])
    images = [rng.integers(0, 2**bits, (*size, channels)).astype(kind).tobytes() for size in sizes]
    steps = (RandomResizedCrop((24, 20)), HorizontalFlip(), Normalize((0.4,) * channels, (0.3,) * channels), Erasing())
    zeros = np.zeros(COUNT, np.int64)
    transform = Transform(steps)
    drawn = transform.draw(DrawKeys(1, zeros, np.arange(COUNT, dtype=np.uint64), zeros), *sizes.T)
    if executor == "host":
        made = HostExecutor(transform, bits=bits, layout=layout)
    else:
        made = DaliExecutor(transform, bits=bits, batch=COUNT, raw=True, layout=layout)  # type: ignore[assignment]
    pixels, failures = made.run(images, ["raw"] * COUNT, sizes, drawn)
    made.close()
    assert not failures
    return pixels


@pytest.mark.parametrize("executor", ["host", "dali"])
@pytest.mark.parametrize(("channels", "bits"), [(3, 8), (1, 8), (3, 16), (1, 16)])
def test_layouts_hold_the_same_numbers(executor: str, channels: int, bits: int) -> None:
    plain = executed(executor, channels, bits, Layout())
    assert plain.shape == (COUNT, channels, 24, 20) and plain.dtype == torch.float32 and plain.is_contiguous()
    for layout in (Layout("float16"), Layout("float32", True), Layout("float16", True)):
        found = executed(executor, channels, bits, layout)
        assert found.shape == plain.shape and found.dtype == layout.torch_type
        memory = torch.channels_last if layout.channels_last else torch.contiguous_format
        assert found.is_contiguous(memory_format=memory)
        assert torch.equal(found, plain.to(found.dtype))


@pytest.mark.parametrize("executor", ["host", "dali"])
def test_the_loader_hands_them_out(tiny_set: Path, executor: str) -> None:
    shards = ShardSet(tiny_set)
    transform = train_transform(32, shards.manifest.mean, shards.manifest.std)
    loader = Loader(
        shards.split("train"), transform, global_batch=4, executor=executor, dtype="float16", channels_last=True
    )  # type: ignore[arg-type]
    images = next(iter(loader)).images
    loader.close()
    assert images.dtype == torch.float16 and images.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="unknown dtype 'int8' of a batch; known: float32, float16"):
        Loader(shards.split("train"), transform, global_batch=4, dtype="int8")  # type: ignore[arg-type]
