"""What several test files share."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from faulty_server import FaultyServer, serve
from remote_sets import QUICK

from prep.phantoms import draw_phantoms
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.writer import Sample

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real public images beside the checkout; tests that use it run where it exists."""
    if not REAL_DATA.is_dir():
        pytest.skip("the folder of real images is not beside this checkout")
    return REAL_DATA


def texture(kind: int, height: int, width: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """An image uint8 [height, width, channels] whose texture tells its kind: stripes whose width and angle differ."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = (0.2 + 0.9 * kind) + rng.normal(0, 0.1)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (0.35 + 0.3 * kind) + rng.uniform(0, 6.28))
    colours = rng.uniform(30, 60, channels)
    image = 120 + wave[:, :, None] * colours + rng.normal(0, 8, (height, width, channels))
    return np.clip(image, 0, 255).astype(np.uint8)


def encode(image: np.ndarray, encoding: str) -> bytes:
    """Encode RGB or grey uint8 [h, w, c] as jpeg, png or raw."""
    if encoding == "raw":
        return image.tobytes()
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.shape[2] == 3 else image
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if encoding == "jpeg" else []
    done, data = cv2.imencode({"jpeg": ".jpg", "png": ".png"}[encoding], bgr, options)
    assert done
    return data.tobytes()


def tiny_samples(
    sizes: dict[str, int], classes: int, channels: int, task: str, encoding: str, seed: int
) -> Iterator[Sample]:
    """Samples of mixed sizes, classes in turn; multi-label ones have bits of `kind` as labels and a few blanks."""
    rng, number = np.random.default_rng(seed), 0
    for split, count in sizes.items():
        for _ in range(count):
            height, width = (int(side) for side in rng.integers(40, 71, 2))
            kind = number % (classes if task == "single-label" else 1 << classes)
            labels = (kind,) if task == "single-label" else tuple(kind >> bit & 1 for bit in range(classes))
            if task == "multi-label" and number % 10 == 9:
                labels = (-32768, *labels[1:])
            image = encode(texture(kind, height, width, channels, rng), encoding)
            yield Sample(
                split, f"{number:08d}-{number * 2654435761 % 2**32:08x}", image, encoding, labels, height, width, number
            )
            number += 1


def make_set(
    folder: Path,
    *,
    classes: int = 3,
    channels: int = 3,
    task: str = "single-label",
    encoding: str = "jpeg",
    train: int = 60,
    val: int = 17,
    test: int = 19,
    seed: int = 0,
    name: str = "tiny",
    **options: Any,
) -> ShardSet:
    """Write a small real set; train lies in unequal shards (7, 23, 11, then the rest). `options` go to write_set."""
    counts = {split: count for split, count in (("train", train), ("val", val), ("test", test)) if count}
    options.setdefault("shard_size", {"train": [7, 23, 11, 10_000], "val": [10_000], "test": [12, 10_000]})
    return write_set(
        folder,
        tiny_samples(counts, classes, channels, task, encoding, seed),
        name=name,
        classes=[f"kind{index}" for index in range(classes)],
        channels=channels,
        task=task,  # type: ignore[arg-type]
        **options,
    )


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of 3 classes in 3 channels: train 60 over 4 unequal shards, val 17, test 19. Never write into it."""
    return make_set(tmp_path_factory.mktemp("sets") / "tiny").path


@pytest.fixture(scope="session")
def raw_ddsm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw folder of 60 DDSM phantoms of 64 pixels. Never write into it."""
    folder = tmp_path_factory.mktemp("raw") / "DDSM"
    draw_phantoms("DDSM", folder, 60, size=64, quiet=True)
    return folder


@pytest.fixture
def own_raw_ddsm(raw_ddsm: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(raw_ddsm, tmp_path / "raw"))


@pytest.fixture
def server(tiny_set: Path) -> Iterator[FaultyServer]:
    """The tiny set on an HTTP server that fails as it is told to."""
    with serve(tiny_set) as server:
        yield server


@pytest.fixture
def remote(server: FaultyServer, tmp_path: Path) -> Callable[..., ShardSet]:
    """A function that opens the set of `server` with a cache."""

    def open_set(limit: int | None = None, **options: Any) -> ShardSet:
        options.setdefault("patience", QUICK)
        return ShardSet(server.url, cache=tmp_path / "cache", cache_limit=limit, **options)

    return open_set


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_set: Path) -> Path:
    """A run of the tiny set that never trained: a start and an end of two seeds."""
    from made_runs import SMALL, make_run

    return make_run(tmp_path_factory.mktemp("runs") / "tiny", tiny_set, *SMALL)


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Trainings of this process are one rank on the CPU, in an empty folder; as many threads afterwards as before."""
    import torch

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(name="make_set", scope="session")
def make_set_fixture() -> Callable[..., ShardSet]:
    """The function `make_set(folder, **options)`, for tests that want other channels, labels or encodings."""
    return make_set


def pytest_configure() -> None:
    """Ctrl-C is heard by what the tests start, also where a shell that put them in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where a CUDA device is found; elsewhere they are shown as skipped, by name."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
