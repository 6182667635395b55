"""Both executors against torchvision, given the same parameters, on real and drawn images."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.oracle import by_others, reference
from shards.colours import ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.dali_executor import DaliExecutor, graph
from shards.decoding import decode
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.operators import (
    CenterCrop,
    Erasing,
    HorizontalFlip,
    Normalize,
    Operator,
    RandomCrop,
    Resize,
    Rotate90,
    VerticalFlip,
)
from shards.transforms import PRESETS, Drawn, Transform, eval_transform, train_transform
from shards.warps import Affine, Perspective, Rotation

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
TRANSFORMS = {"train": train_transform(224, MEAN, STD), "eval": eval_transform(224, MEAN, STD)}


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Images with edges, fine texture and smooth colour, of mixed sizes, as JPEG."""
    rng, found = np.random.default_rng(0), []
    for height, width in [(256, 340), (300, 256), (256, 256), (400, 271)]:
        y, x = np.mgrid[:height, :width].astype(np.float32)
        image = np.stack([127 + 90 * np.sin(x / f) * np.cos(y / (f + 3)) for f in (9, 23, 57)], axis=2)
        image[height // 3 : height // 2, width // 4 : width // 2] = rng.uniform(0, 255, 3)
        image += rng.normal(0, 12, image.shape)
        done, data = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
        assert done
        found.append(data.tobytes())
    return found


def drawn(transform: Transform, images: list[bytes]) -> tuple[np.ndarray, Drawn]:
    sizes = np.array([cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape[:2] for data in images])
    zeros = np.zeros(len(images), np.int64)
    keys = DrawKeys(5, zeros, np.arange(len(images), dtype=np.uint64), zeros)
    return sizes, transform.draw(keys, sizes[:, 0], sizes[:, 1])


def by_torchvision(transform: Transform, images: list[bytes], parameters: Drawn) -> torch.Tensor:
    """The drawn parameters through Pillow's decoder and torchvision's functional operators on uint8 tensors."""
    out = []
    for i, data in enumerate(images):
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)
        for _, operator, drawn in parameters.steps:
            image = reference(operator, image, {name: column[i] for name, column in drawn.items()})
        out.append(image)
    return torch.stack(out)


def levels(difference: torch.Tensor) -> np.ndarray:
    """Absolute differences of normalised pixels, in levels of 0..255: [b, C, H, W]."""
    return (difference.abs() * torch.tensor(STD)[:, None, None] * 255).numpy()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_host_equals_torchvision(photographs: list[bytes], name: str) -> None:
    transform = TRANSFORMS[name]
    sizes, parameters = drawn(transform, photographs)
    executor = HostExecutor(transform)
    ours, failures = executor.run(photographs, ["jpeg"] * 4, sizes, parameters)
    executor.close()
    assert not failures
    assert levels(ours - by_torchvision(transform, photographs, parameters)).max() < 1e-3


@pytest.mark.parametrize("name", TRANSFORMS)
def test_dali_is_within_the_parity_bounds(photographs: list[bytes], name: str) -> None:
    transform = TRANSFORMS[name]
    sizes, parameters = drawn(transform, photographs)
    ours, failures = DaliExecutor(transform, batch=4).run(photographs, ["jpeg"] * 4, sizes, parameters)
    assert not failures
    apart = levels(ours - by_torchvision(transform, photographs, parameters))
    assert apart.mean() <= 1 and np.quantile(apart, 0.99) <= 4
    assert apart[:, :, 3:-3, 3:-3].max() <= 2  # DALI rounds its two passes; its border rows weigh differently


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("size", [146, (150, 170), 300])
def test_evaluation_does_not_round_and_executors_agree(bits: int, size: int | tuple[int, int], compiled: bool) -> None:
    """On white noise, where rounding and border rows would show most: torchvision's resize of floats, and DALI's."""
    rng, kind = np.random.default_rng(0), np.uint8 if bits == 8 else np.uint16
    shapes = [(256, 340), (300, 256), (401, 271), (100, 130), (146, 146)]
    images = [rng.integers(0, 2**bits, (*shape, 3)).astype(kind) for shape in shapes]
    raw, names, sizes = [image.tobytes() for image in images], ["raw"] * len(images), np.array(shapes)
    steps = (Resize(size, rounded=False), CenterCrop(128), HorizontalFlip(), VerticalFlip(), Normalize(MEAN, STD))
    transform, zeros = Transform(steps), np.zeros(len(images), np.int64)
    parameters = transform.draw(DrawKeys(5, zeros, np.arange(len(images), dtype=np.uint64), zeros), *sizes.T)
    executor = HostExecutor(transform, bits=bits, compiled=compiled)
    host, none = executor.run(raw, names, sizes, parameters)
    executor.close()
    dali, failures = DaliExecutor(transform, bits=bits, batch=len(images), raw=True).run(raw, names, sizes, parameters)
    assert not none and not failures
    assert levels(host - by_others(images, parameters)).max() < 0.01
    assert levels(host - dali).max() < 0.01
    assert len(graph(transform, bits, True, "gpu")(batch_size=4, num_threads=1, device_id=None).serialize()) > 500


@pytest.mark.parametrize(
    "steps",
    [
        (Resize((140, 150), "bicubic", rounded=False), CenterCrop(128)),
        (Resize(140, rounded=False), HorizontalFlip(), CenterCrop(128)),
        (RandomCrop(200), Resize(140, rounded=False), RandomCrop(128), Rotate90(), VerticalFlip()),
    ],
)
def test_what_else_evaluation_may_be_does_not_round_either(
    photographs: list[bytes], steps: tuple[Operator, ...]
) -> None:
    transform = Transform((*steps, Normalize(MEAN, STD)))
    sizes, parameters = drawn(transform, photographs)
    wanted = by_torchvision(transform, photographs, parameters)
    executor = HostExecutor(transform)
    host, _ = executor.run(photographs, ["jpeg"] * 4, sizes, parameters)
    executor.close()
    dali, _ = DaliExecutor(transform, batch=4).run(photographs, ["jpeg"] * 4, sizes, parameters)
    assert levels(host - wanted).max() < 0.01
    apart = levels(dali - wanted)  # DALI repeats the border's pixel, torch weighs what there is
    assert apart.mean() < 0.01 and np.quantile(apart, 0.9) < 0.05 and apart.max() < 8


def test_floats_are_within_a_level_of_bytes(photographs: list[bytes]) -> None:
    """What evaluation left behind when it ceased to round: torchvision's resize of bytes."""
    made = []
    for rounded in (True, False):
        transform = Transform((Resize(146, rounded=rounded), CenterCrop(128), Normalize(MEAN, STD)))
        made.append(by_torchvision(transform, photographs, drawn(transform, photographs)[1]))
    apart = levels(made[0] - made[1])
    assert 0.2 < apart.mean() < 0.35 and apart.max() < 1.1


@pytest.mark.parametrize("size", [146, (150, 170)])
def test_executors_resize_bytes_within_one_level_on_few_pixels(
    photographs: list[bytes], size: int | tuple[int, int]
) -> None:
    """Torch keeps the weights of its resize of bytes in 16 bits, DALI in floats: near a half they round apart."""
    transform = Transform((Resize(size), CenterCrop(128), Normalize(MEAN, STD)))
    sizes, parameters = drawn(transform, photographs)
    executor = HostExecutor(transform)
    host, _ = executor.run(photographs, ["jpeg"] * 4, sizes, parameters)
    executor.close()
    dali, _ = DaliExecutor(transform, batch=4).run(photographs, ["jpeg"] * 4, sizes, parameters)
    apart = levels(host - dali)
    assert apart.max() <= 1.01 and (apart > 0.5).mean() <= 0.05


def test_real_photographs_agree_too(real_data: Path) -> None:
    paths = sorted((real_data / "isic-cc0").glob("*.jpg"))[:6] or sorted((real_data / "isic-cc0").glob("*.JPG"))[:6]
    images = [path.read_bytes() for path in paths]
    assert len(images) == 6
    for transform in TRANSFORMS.values():
        sizes, parameters = drawn(transform, images)
        wanted = by_torchvision(transform, images, parameters)
        executor = HostExecutor(transform)
        host, _ = executor.run(images, ["jpeg"] * 6, sizes, parameters)
        executor.close()
        dali, _ = DaliExecutor(transform, batch=6).run(images, ["jpeg"] * 6, sizes, parameters)
        assert levels(host - wanted).max() < 1e-3
        apart = levels(dali - wanted)
        assert apart.mean() <= 1 and np.quantile(apart, 0.99) <= 4


def test_decoding_is_pillows_to_the_bit(photographs: list[bytes]) -> None:
    for data in photographs:
        theirs = np.array(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(decode(data, "jpeg", 3, *theirs.shape[:2]), theirs)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_gpu_graph_is_sound_without_a_gpu(bits: int, raw: bool) -> None:
    # Serialising checks every operator and its arguments against DALI's schemas; building alone needs CUDA.
    made = graph(TRANSFORMS["train"], bits, raw, "gpu")(batch_size=4, num_threads=1, device_id=None)
    assert len(made.serialize()) > 1000


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_on_a_gpu_agree_with_the_cpu(photographs: list[bytes], preset: str) -> None:
    transform, images = train_transform(96, MEAN, STD, preset=preset), photographs * 4
    sizes, parameters = drawn(transform, images)
    on_cpu, on_gpu = (
        DaliExecutor(transform, batch=16, device_id=device).run(images, ["jpeg"] * 16, sizes, parameters)[0].cpu()
        for device in (None, 0)
    )
    apart = levels(on_gpu - on_cpu)
    assert apart.mean() <= 1 and np.quantile(apart, 0.99) <= 4


@pytest.mark.gpu
def test_gpu_agrees_with_the_cpu(photographs: list[bytes]) -> None:
    for transform in TRANSFORMS.values():
        sizes, parameters = drawn(transform, photographs)
        on_gpu, _ = DaliExecutor(transform, batch=4, device_id=0).run(photographs, ["jpeg"] * 4, sizes, parameters)
        assert on_gpu.is_cuda
        apart = levels(on_gpu.cpu() - by_torchvision(transform, photographs, parameters))
        assert apart.mean() <= 1 and np.quantile(apart, 0.99) <= 4


SHEARED = {"degrees": (-45, 45), "translate": (0.1, 0.2), "scale": (0.8, 1.2), "shear": (-10, 10, -5, 5)}
SQUASH = Resize((120, 130))
# Each operator alone, with the largest difference of the host from torchvision in levels.
ALONE: dict[str, tuple[tuple[Operator, ...], float]] = {
    "padded centre": ((CenterCrop((330, 250)),), 0),
    "padded crop": ((RandomCrop((200, 210), 16),), 0),
    "quarter turns": ((Resize((128, 128)), Rotate90()), 0),
    "rotation": ((SQUASH, Rotation(degrees=(-45, 45), interpolation="bilinear")), 1),
    "affine": ((SQUASH, Affine(interpolation="bilinear", **SHEARED)), 1),
    "perspective": ((SQUASH, Perspective(1.0)), 1),
    "brightness": ((SQUASH, ColorJitter(brightness=0.4)), 0),
    "contrast": ((SQUASH, ColorJitter(contrast=0.4)), 1),
    "saturation": ((SQUASH, ColorJitter(saturation=0.4)), 1),
    "hue": ((SQUASH, ColorJitter(hue=0.5)), 1),
    "grayscale": ((SQUASH, Grayscale(0.7)), 1),
    "blur": ((SQUASH, GaussianBlur()), 1),
    "solarize": ((SQUASH, Solarize(1.0)), 0),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_operator_is_torchvisions(photographs: list[bytes], name: str) -> None:
    operators, bound = ALONE[name]
    transform = Transform((*operators, Normalize(MEAN, STD)))
    sizes, parameters = drawn(transform, photographs)
    wanted = by_torchvision(transform, photographs, parameters)
    executor = HostExecutor(transform)
    host, failures = executor.run(photographs, ["jpeg"] * 4, sizes, parameters)
    executor.close()
    assert not failures and levels(host - wanted).max() <= bound + 1e-3
    assert levels(host - wanted).mean() <= 1 and np.quantile(levels(host - wanted), 0.99) <= 4
    dali, failures = DaliExecutor(transform, batch=4).run(photographs, ["jpeg"] * 4, sizes, parameters)
    apart = levels(dali - wanted)
    assert not failures and apart.mean() <= 1 and np.quantile(apart, 0.99) <= 4
    assert len(graph(transform, 8, False, "gpu")(batch_size=4, num_threads=1, device_id=None).serialize()) > 500


@pytest.mark.parametrize("operator", [Rotation(degrees=(-45, 45)), Affine(**SHEARED), Perspective(1.0, 0.5, "nearest")])
def test_nearest_warps_take_torchvisions_pixels_but_for_ties(photographs: list[bytes], operator: Operator) -> None:
    transform = Transform((SQUASH, operator, Normalize(MEAN, STD)))
    sizes, parameters = drawn(transform, photographs)
    executor = HostExecutor(transform)
    host, _ = executor.run(photographs, ["jpeg"] * 4, sizes, parameters)
    executor.close()
    dali, _ = DaliExecutor(transform, batch=4).run(photographs, ["jpeg"] * 4, sizes, parameters)
    wanted = by_torchvision(transform, photographs, parameters)
    assert (levels(host - wanted) > 1.01).mean() < 1e-3
    assert (levels(dali - wanted) > 1.01).mean() < 2e-3  # its coordinates are float32, and round the other way at times


@pytest.mark.parametrize("preset", ["full", "study"])
def test_presets_and_erasing_agree(photographs: list[bytes], preset: str) -> None:
    transform = Transform((*train_transform(96, MEAN, STD, preset=preset).operators, Erasing(0.7)))
    images = photographs * 4
    sizes, parameters = drawn(transform, images)
    wanted = by_torchvision(transform, images, parameters)
    executor = HostExecutor(transform)
    host, _ = executor.run(images, ["jpeg"] * 16, sizes, parameters)
    executor.close()
    dali, _ = DaliExecutor(transform, batch=16).run(images, ["jpeg"] * 16, sizes, parameters)
    assert levels(host - wanted).mean() <= 0.2 and np.quantile(levels(host - wanted), 0.99) <= 4
    assert levels(dali - wanted).mean() <= 1 and np.quantile(levels(dali - wanted), 0.99) <= 4
