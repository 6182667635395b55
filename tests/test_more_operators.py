"""Gamma, CLAHE, stains and policies in both executors against those that others made, given the same draws."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from benchmarks.oracle import by_others
from shards import policies
from shards.chain import Drawn, Transform
from shards.colours import ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.dali_executor import DaliExecutor, graph
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.levels import Clahe, Gamma
from shards.operators import CenterCrop, HorizontalFlip, Normalize, Operator, RandomResizedCrop, Resize, Rotate90
from shards.policies import OPERATIONS, RandAugment, TrivialAugment
from shards.stains import RGB_FROM_HED, StainJitter
from shards.warps import Affine, Perspective, Rotation

SIDE = 96
COUNT = 12


def pictures(channels: int, bits: int) -> list[np.ndarray]:
    """Waves, an edge, a flat patch and noise, [h, w, C] of bytes or of 16 bits."""
    rng, found = np.random.default_rng(3), []
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    for i in range(COUNT):
        waves = [120 + 85 * np.sin(x / f + i) * np.cos(y / (f + 3)) for f in (9, 23, 41)[:channels]]
        image = np.stack(waves, axis=2)
        image[20:40, 30:70] = rng.uniform(0, 255, channels)
        image += rng.normal(0, 9, image.shape)
        share = np.clip(image, 0, 255) / 255
        found.append(np.rint(share * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16))
    return found


def tissue(bits: int = 8) -> list[np.ndarray]:
    """Pictures of haematoxylin and eosin alone, whose densities no noise takes below zero."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    found = []
    for i in range(COUNT):
        amounts = [0.5 + 0.4 * np.sin(x / (7 + i)), 0.4 + 0.3 * np.cos(y / 11), 0.15 + 0.1 * np.sin(x / 5 + y / 9)]
        density = np.stack(amounts, axis=2) + rng.uniform(0, 0.05, (SIDE, SIDE, 3))
        levels = np.rint((2**bits - 1) * np.exp(-density @ RGB_FROM_HED))
        found.append(levels.astype(np.uint8 if bits == 8 else np.uint16))
    return found


def through(
    operators: tuple[Operator, ...], images: list[np.ndarray]
) -> tuple[Drawn, dict[str, np.ndarray], np.ndarray]:
    """What was drawn, what each executor made, and the others: levels of 255, [b, C, H, W]."""
    channels, bits = images[0].shape[2], 8 * images[0].dtype.itemsize
    transform = Transform((*operators, Normalize((0.0,) * channels, (1.0,) * channels)))
    sizes = np.array([image.shape[:2] for image in images])
    zeros = np.zeros(len(images), np.int64)
    drawn = transform.draw(DrawKeys(7, zeros, np.arange(len(images), dtype=np.uint64), zeros), *sizes.T)
    raw, made = [image.astype(image.dtype.newbyteorder("<")).tobytes() for image in images], {}
    for name in ("host", "dali"):
        executor: Any = (
            HostExecutor(transform, bits=bits)
            if name == "host"
            else DaliExecutor(transform, bits=bits, batch=len(images), raw=True)
        )
        pixels, failures = executor.run(raw, ["raw"] * len(images), sizes, drawn)
        executor.close()
        assert not failures
        made[name] = 255 * pixels.numpy()
    assert len(graph(transform, bits, True, "gpu")(batch_size=4, num_threads=1, device_id=None).serialize()) > 300
    return drawn, made, 255 * by_others(images, drawn).numpy()


EIGHT: dict[str, tuple[tuple[Operator, ...], float]] = {  # with the largest difference of the host
    "gamma": ((Gamma(),), 0),
    "clahe": ((Clahe(1.0),), 2),
    "trivial": ((TrivialAugment(interpolation="bilinear"),), 1),
}


@pytest.mark.parametrize("channels", [3, 1])
def test_policies_in_pairs(channels: int) -> None:
    # Posterize makes 8 or 16 levels of a difference of one.
    _, made, wanted = through((CenterCrop(SIDE), RandAugment(interpolation="bilinear")), pictures(channels, 8) * 2)
    host, dali = (np.abs(made[name] - wanted) for name in ("host", "dali"))
    assert host.mean() <= 0.2 and np.quantile(host, 0.99) <= 1
    assert dali.mean() <= 0.5 and np.quantile(dali, 0.99) <= 4


@pytest.mark.parametrize("channels", [3, 1])
def test_equalize_spares_the_highest_level_in_both(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures half black, half white, of one level, and of so few others that Pillow leaves them."""
    monkeypatch.setattr(policies, "below", lambda u, limit: np.full(np.shape(u), OPERATIONS.index("Equalize")))
    images = pictures(channels, 8)
    images[0][:50], images[1][:50], images[2][:], images[3][:-1] = 0, 255, 77, 255
    _, made, wanted = through((CenterCrop(SIDE), RandAugment(1)), images)
    assert np.abs(made["host"] - wanted).max() <= 1e-3
    assert np.abs(made["dali"] - wanted).max() <= 1.01
    assert np.abs(wanted[0] - images[0].transpose(2, 0, 1)).max() > 9


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", EIGHT)
def test_operators_on_bytes(name: str, channels: int) -> None:
    operators, bound = EIGHT[name]
    _, made, wanted = through((CenterCrop(SIDE), *operators), pictures(channels, 8) * 2)
    assert np.abs(made["host"] - wanted).max() <= bound + 1e-3
    for pixels in made.values():
        apart = np.abs(pixels - wanted)
        assert apart.mean() <= 1 and np.quantile(apart, 0.99) <= 4


DEEP: dict[str, tuple[tuple[Operator, ...], float]] = {  # with both executors' largest difference, levels of 255
    "gamma": ((Gamma(),), 0.02),
    "jitter": ((ColorJitter(1.0, 0.3, 0.3, 0.3, 0.2),), 0.1),
    "gray": ((Grayscale(1.0),), 0.02),
    "solarize": ((Solarize(1.0),), 0.02),
    "blur": ((GaussianBlur(1.0, 9),), 0.02),
    "flips and turns": ((HorizontalFlip(), Rotate90()), 0.01),
    "bicubic": ((RandomResizedCrop(48, interpolation="bicubic"),), np.inf),
    "bilinear": ((Resize((60, 64)),), np.inf),
    "warps": ((Rotation(interpolation="bilinear"), Affine(scale=(0.8, 1.2), interpolation="bilinear")), np.inf),
    "perspective": ((Perspective(1.0),), np.inf),
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", DEEP)
def test_operators_on_sixteen_bits(name: str, channels: int) -> None:
    operators, bound = DEEP[name]
    _, made, wanted = through((CenterCrop(SIDE), *operators), pictures(channels, 16)[:6])
    for pixels in made.values():
        apart = np.abs(pixels - wanted)
        assert apart.mean() <= 0.5 and np.quantile(apart, 0.99) <= 2 and apart.max() <= bound


def test_what_has_no_meaning_on_sixteen_bits_or_one_channel_is_refused() -> None:
    transform = Transform((CenterCrop(8), Clahe(), TrivialAugment(), Normalize()))
    for make in (HostExecutor, lambda t, bits: DaliExecutor(t, bits=bits, batch=1)):
        with pytest.raises(ValueError, match="Clahe, TrivialAugment work on 8-bit images, these have 16 bits: leave"):
            make(transform, bits=16)  # type: ignore[operator]
    with pytest.raises(ValueError, match="StainJitter wants colour images: leave it out for one channel"):
        Transform((CenterCrop(8), StainJitter(), Normalize()))


@pytest.mark.parametrize("bits", [8, 16])
def test_stains_are_scikit_images(bits: int) -> None:
    images = tissue(bits)
    drawn, made, wanted = through((CenterCrop(SIDE), StainJitter(1.0, 0.1, 0.1)), images)
    for pixels in made.values():
        apart = np.abs(pixels - wanted)
        assert np.quantile(apart, 0.999) <= (1.01 if bits == 8 else 0.05)
    alpha, beta = drawn["StainJitter"]["alpha"].ravel(), drawn["StainJitter"]["beta"].ravel()
    assert abs(alpha - 1).max() <= 0.1 and abs(beta).max() <= 0.1 and alpha.std() > 0.03 and beta.std() > 0.03


def test_no_draw_is_the_image_itself() -> None:
    _, made, _ = through((CenterCrop(SIDE), StainJitter(1.0, 0.0, 0.0)), pictures(3, 8)[:4])
    for pixels in made.values():
        assert np.abs(pixels - np.stack(pictures(3, 8)[:4]).transpose(0, 3, 1, 2)).max() <= 1.01


def keys(count: int) -> DrawKeys:
    zeros = np.zeros(count, np.int64)
    return DrawKeys(0, zeros, np.arange(count, dtype=np.uint64), zeros)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(TrivialAugment(), v2.TrivialAugmentWide()), (RandAugment(1, 9), v2.RandAugment(1, 9))],
    ids=["trivial", "random"],
)
def test_policies_draw_as_torchvisions(monkeypatch: pytest.MonkeyPatch, ours: Any, theirs: Any) -> None:
    told: list[tuple[str, float]] = []

    def note(image: Any, name: str, magnitude: float, **_: Any) -> Any:
        told.append((name, magnitude))
        return image

    monkeypatch.setattr(theirs, "_apply_image_or_video_transform", note)
    count, image = 6000, torch.zeros(3, 40, 60, dtype=torch.uint8)
    torch.manual_seed(0)
    for _ in range(count):
        theirs(image)
    transform = Transform((CenterCrop((40, 60)), ours, Normalize()))
    mine = transform.draw(keys(count), np.full(count, 40), np.full(count, 60))[type(ours).__name__]
    names = np.array(OPERATIONS)[mine["choice"][:, 0]]
    for name in OPERATIONS:
        own = mine["magnitude"][names == name, 0].round(4)
        other = np.array([magnitude for operation, magnitude in told if operation == name])
        other = (np.trunc(other) if name.startswith("Translate") else other).round(4)
        assert abs(len(own) - len(other)) < 5 * np.sqrt(2 * count / 14)
        values, theirs_values = np.unique(own), np.unique(other)
        if name.startswith("Translate"):  # torch's float32 makes 15.999 of 16, and truncates
            assert np.abs(values[:, None] - theirs_values).min(axis=1).max() <= 1
            own, other = np.round(own / 2), np.round(other / 2)
        else:
            assert (np.abs(values[:, None] - theirs_values).min(axis=1) <= 2e-4).mean() > 0.95  # some come too seldom
        assert stats.ks_2samp(own, other).pvalue > 1e-3


def test_gammas_logarithm_is_uniform() -> None:
    transform = Transform((CenterCrop(8), Gamma(0.6, (0.5, 2.0)), Normalize()))
    drawn = transform.draw(keys(4000), np.full(4000, 9), np.full(4000, 9))["Gamma"]
    assert stats.kstest(np.log(drawn["gamma"]), "uniform", (np.log(0.5), np.log(4))).pvalue > 1e-3
    assert 0.57 < drawn["active"].mean() < 0.63


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gamma(gamma=(0.0, 2.0)), "Gamma: gamma is (0.0, 2.0); give two ascending numbers within 0.01..100.0"),
        (lambda: Clahe(clip_limit=0), "Clahe: clip_limit is 0; give a number above 0"),
        (lambda: Clahe(tiles=0), "Clahe: tiles is 0; give a whole number within 1..64"),
        (lambda: StainJitter(strength=-1), "StainJitter: strength is -1; give a number within 0..1"),
        (lambda: StainJitter(1.5), "StainJitter: p is 1.5; give a probability within 0..1"),
        (lambda: TrivialAugment(1), "TrivialAugment: bins is 1; give a whole number within 2..1000"),
        (lambda: RandAugment(0), "RandAugment: count is 0; give a whole number within 1..8"),
        (lambda: RandAugment(magnitude=31), "RandAugment: magnitude is 31; give a whole number within 0..30"),
        (lambda: RandAugment(interpolation="cubic"), "interpolation is 'cubic'; known: nearest, bilinear"),  # type: ignore[arg-type]
        (lambda: Rotation(interpolation="lanczos"), "interpolation is 'lanczos'; known: nearest, bilinear"),  # type: ignore[arg-type]
    ],
)
def test_wrong_parameters_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


@pytest.mark.parametrize(("side", "kernel"), [(3, 999), (8, 99), (40, 81)])
def test_a_blur_wider_than_the_image_goes_on_mirroring(side: int, kernel: int) -> None:
    """Which torchvision refuses; NumPy mirrors as often as it takes."""
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    transform = Transform((CenterCrop(side), GaussianBlur(1.0, kernel, (2.0, 2.0)), Normalize((0.0,) * 3, (1.0,) * 3)))
    size = np.array([[side, side]])
    drawn = transform.draw(keys(1), *size.T)
    weights = np.exp(-((np.arange(kernel) - kernel // 2) ** 2) / 8.0)
    wanted = np.pad(image.astype(float), ((kernel // 2,) * 2, (kernel // 2,) * 2, (0, 0)), mode="reflect")
    for axis in (0, 1):
        wanted = np.apply_along_axis(np.convolve, axis, wanted, weights / weights.sum(), "valid")
    made: Any
    for made in (HostExecutor(transform), DaliExecutor(transform, batch=1, raw=True)):
        pixels, failures = made.run([image.tobytes()], ["raw"], size, drawn)
        made.close()
        assert not failures
        assert np.abs(255 * pixels[0].permute(1, 2, 0).numpy() - wanted).max() <= 2
