"""Images that other tools put into shards, and broken ones, through both executors: pytest tests/test_odd_images.py"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pictures import photograph, saved
from PIL import Image

from shards.dali_executor import DaliExecutor
from shards.draws import DrawKeys
from shards.headers import size_of
from shards.host_executor import HostExecutor
from shards.loader import Batch, Loader
from shards.sets import write_set
from shards.shardset import ShardSet
from shards.transforms import AnyTransform, transform_of
from shards.writer import Sample

HEIGHT, WIDTH, COUNT, BATCH = 70, 90, 40, 20
PICTURE = Image.fromarray(photograph(HEIGHT, WIDTH))
PLAIN = saved(PICTURE, "JPEG", quality=92)
GREY = PICTURE.convert("L")
RESTARTED = cv2.imencode(".jpg", photograph(HEIGHT, WIDTH), [cv2.IMWRITE_JPEG_RST_INTERVAL, 2])[1].tobytes()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(PICTURE, "JPEG", quality=92, exif=exif)


WHOLE = {  # with the largest mean of differences between the executors, levels
    "plain": (PLAIN, 0.5),
    "grey": (saved(GREY, "JPEG", quality=92), 0.5),
    "progressive": (saved(PICTURE, "JPEG", quality=92, progressive=True), 0.5),
    "progressive and grey": (saved(GREY, "JPEG", quality=92, progressive=True), 0.5),
    "full chroma": (saved(PICTURE, "JPEG", quality=92, subsampling=0), 0.5),
    "restart markers": (RESTARTED, 0.5),
    "more behind its end": (PLAIN + bytes(500), 0.5),
    "turned by EXIF": (turned(6), 0.5),
    "mirrored by EXIF": (turned(2), 0.5),
    "four inks": (saved(PICTURE.convert("CMYK"), "JPEG", quality=92), 1.6),  # libjpeg-turbo's wrapper truncates
}  # fmt: skip
BROKEN = {
    "zeros": (bytes(300), ""),
    "no image": (b"no JPEG at all" * 50, ""),
    "its first two bytes": (PLAIN[:2], ""),
    "its header": (PLAIN[:600], ""),
    "a line too many": (saved(Image.fromarray(photograph(HEIGHT + 1, WIDTH)), "JPEG"), "decodes to 71 x 90"),
    "upright": (saved(Image.fromarray(photograph(WIDTH, HEIGHT)), "JPEG"), "to 90 x 70, the index says 70 x 90"),
    "said to be enormous": (PLAIN.replace(b"\0\x46\0\x5a", b"\xff\xdc\xff\xdc", 1), ""),
}  # fmt: skip
LENGTH = max(len(data) for data, _ in (*WHOLE.values(), *BROKEN.values()))


def write(folder: Path, odd: Sequence[bytes], channels: int) -> ShardSet:
    """A set of plain images, some of them overwritten afterwards: `write_set` takes no broken ones.

    Number 3 and number 27 are the odd one; of several they are the first ones.
    """
    places = [3, 27] if len(odd) == 1 else range(len(odd))
    whole = PLAIN.ljust(LENGTH, b"\0")
    samples = (Sample("train", f"{i:08d}-0000", whole, "jpeg", (i % 2,), HEIGHT, WIDTH, i) for i in range(COUNT))
    shards = write_set(folder, samples, name="odd", classes=["a", "b"], channels=channels)
    split = shards.split("train")
    with (folder / split.shards[0].name).open("r+b") as file:
        for place, data in zip(places, odd if len(odd) > 1 else odd * 2, strict=True):
            file.seek(int(split.rows(np.array([place])).offsets[0]))
            file.write(data.ljust(LENGTH, b"\0"))
    return ShardSet(folder)


def epoch(shards: ShardSet, executor: str, steps: list[dict]) -> tuple[list[Batch], Loader]:
    manifest = shards.manifest
    transform: AnyTransform = transform_of(steps, (0.5,) * manifest.channels, (0.5,) * manifest.channels)
    loader = Loader(
        shards.split("train"),
        transform,
        global_batch=BATCH,
        executor=executor,  # type: ignore[arg-type]
        order="sequential",
        verify=False,  # the hash would tell before any decoder does
    )
    batches = list(islice(loader, COUNT // BATCH))
    loader.close()
    return batches, loader


@pytest.mark.parametrize("channels", [3, 1])
def test_odd_and_whole_images_are_the_same_in_both(tmp_path: Path, channels: int) -> None:
    shards = write(tmp_path / "set", [data for data, _ in WHOLE.values()], channels)
    for steps in ([{"op": "Resize", "size": [64, 64]}], [{"op": "RandomResizedCrop", "size": 48, "scale": [0.5, 1]}]):
        (host, one), (dali, other) = (epoch(shards, name, steps) for name in ("host", "dali"))
        assert not one.bad and not other.bad and all(batch.valid.all() for batch in (*host, *dali))
        apart = 127.5 * (host[0].images - dali[0].images).abs()
        for image, (name, (_, most)) in zip(apart, WHOLE.items(), strict=False):
            assert image.mean() <= most and image.quantile(0.99) <= 4, name
        same = torch.cat([batch.images for batch in host])[[0, 6, 7, 8]]
        if steps[0]["op"] == "Resize":  # EXIF turns nothing, and what stands behind the end is not seen
            assert all(torch.equal(image, same[0]) for image in same)


@pytest.mark.parametrize("executor", ["host", "dali"])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_images_are_named_and_masked_and_end_no_run(tmp_path: Path, executor: str, name: str) -> None:
    data, reason = BROKEN[name]
    shards = write(tmp_path / "set", [data], 3)
    batches, loader = epoch(shards, executor, [{"op": "Resize", "size": [64, 64]}])
    split = shards.split("train")
    assert [key for key, _ in loader.bad] == [split.key(3), split.key(27)]
    assert all(told and reason in told and "Critical" not in told for _, told in loader.bad)
    valid, images = (torch.cat([getattr(batch, what) for batch in batches]) for what in ("valid", "images"))
    assert torch.nonzero(~valid).flatten().tolist() == [3, 27]
    assert not images[~valid].any() and all(torch.equal(image, images[0]) for image in images[valid])


@pytest.mark.parametrize("executor", ["host", "dali"])
def test_pixels_of_another_number_are_masked(executor: str) -> None:
    transform, zeros, sizes = transform_of([{"op": "CenterCrop", "size": 8}], (0.5,), (0.5,)), [0, 0, 0], [[8, 9]] * 3
    drawn = transform.draw(DrawKeys(0, *(np.array(zeros, kind) for kind in ("i8", "u8", "i8"))), *np.array(sizes).T)
    made: Any = HostExecutor(transform) if executor == "host" else DaliExecutor(transform, batch=3, raw=True)  # type: ignore[arg-type]
    pixels, failures = made.run([bytes(72), bytes(71), bytes(72)], ["raw"] * 3, np.array(sizes), drawn)
    made.close()
    assert [i for i, _ in failures] == [1] and "raw image has 71 bytes" in failures[0][1]
    assert not pixels[1].any() and (pixels[[0, 2]] == -1).all()


@pytest.mark.parametrize("executor", ["host", "dali"])
def test_what_is_cut_off_is_masked(executor: str) -> None:
    transform, zeros = transform_of([{"op": "Resize", "size": [64, 64]}], (0.5,) * 3, (0.5,) * 3), np.zeros(4, np.int64)
    sizes = np.tile([HEIGHT, WIDTH], (4, 1))
    drawn = transform.draw(DrawKeys(0, zeros, zeros.astype(np.uint64), zeros), *sizes.T)
    made: Any = HostExecutor(transform) if executor == "host" else DaliExecutor(transform, batch=4)  # type: ignore[arg-type]
    images = [PLAIN[: len(PLAIN) // 2], PLAIN, PLAIN[:-20], b""]
    pixels, failures = made.run(images, ["jpeg"] * 4, sizes, drawn)
    made.close()
    assert [i for i, _ in failures] == [0, 2, 3]
    assert not pixels[[0, 2, 3]].any() and pixels[1].std() > 0.1


def test_a_header_tells_the_size_or_nothing() -> None:
    for data in (PLAIN, turned(6), saved(PICTURE, "JPEG", progressive=True), saved(PICTURE, "PNG")):
        assert size_of(data) == (HEIGHT, WIDTH) == size_of(memoryview(data))
        assert [size_of(data[:end]) for end in range(20)] == [None] * 20
    filled = PLAIN[:2] + b"\xff" * 3 + PLAIN[2:]
    assert size_of(filled) == (HEIGHT, WIDTH) and size_of(saved(PICTURE, "BMP")) is None
    rng = np.random.default_rng(0)
    for _ in range(300):  # whatever the bytes are, it ends and raises nothing
        noise = bytearray(PLAIN)
        for at in rng.integers(2, 700, 5):
            noise[at] = rng.integers(256)
        size_of(bytes(noise))
