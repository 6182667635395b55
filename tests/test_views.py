"""MultiCrop: each view is torchvision's crop of the image, drawn for itself; broken samples are masked in all views."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from shards.dali_executor import DaliExecutor, graph
from shards.draws import DrawKeys
from shards.host_views import HostViews
from shards.loader import Loader
from shards.operators import HorizontalFlip, Normalize, RandomCrop, RandomResizedCrop, Resize
from shards.shardset import ShardSet
from shards.transforms import Transform, one_view, transform_of
from shards.views import MultiCrop, Views

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
CROP = MultiCrop((2, 3), (40, (24, 28)), ((0.4, 1.0), (0.05, 0.4)))
VIEWS = Views((Resize((90, 100)), CROP, HorizontalFlip(), Normalize(MEAN, STD)))
COUNT = 6


def images() -> tuple[list[bytes], np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = np.array([[80 + 7 * i, 120 - 5 * i] for i in range(COUNT)])
    y, x = np.mgrid[:200, :200]
    waves = np.stack([127 + 100 * np.sin(x / f) * np.cos(y / (f + 4)) for f in (7, 13, 29)], axis=2)
    return [(waves[:h, :w] + rng.uniform(-20, 20)).astype(np.uint8).tobytes() for h, w in sizes], sizes


def keys(count: int) -> DrawKeys:
    zeros = np.zeros(count, np.int64)
    return DrawKeys(5, zeros, np.arange(count, dtype=np.uint64), zeros)


def by_torchvision(raw: bytes, size: np.ndarray, row: int, drawn: Any) -> list[torch.Tensor]:
    image = torch.from_numpy(np.frombuffer(raw, np.uint8).reshape(*size, 3).copy()).permute(2, 0, 1)
    image, out = functional.resize(image, [90, 100]), []
    for view in drawn.views:
        crop, flip = view["RandomResizedCrop"], view["HorizontalFlip"]["active"][row]
        top, left, height, width = crop["window"][row].tolist()
        made = functional.resized_crop(
            image, top, left, height, width, crop["size"][row].tolist(), InterpolationMode.BICUBIC
        )
        made = functional.horizontal_flip(made) if flip else made
        out.append(functional.normalize(functional.to_dtype(made, torch.float32, scale=True), list(MEAN), list(STD)))
    return out


@pytest.mark.parametrize("executor", ["host", "dali"])
def test_views_are_torchvisions(executor: str) -> None:
    encoded, sizes = images()
    drawn = VIEWS.draw(keys(COUNT), *sizes.T)
    made: Any = HostViews(VIEWS) if executor == "host" else DaliExecutor(VIEWS, batch=COUNT, raw=True)
    views, failures = made.run(encoded, ["raw"] * COUNT, sizes, drawn)
    made.close()
    assert not failures
    assert [tuple(view.shape) for view in views] == [(COUNT, 3, 40, 40)] * 2 + [(COUNT, 3, 24, 28)] * 3
    scale = torch.tensor(STD)[:, None, None] * 255
    for i in range(COUNT):
        for mine, theirs in zip(views, by_torchvision(encoded[i], sizes[i], i, drawn), strict=True):
            apart = (mine[i] - theirs).abs() * scale
            if executor == "host":
                assert apart.max() < 1e-3
            assert apart.mean() <= 1 and apart.quantile(0.99) <= 4


def test_views_are_drawn_apart_and_more_of_them_move_none() -> None:
    sizes = np.full(50, 80)
    drawn = VIEWS.draw(keys(50), sizes, sizes)
    windows = np.stack([view["RandomResizedCrop"]["window"] for view in drawn.views])
    assert len(np.unique(windows.reshape(-1, 4), axis=0)) > 200
    flips = np.stack([view["HorizontalFlip"]["active"] for view in drawn.views])
    assert abs(np.corrcoef(flips)[np.triu_indices(5, 1)]).max() < 0.5
    fewer = Views((Resize((90, 100)), MultiCrop((2,), (40,), ((0.4, 1.0),)), HorizontalFlip(), Normalize(MEAN, STD)))
    for mine, theirs in zip(fewer.draw(keys(50), sizes, sizes).views, drawn.views[:2], strict=True):
        np.testing.assert_array_equal(mine["RandomResizedCrop"]["window"], theirs["RandomResizedCrop"]["window"])
    # The first view draws what a plain crop would.
    plain = Transform((RandomResizedCrop(40, (0.4, 1.0), interpolation="bicubic"), Normalize(MEAN, STD)))
    np.testing.assert_array_equal(
        plain.draw(keys(50), np.full(50, 90), np.full(50, 100))["RandomResizedCrop"]["window"], windows[0]
    )


def test_the_gpu_graph_of_views_is_sound() -> None:
    for bits, raw in ((8, False), (16, True)):
        made = graph(VIEWS, bits, raw, "gpu")(batch_size=2, num_threads=1, device_id=None)
        assert len(made.serialize()) > 1000


@pytest.mark.parametrize("executor", ["host", "dali"])
def test_the_loader_takes_them_and_masks_a_bad_sample_in_all(tiny_set: Path, tmp_path: Path, executor: str) -> None:
    folder = shutil.copytree(tiny_set, tmp_path / "set")
    tar = folder / "train-000000.tar"
    data = bytearray(tar.read_bytes())
    place = data.find(b"\xff\xd8\xff", 4096)  # the second image or a later one
    data[place : place + 40] = bytes(40)
    tar.write_bytes(bytes(data))
    shards = ShardSet(folder)
    steps = [{"op": "MultiCrop", "counts": [1, 2], "sizes": [32, 16], "scales": [[0.4, 1], [0.05, 0.4]]}]
    transform = transform_of(steps, shards.manifest.mean, shards.manifest.std)
    loader = Loader(shards.split("train"), transform, global_batch=60, executor=executor)  # type: ignore[arg-type]
    batch = next(iter(loader))
    loader.close()
    assert [tuple(view.shape[2:]) for view in batch.views] == [(32, 32), (16, 16), (16, 16)]
    assert batch.valid.sum() == 59 and len(loader.bad) == 1
    for view in batch.views:
        assert not view[~batch.valid].any() and all(image.any() for image in view[batch.valid])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiCrop((2, 6), (224,)), "2 counts, 1 sizes, 2 scales; give as many of each"),
        (lambda: MultiCrop((0, 6)), "counts is (0, 6); give whole numbers from 1, 64 views at most"),
        (lambda: MultiCrop((2, 6), (224, 0)), "MultiCrop: size is 0; give one or two whole numbers"),
        (lambda: MultiCrop(scales=((0.4, 1.0), (0.4, 0.05))), "scale is (0.4, 0.05); give two ascending numbers"),
        (lambda: MultiCrop(interpolation="cubic"), "interpolation is 'cubic'; known: bilinear, bicubic"),  # type: ignore[arg-type]
        (lambda: Views((CROP, CROP, Normalize())), "give one MultiCrop, not 2"),
        (lambda: Views((RandomResizedCrop(), CROP, Normalize())), "takes the place of RandomResizedCrop"),
        (lambda: Views((CROP, RandomCrop(100), Normalize())), "the crop 100 x 100 is larger than the image"),
        (lambda: one_view(VIEWS), "evaluation takes one view of an image"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)
