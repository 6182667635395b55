"""Display windows of 16-bit images: DICOM's formula in both executors, drawn like all else, reachable by a flag.

Run: pytest tests/test_windows.py
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing
from scipy import stats

from shards.dali_executor import DaliExecutor, graph
from shards.draws import DrawKeys
from shards.host_executor import HostExecutor
from shards.host_views import HostViews
from shards.loader import Loader
from shards.operators import CenterCrop, HorizontalFlip, Normalize, RandomResizedCrop, Resize
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.transforms import Transform, eval_transform, train_transform
from shards.view import main as view
from shards.views import MultiCrop, Views
from shards.windows import Window, window_of
from shards.writer import Sample
from train.config_file import load
from train.flags import parse_args
from train.run import main as run

CT = Window(1.0, (424.0, 1064.0, 1524.0), (1500.0, 400.0, 1800.0))  # lung, soft tissue, bone; HU + 1024
COUNT = 4


def slices() -> list[np.ndarray]:
    """Levels of 12 bits, as [h, w, 1] of 16: air, water, bone, and all between."""
    rng = np.random.default_rng(2)
    return [rng.integers(0, 4096, (40, 50 + i, 1), dtype=np.uint16) for i in range(COUNT)]


def keys(count: int) -> DrawKeys:
    zeros = np.zeros(count, np.int64)
    return DrawKeys(3, zeros, np.arange(count, dtype=np.uint64), zeros)


def through(transform: Any, name: str) -> Any:
    images, sizes = slices(), np.array([image.shape[:2] for image in slices()])
    drawn = transform.draw(keys(COUNT), *sizes.T)
    kind: Any = HostViews if isinstance(transform, Views) else HostExecutor
    executor = kind(transform, bits=16) if name == "host" else DaliExecutor(transform, bits=16, batch=COUNT, raw=True)
    made, failures = executor.run([image.astype("<u2").tobytes() for image in images], ["raw"] * COUNT, sizes, drawn)
    executor.close()
    assert not failures
    return made, drawn


def by_pydicom(image: np.ndarray, center: float, width: float) -> np.ndarray:
    """The levels of 0..1 that pydicom's own window gives, of an image of 16 unsigned bits."""
    header = Dataset()
    header.PhotometricInterpretation, header.BitsStored, header.PixelRepresentation = "MONOCHROME2", 16, 0
    header.WindowCenter, header.WindowWidth = center, width
    return np.asarray(apply_windowing(image, header) / 65535)


@pytest.mark.parametrize("name", ["host", "dali"])
@pytest.mark.parametrize("window", [Window(1.0, (1064.0,), (400.0,)), CT, Window(1.0, (1064.5,), (2.0,))])
def test_it_is_dicoms(name: str, window: Window) -> None:
    count = window.count
    plain = Transform((window, CenterCrop(40), Normalize((0.0,) * count, (1.0,) * count)))
    assert (plain.channels, plain.stored_channels) == (count, 1)
    made, _ = through(plain, name)
    pairs = list(zip(window.centers, window.widths, strict=True))
    for i, image in enumerate(slices()):
        left = round((image.shape[1] - 40) / 2)
        wanted = np.concatenate([by_pydicom(image[:, left : left + 40], *pair) for pair in pairs], axis=2)
        np.testing.assert_allclose(made[i].numpy().transpose(1, 2, 0), wanted, atol=1.01 / 65535)


@pytest.mark.parametrize("first", [(), (Resize(36),)])
def test_executors_agree_with_jitter_and_views(first: tuple[Resize, ...]) -> None:
    moved = Window(0.8, CT.centers, CT.widths, 0.1, 0.2)
    end = (HorizontalFlip(), Normalize((0.5,) * 3, (0.25,) * 3))
    for transform in (
        Transform((moved, *first, RandomResizedCrop(24), *end)),
        Views((moved, *first, MultiCrop((1, 1), (24, 12)), *end)),
    ):
        made = []
        for name in ("host", "dali"):
            views, _ = through(transform, name)
            made.append(views if isinstance(views, tuple) else (views,))
        for host, dali in zip(*made, strict=True):
            apart = 255 * 0.25 * (host - dali).abs()
            assert host.shape[1] == 3 and apart.mean() <= 1
            # At the border DALI repeats pixels, in a small upsampled view over many of them; this is white noise.
            inside = apart[:, :, 4:-4, 4:-4]
            assert inside.mean() <= 0.05 and inside.max() <= 3
        assert len(graph(transform, 16, True, "gpu")(batch_size=2, num_threads=1, device_id=None).serialize()) > 300


def test_jitter_is_drawn_by_sample_and_as_it_says() -> None:
    window, sides = Window(0.75, (1000.0,), (401.0,), 0.1, 0.25), np.full(4000, 64)
    transform = Transform((window, CenterCrop(8), Normalize()))
    drawn = transform.draw(keys(4000), sides, sides)["Window"]
    shift, factor = (drawn["center"][:, 0] - 1000) / 401, (drawn["width"][:, 0] - 1) / 400
    moved = shift != 0
    assert 0.72 < moved.mean() < 0.78 and (factor[~moved] == 1).all()
    assert stats.kstest(shift[moved], "uniform", (-0.1, 0.2)).pvalue > 1e-3
    assert stats.kstest(np.log(factor[moved]), "uniform", (-np.log(1.25), 2 * np.log(1.25))).pvalue > 1e-3
    some = transform.draw(keys(4000).rows(np.array([7, 3000])), sides[:2], sides[:2])["Window"]
    np.testing.assert_array_equal(some["center"], drawn["center"][[7, 3000]])
    other = Transform((window, HorizontalFlip(), CenterCrop(8), Normalize())).draw(keys(4000), sides, sides)["Window"]
    np.testing.assert_array_equal(other["width"], drawn["width"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Window(1.0, (1.0, 2.0), (3.0, 4.0)), "2 centers and 2 widths; give one or three of each"),
        (lambda: Window(1.0, (1.0,), (1.0,)), "widths is (1.0,); give numbers of levels from 1.001 to 1048576"),
        (lambda: Window(1.0, (1.0,), (1.0 + 1e-9,)), "give numbers of levels from 1.001"),  # 1 in float32
        (lambda: Window(1.0, (1.0,), (-400.0,)), "widths is (-400.0,); give numbers of levels from 1.001"),
        (lambda: Window(1.0, (1.0,), (9.0,), -0.1), "shift is -0.1; give a share of the width within 0..1"),
        (lambda: Window(1.5, (1.0,), (9.0,)), "p is 1.5; give a probability within 0..1"),
        (lambda: window_of([40]), "got 1 numbers; give center,width, or three such pairs"),
        (lambda: Transform((CenterCrop(8), Window(), Normalize())), "Window stands behind another operator: put it fi"),
        (lambda: Transform((CT, CenterCrop(8), Normalize())), "3 windows make 3 channels, Normalize has 1 means"),
        (
            lambda: HostExecutor(Transform((Window(), CenterCrop(8), Normalize()))),
            "Window works on 16-bit images, thes",
        ),
        (lambda: load({}, {"display_jitter": "0.1,0.1"}), "none is given: add --display-window"),
        (lambda: load({}, {"display_window": "1064"}), "got 1 numbers; give center,width"),
        (lambda: load({}, {"display_window": "1064,0"}), "give numbers of levels from 1.001"),
        (lambda: load({}, {"display_window": "9,9", "display_jitter": "0.1,-2"}), "greater than or equal to 0"),
    ],
)
def test_wrong_windows_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_config_builds_them() -> None:
    flags = ["--display-window", "424,1500,1064,400,1524,1800", "--display-jitter", "0.1,0.2", "--preset", "full"]
    data = load({}, parse_args(flags)[1]).data
    mean, std = (0.5,) * 3, (0.25,) * 3
    training, evaluation = data.train_transform(mean, std), data.eval_transform(mean, std)
    assert training.operators[0] == Window(1.0, CT.centers, CT.widths, 0.1, 0.2) and evaluation.operators[0] == CT
    assert "Grayscale" not in training.names  # three windows are no colours
    assert training == train_transform(224, mean, std, preset="full", window=training.operators[0])
    assert evaluation == eval_transform(224, mean, std, window=CT)
    listed = load({}, {"train_operators": '[{"op": "CenterCrop", "size": 224}]', "display_window": "1064,400"}).data
    assert listed.train_transform((0.5,), (0.25,)).names == ("Window", "CenterCrop", "Normalize")


@pytest.fixture(scope="module")
def deep_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 16-bit grey PNGs."""
    rng = np.random.default_rng(0)
    samples = []
    for n in range(24):
        image = np.clip(rng.normal(1000 + 300 * (n % 2), 200, (40, 40)), 0, 4095).astype(np.uint16)
        data = cv2.imencode(".png", image)[1].tobytes()
        samples.append(Sample(("train", "val", "test")[n % 3], f"{n:04d}", data, "png", (n % 2,), 40, 40, n))
    folder = tmp_path_factory.mktemp("deep") / "set"
    write_set(folder, samples, name="deep", classes=["a", "b"], channels=1, bits=16, mean=[0.02], std=[0.005])
    return folder


def test_the_loader_and_the_sheet_take_them(deep_set: Path, tmp_path: Path) -> None:
    split = ShardSet(deep_set).split("train")
    transform = train_transform(32, (0.5,) * 3, (0.25,) * 3, window=CT)
    found = {}
    for name in ("host", "dali"):
        loader = Loader(split, transform, global_batch=8, executor=name)  # type: ignore[arg-type]
        found[name] = next(iter(loader)).images
        loader.close()
    assert found["host"].shape == (8, 3, 32, 32)
    torch.testing.assert_close(*(each[:, :, 4:-4, 4:-4] for each in found.values()), atol=0.03, rtol=0)
    out = tmp_path / "sheet.png"
    arguments = [str(deep_set), "--samples", "2", "--versions", "2", "--out", str(out), "--display-window"]
    assert view([*arguments, "1064,400"]) == 0 and out.is_file()
    with pytest.raises(ValueError, match="--display-window is '1064;400'; write numbers between commas"):
        view([*arguments, "1064;400"])


def test_a_training_takes_three_and_what_does_not_fit_is_refused_before_it(
    deep_set: Path, tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    common = ["--model", "test_vit", "--start", "ri", "--image-size", "32", "--global-batch", "4", "--threads", "1"]
    common += ["--epochs", "1", "--out", str(tmp_path), "--display-window"]
    with pytest.raises(ValueError, match="Window works on 16-bit images, these have 8 bits: leave it out, or make"):
        run([*common, "1064,400", "--shards", str(tiny_set), "--name", "eight"])
    crop = ["--train-operators", '[{"op": "RandomCrop", "size": 60}]', "--image-size", "60"]
    with pytest.raises(ValueError, match=r"RandomCrop: 60 x 60 does not fit an image of .* crop less, pad more"):
        run([*common[:2], "--start", "ri", "--global-batch", "4", "--out", str(tmp_path), *crop,
             "--shards", str(tiny_set), "--name", "eight"])  # fmt: skip
    three = "424,1500,1064,400,1524,1800"
    with pytest.raises(ValueError, match="several display windows are for grey images, tiny has 3 channels"):
        run([*common, three, "--shards", str(tiny_set), "--name", "eight"])
    assert not (tmp_path / "eight").exists()
    assert run([*common, three, "--shards", str(deep_set), "--name", "deep", "--display-jitter", "0.1,0.1"]) == 0
    assert run(["--test", str(tmp_path / "deep")]) == 0
