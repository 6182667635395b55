"""What the DALI graph makes of colour jitter: its places for every order, its hue, its flips within the resize."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from shards.colours import JITTER_STEPS, ColorJitter, Solarize
from shards.dali_colours import WORD, jitter_columns
from shards.dali_executor import DaliExecutor, graph
from shards.dali_graph import flips_behind
from shards.draws import DrawKeys
from shards.operators import CenterCrop, HorizontalFlip, Normalize, Operator, RandomResizedCrop, VerticalFlip
from shards.transforms import Drawn, Transform

ORDERS = np.array(list(permutations(range(4))))
LEVELS = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("used", [used for n in range(1, 5) for used in combinations(JITTER_STEPS, n)])
def test_places_hold_every_order_once(used: tuple[str, ...]) -> None:
    operator = ColorJitter(**dict.fromkeys(used, 0.2))
    active = np.arange(len(ORDERS)) != 5
    ones = np.ones(len(ORDERS))
    fed = jitter_columns(operator, {"active": active, "order": ORDERS} | dict.fromkeys(JITTER_STEPS, ones))
    for row, order in enumerate(ORDERS):
        places = sorted(
            (int(key.split("-")[0]), key) for key, column in fed.items() if key[0].isdigit() and column[row]
        )
        before = [key.split("-")[1] for place, key in places if place < len(WORD)]
        after = [key.split("-")[1] for place, key in places if place >= len(WORD)]
        shift = ["hue"] if "hue" in used else []
        wanted = [JITTER_STEPS[n] for n in order if JITTER_STEPS[n] in used] if active[row] else shift
        assert [*before, *shift, *after] == wanted


def colours(bits: int) -> np.ndarray:
    """[h, w, 3]: greys, pure colours, ties of two channels, and a grid of all others."""
    grid = np.stack(np.meshgrid(*[np.linspace(0, 2**bits - 1, 17)] * 3, indexing="ij"), -1).reshape(17, 289, 3)
    return grid.astype(np.uint8 if bits == 8 else np.uint16)


@pytest.mark.parametrize("bits", [8, 16])
def test_hue_is_torchvisions_for_all_colours_and_shifts(bits: int) -> None:
    turns = np.concatenate([np.arange(-6, 7) / 12, np.linspace(-0.49, 0.49, 11), [1e-6, -1e-6]])
    count, image = len(turns), colours(bits)
    operator = ColorJitter(hue=0.5)
    fixed = {name: np.ones(count) for name in JITTER_STEPS[:3]}
    params = {"active": np.ones(count, bool), "order": np.zeros((count, 1), int) + np.arange(4), "hue": turns} | fixed
    transform = Transform((CenterCrop(image.shape[:2]), operator, LEVELS))
    whole = {"window": np.array([[0, 0, *image.shape[:2]]] * count)}
    steps = zip(transform.names, transform.operators, (whole, params, {}), strict=True)
    drawn = Drawn(list(steps))
    sizes = np.array([image.shape[:2]] * count)
    executor = DaliExecutor(transform, bits=bits, batch=count, raw=True)
    made, failures = executor.run([image.tobytes()] * count, ["raw"] * count, sizes, drawn)
    executor.close()
    assert not failures
    planes = torch.from_numpy(image.astype(np.float64) / (2**bits - 1)).permute(2, 0, 1)
    if bits == 8:
        planes = torch.from_numpy(image).permute(2, 0, 1)
    wanted = torch.stack([functional.adjust_hue(planes, float(turn)) for turn in turns]).double()
    apart = (made.double() * 255 - wanted * (1 if bits == 8 else 255)).abs()
    assert apart.max() <= (1.001 if bits == 8 else 0.02)
    assert apart.mean() <= (0.1 if bits == 8 else 0.01)


@pytest.mark.parametrize(
    ("behind", "within"),
    [
        ((HorizontalFlip(), VerticalFlip()), 2),
        ((VerticalFlip(),), 1),
        ((HorizontalFlip(), HorizontalFlip(), VerticalFlip()), 1),
        ((Solarize(), HorizontalFlip()), 0),
    ],
)
def test_flips_at_once_behind_a_crop_are_part_of_its_resize(behind: tuple[Operator, ...], within: int) -> None:
    """Given the same parameters, the pixels are those of the crop, flipped: to a level, where a sum lies at a half."""
    crop, count = RandomResizedCrop(96), 12
    image = np.random.default_rng(0).integers(0, 256, (150, 170, 3)).astype(np.uint8)
    sizes = np.array([image.shape[:2]] * count)
    keys = DrawKeys(3, np.zeros(count, np.int64), np.arange(count, dtype=np.uint64), np.zeros(count, np.int64))
    made = []
    for operators in ((crop, *behind, LEVELS), (crop, LEVELS)):
        transform = Transform(operators)
        steps = list(zip(transform.names, transform.operators, strict=True))
        drawn = transform.draw(keys, *sizes.T)
        if len(operators) > 2:
            assert len(flips_behind(steps, 0)) == within
            flips = drawn.steps[1 : 1 + len(behind)]
        executor = DaliExecutor(transform, batch=count, raw=True)
        made.append(executor.run([image.tobytes()] * count, ["raw"] * count, sizes, drawn)[0] * 255)
        executor.close()
    wanted = made[1]
    if within:
        for _, operator, values in flips:
            axis = 3 if isinstance(operator, HorizontalFlip) else 2
            for i in np.flatnonzero(values["active"]):
                wanted[i] = wanted[i].flip(axis - 1)
        apart = (made[0] - wanted).abs()
        assert apart.max() <= 1.001 and (apart > 0.5).float().mean() < 0.01
        assert all(values["active"].any() and not values["active"].all() for _, _, values in flips)


def test_colours_and_flips_serialize_for_a_gpu() -> None:
    jitter = ColorJitter(brightness=0.2, contrast=0.2, saturation=0.1, hue=0.1)
    transform = Transform((RandomResizedCrop(64), HorizontalFlip(), VerticalFlip(), jitter, LEVELS))
    for bits in (8, 16):
        made = graph(transform, bits, True, "gpu")(batch_size=2, num_threads=1, device_id=None)
        assert len(made.serialize()) > 1000
