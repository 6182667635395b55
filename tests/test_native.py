"""The compiled loops give the pixels of torch and NumPy to the bit; python -m pytest tests/test_native.py."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from shards import native
from shards.chain import Drawn
from shards.colours import ColorJitter, GaussianBlur, Grayscale, Solarize
from shards.compiled import _loaded
from shards.draws import DrawKeys
from shards.host_executor import Failure, HostExecutor
from shards.host_plan import native_from
from shards.operators import (
    CenterCrop,
    Erasing,
    HorizontalFlip,
    Normalize,
    Operator,
    RandomCrop,
    RandomResizedCrop,
    Resize,
    Rotate90,
    VerticalFlip,
)
from shards.transforms import Transform, eval_transform, train_transform

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.3, 0.25)
JITTER = ColorJitter(1.0, 0.6, 0.6, 0.6, 0.5)


@pytest.fixture(scope="module")
def made() -> object:
    library = native.library()
    assert library is not None, "these tests want a C compiler (cc), as DeepSpeed does"
    return library


def pixels_of(made: object, channels: int) -> tuple[native.Pixels, np.ndarray]:
    mean, std = np.array(MEAN[:channels], np.float32), np.array(STD[:channels], np.float32)
    table = (np.arange(256, dtype=np.float32)[None] / np.float32(255) - mean[:, None]) / std[:, None]
    return native.Pixels(made, table, mean, std), table  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_resize_is_torchs_to_the_bit(made: object, channels: int) -> None:
    rng, (pixels, table), scratch = np.random.default_rng(channels), pixels_of(made, channels), native.Block()
    for _ in range(60):
        (height, width), (down, across) = rng.integers(1, 400, 2).tolist(), rng.integers(1, 200, 2).tolist()
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        tensor = torch.from_numpy(image).unsqueeze(0).permute(0, 3, 1, 2)
        resized = torch.ops.aten._upsample_bilinear2d_aa(tensor, [down, across], False, None, None)[0].numpy()
        top, left = rng.integers(0, (down, across)).tolist()
        job = native.jobs(1, (down, across))
        job["top"], job["left"], job["height"], job["width"] = top, left, down - top, across - left
        job["flip_x"], job["flip_y"] = flips = rng.integers(0, 2, 2)
        out = np.full((channels, down - top, across - left), np.nan, np.float32)
        pixels.run(job.ctypes.data, image.ctypes.data, height, width, out.ctypes.data, scratch)
        wanted = np.stack([table[c][plane[top:, left:]] for c, plane in enumerate(resized)])
        np.testing.assert_array_equal(out, wanted[:, :: -1 if flips[1] else 1, :: -1 if flips[0] else 1])


def test_a_job_outside_the_image_is_refused(made: object) -> None:
    pixels, _ = pixels_of(made, 3)
    image, out = np.zeros((8, 9, 3), np.uint8), np.zeros((3, 4, 4), np.float32)
    wrong = [("cut_top", 5), ("cut_left", -1), ("cut_width", 10), ("top", 1), ("width", 5), ("steps", 9)]
    for name, value in [*wrong, ("cut_top", 2**31 - 2), ("cut_left", 2**31 - 2), ("top", 2**31 - 2)]:
        job = native.jobs(1, (4, 4))
        job["cut_height"] = job["cut_width"] = 4
        job[name] = value
        with pytest.raises(ValueError, match="outside an image of 8 x 9 pixels"):
            pixels.run(job.ctypes.data, image.ctypes.data, 8, 9, out.ctypes.data, native.Block())


def images_of(channels: int) -> tuple[list[bytes], np.ndarray]:
    rng, found, sizes = np.random.default_rng(3), [], []
    for height, width in [(90, 130), (61, 60), (200, 97), (64, 64), (70, 65), (150, 150)]:
        image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, channels), dtype=np.uint8), (3, 3), 0.8)
        found.append(cv2.imencode(".jpg", image)[1].tobytes())
        sizes.append((height, width))
    return found * 4, np.array(sizes * 4)


CASES: dict[str, tuple[Operator, ...]] = {
    "light": train_transform(48, MEAN, STD).operators[:-1],
    "full": train_transform(48, MEAN, STD, preset="full").operators[:-1],
    "study": train_transform(48, MEAN, STD, preset="study").operators[:-1],
    "eval": eval_transform(48, MEAN, STD).operators[:-1],
    "every colour": (Resize((40, 50)), JITTER, VerticalFlip(), Grayscale(0.3), HorizontalFlip(), Solarize(0.5, 99.0)),
    "two jitters, a gray too many": (RandomResizedCrop(32), Grayscale(0.5), JITTER, JITTER),
    "crop alone": (RandomCrop(48), HorizontalFlip(), JITTER),
    "padded crop": (RandomCrop(64, 8), HorizontalFlip()),
    "centre beyond the image": (CenterCrop(100),),
    "turns and blur before": (Resize((64, 64)), Rotate90(), GaussianBlur(0.5, 5), RandomCrop(40), JITTER, Erasing(0.5)),
    "blur behind": (RandomResizedCrop((33, 47)), JITTER, GaussianBlur(0.5, 5)),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_executors_with_and_without_them_are_equal(made: object, name: str, channels: int) -> None:
    steps = [operator for operator in CASES[name] if not isinstance(operator, Erasing)]
    behind = [operator for operator in CASES[name] if isinstance(operator, Erasing)]
    transform = Transform((*steps, Normalize(MEAN[:channels], STD[:channels]), *behind))
    images, sizes = images_of(channels)
    count = len(images)
    keys = DrawKeys(1, np.zeros(count, int), np.arange(count, dtype=np.uint64), np.zeros(count, int))
    drawn, out = transform.draw(keys, sizes[:, 0], sizes[:, 1]), []
    for compiled in (True, False):
        executor = HostExecutor(transform, compiled=compiled)
        found, failures = executor.run(images, ["jpeg"] * count, sizes, drawn)
        executor.close()
        assert not failures
        out.append(found.numpy())
    if name == "eval":  # floats: torch's weights are float32, these are double
        np.testing.assert_allclose(*out, rtol=0, atol=0.003 / 255 / min(STD))
    else:
        np.testing.assert_array_equal(*out)


def test_an_unrounded_job_takes_no_colours_and_keeps_what_has_its_size(made: object) -> None:
    pixels, table = pixels_of(made, 3)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    job, out = native.jobs(1, (20, 30)), np.empty((3, 20, 30), np.float32)
    job["unrounded"] = 1
    pixels.run(job.ctypes.data, image.ctypes.data, 20, 30, out.ctypes.data, native.Block())
    np.testing.assert_array_equal(out, np.stack([table[c][image[..., c]] for c in range(3)]))
    job["steps"] = 1
    with pytest.raises(ValueError, match="outside an image of 20 x 30 pixels"):
        pixels.run(job.ctypes.data, image.ctypes.data, 20, 30, out.ctypes.data, native.Block())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_unrounded_resize_is_torchs_of_floats(made: object, channels: int) -> None:
    rng, (pixels, _), scratch = np.random.default_rng(channels), pixels_of(made, channels), native.Block()
    mean, std = (np.array(each[:channels], np.float32)[:, None, None] for each in (MEAN, STD))
    for _ in range(60):
        (height, width), (down, across) = rng.integers(1, 400, 2).tolist(), rng.integers(1, 200, 2).tolist()
        image = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].double()  # in float32 torch's weights are .003 off
        wanted = torch.nn.functional.interpolate(tensor, (down, across), mode="bilinear", antialias=True)[0].numpy()
        top, left = rng.integers(0, (down, across)).tolist()
        job = native.jobs(1, (down, across))
        job["top"], job["left"], job["height"], job["width"] = top, left, down - top, across - left
        job["flip_x"], job["flip_y"] = flips = rng.integers(0, 2, 2)
        job["unrounded"] = 1
        out = np.full((channels, down - top, across - left), np.nan, np.float32)
        pixels.run(job.ctypes.data, image.ctypes.data, height, width, out.ctypes.data, scratch)
        found = (out * std + mean)[:, :: -1 if flips[1] else 1, :: -1 if flips[0] else 1] * 255
        np.testing.assert_allclose(found, wanted[:, top:, left:], rtol=0, atol=1e-3)


def test_presets_run_whole_in_the_loops() -> None:
    for preset, first in (("light", 0), ("full", 0), ("study", 1)):
        assert native_from(train_transform(32, MEAN, STD, preset=preset)) == first
    assert native_from(eval_transform(32, MEAN, STD)) == 0
    assert native_from(Transform((RandomResizedCrop(8), GaussianBlur(), Normalize(MEAN, STD)))) == 2


def test_without_a_compiler_the_log_says_so(tmp_path: Path) -> None:
    code = "import logging; logging.basicConfig(); from shards import native; print(native.library())"
    environment = {"CC": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert "pixels.c was not compiled" in done.stderr and "no-such-compiler" in done.stderr
    assert not list(tmp_path.rglob("*.so"))


@pytest.mark.parametrize("channels", [1, 3])
def test_raw_images_go_through_in_one_call_with_the_same_pixels(channels: int) -> None:
    """Of mixed sizes, between encoded ones, with one too short and one empty, in pieces of every size."""
    rng, sizes = np.random.default_rng(5), np.array([(40, 30), (31, 64), (1, 1), (50, 50), (33, 9)] * 3, np.int64)
    arrays = [rng.integers(0, 256, (*size, channels), dtype=np.uint8) for size in sizes.tolist()]
    images, names = [array.tobytes() for array in arrays], ["raw"] * len(arrays)
    images[3], names[3] = cv2.imencode(".png", arrays[3][..., ::-1])[1].tobytes(), "png"
    images[6], images[8] = images[6][:-1], b""
    chain = train_transform(24, list(MEAN[:channels]), list(STD[:channels]), scale=(0.3, 1.0), preset="light")
    ids = np.arange(len(sizes), dtype=np.uint64)
    drawn = chain.draw(DrawKeys(1, ids.astype(np.int64) * 0, ids, ids.astype(np.int64) * 0), sizes[:, 0], sizes[:, 1])
    wanted, why = run(HostExecutor(chain, threads=1, compiled=False), images, names, sizes, drawn)
    assert [i for i, _ in why] == [6, 8] and "needs" in why[0][1]
    for threads in (1, 3):
        found, same = run(HostExecutor(chain, threads=threads), images, names, sizes, drawn)
        assert same == why
        np.testing.assert_array_equal(found, wanted)


def run(
    executor: HostExecutor, images: list[bytes], names: list[str], sizes: np.ndarray, drawn: Drawn
) -> tuple[np.ndarray, list[Failure]]:
    made, failures = executor.run(images, names, sizes, drawn)
    executor.close()
    return made.numpy(), failures


def test_of_many_jobs_the_refused_one_is_told(made: object) -> None:
    pixels, _ = pixels_of(made, 3)
    images, outs = np.zeros((3, 8, 9, 3), np.uint8), np.full((3, 3, 4, 4), np.nan, np.float32)
    jobs, sizes = native.jobs(3, (4, 4)), np.array([(8, 9)] * 3, np.int32)
    jobs["cut_height"] = jobs["cut_width"] = 4
    addresses, places = ([a[i].ctypes.data for i in range(3)] for a in (images, outs))
    columns = jobs, np.array(addresses, np.int64), sizes, np.array(places, np.int64)
    pixels.run_all(*columns, native.Block())
    assert (outs == outs[0, :, :1, :1]).all()
    jobs["cut_top"][1], outs[:] = 5, np.nan
    with pytest.raises(ValueError, match="outside an image of 8 x 9 pixels"):
        pixels.run_all(*columns, native.Block())
    assert np.isfinite(outs[0]).all() and np.isnan(outs[1:]).all()


def loaded(**environment: str) -> str:
    """What a process of its own says about the loops: their file, or why there are none."""
    code = "import logging; logging.basicConfig(); from shards import native; print(native.library())"
    environment |= {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_a_cached_file_cut_short_is_made_again(tmp_path: Path) -> None:
    loaded(XDG_CACHE_HOME=str(tmp_path))
    (made,) = tmp_path.rglob("*.so")
    whole = made.read_bytes()
    made.write_bytes(whole[: len(whole) // 2])  # to load it would be a SIGBUS
    assert f"<CDLL '{made}'" in loaded(XDG_CACHE_HOME=str(tmp_path))
    assert len(made.read_bytes()) == len(whole)


def test_a_cached_file_that_cannot_be_loaded_is_left_aside(tmp_path: Path) -> None:
    loaded(XDG_CACHE_HOME=str(tmp_path))
    (made,) = tmp_path.rglob("*.so")
    made.write_bytes(bytes(made.stat().st_size))
    assert "<CDLL" in loaded(XDG_CACHE_HOME=str(tmp_path))


def test_a_home_that_cannot_be_written_and_an_empty_compiler_name_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = loaded(HOME=str(tmp_path / "file"), CC="")
    assert "<CDLL" in found and "not compiled" not in found


def test_a_user_without_a_home_gets_the_loops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("shards.compiled.Path.home", nowhere)
    monkeypatch.setattr("shards.compiled.tempfile.tempdir", str(tmp_path))
    assert _loaded(native.SOURCE, native.FLAGS).pixels_run
    assert not list(tmp_path.iterdir())
