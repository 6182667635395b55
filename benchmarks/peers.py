"""The loaders of other projects that our benchmarks measure, each as its own documentation has it.

Their dependencies quarrel with ours (and FFCV wants to be compiled), so they live in an environment of their own, which
sees this project's packages behind its own:

    apt-get install --no-install-recommends libopencv-dev libturbojpeg0-dev pkg-config build-essential \\
        libavdevice59 libavfilter8
    python -m venv peers
    (cd .venv/lib/python3*/site-packages && pwd) > "$(echo peers/lib/python3*/site-packages)/project.pth"
    grep -E '^torch(vision)?==' constraints.txt > peers/constraints.txt   (mosaicml-streaming wants an older NumPy)
    peers/bin/pip install -c peers/constraints.txt mosaicml-streaming litdata spdl ffcv

and are handed to the benchmarks as `--peer-python peers/bin/python`. WRITERS[name] makes the format that a peer reads,
LOADERS[name] iterates batches of float32[64, 3, 224, 224] with labels, endlessly.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH, SIZE, WORKERS, SCALE = 64, 224, 2, (0.8, 1.0)
QUALITY = 90


def torchvision_transform(variant: str, tensors: bool) -> Callable[..., Any]:
    """torchvision's v2 on uint8 tensors, or its first version on PIL images."""
    import torch
    import torchvision.transforms as pil
    from torchvision.transforms import v2

    kit: Any = v2 if tensors else pil
    steps = [kit.RandomResizedCrop(SIZE, scale=SCALE, antialias=True)]
    steps += [kit.RandomHorizontalFlip(), kit.RandomVerticalFlip()]
    if variant == "full":
        steps += [kit.RandomApply([kit.ColorJitter(0.2, 0.2, 0.1, 0.1)], p=0.2), kit.RandomGrayscale(0.2)]
    steps.append(v2.ToDtype(torch.float32, scale=True) if tensors else pil.ToTensor())
    return kit.Compose([*steps, kit.Normalize([0.5] * 3, [0.2] * 3)])


def decoded(data: bytes) -> Any:
    """JPEG bytes by torchvision, as a uint8 tensor [3, h, w]."""
    import torch
    import torchvision.io

    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return torchvision.io.decode_jpeg(encoded, torchvision.io.ImageReadMode.RGB)


def endless(make: Callable[[], Any]) -> Iterator[Any]:
    """Epoch after epoch of a loader."""
    loader = make()
    while True:
        yield from loader


def torch_loader(folder: Path, variant: str, tensors: bool) -> Iterator[Any]:
    """torch's DataLoader over plain files."""
    import torch
    from PIL import Image

    transform = torchvision_transform(variant, tensors)
    paths = sorted((folder / "files").iterdir())

    class Files(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            if tensors:
                return transform(decoded(paths[index].read_bytes())), index % 2
            return transform(Image.open(paths[index]).convert("RGB")), index % 2

    files = Files()
    sampler = torch.utils.data.RandomSampler(files, replacement=True, num_samples=10**7)
    return iter(torch.utils.data.DataLoader(files, BATCH, sampler=sampler, num_workers=WORKERS))


def webdataset_loader(folder: Path, variant: str) -> Iterator[Any]:
    """webdataset over the set's tars."""
    import webdataset

    transform = torchvision_transform(variant, True)
    tars = sorted(str(path) for path in (folder / "set").glob("*.tar"))
    samples = webdataset.WebDataset(tars, resampled=True, shardshuffle=False).shuffle(500).to_tuple("jpg", "cls")
    loaded = samples.map(lambda sample: (transform(decoded(sample[0])), int(sample[1]))).batched(BATCH)
    return iter(webdataset.WebLoader(loaded, batch_size=None, num_workers=WORKERS))


def mosaic_loader(folder: Path, variant: str) -> Iterator[Any]:
    """mosaicml-streaming over its MDS shards."""
    import streaming
    import torch

    transform = torchvision_transform(variant, True)

    class Set(streaming.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: int) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return transform(decoded(sample["image"])), sample["label"]

    streaming.base.util.clean_stale_shared_memory()
    found = Set(local=str(folder / "mosaic"), shuffle=True, batch_size=BATCH, epoch_size=100_000)
    return iter(torch.utils.data.DataLoader(found, BATCH, num_workers=WORKERS))


def litdata_loader(folder: Path, variant: str) -> Iterator[Any]:
    """litData over its chunks."""
    import litdata

    transform = torchvision_transform(variant, True)

    class Set(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> tuple[Any, int]:
            sample = super().__getitem__(index)
            return transform(decoded(sample["image"])), sample["label"]

    found = Set(str(folder / "litdata"), shuffle=True, drop_last=True)
    return endless(lambda: litdata.StreamingDataLoader(found, batch_size=BATCH, num_workers=WORKERS))


def ffcv_loader(folder: Path, variant: str) -> Iterator[Any]:
    """FFCV over its one file: no vertical flip, no hue and no grey exist there, so it does less than the others."""
    import ffcv.transforms as steps
    import numpy as np
    import torch
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    image: list[Any] = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE), steps.RandomHorizontalFlip()]
    if variant == "full":
        image += [steps.RandomBrightness(0.2, 0.2), steps.RandomContrast(0.2, 0.2), steps.RandomSaturation(0.1, 0.2)]
    image += [steps.NormalizeImage(np.full(3, 127.5), np.full(3, 51.0), np.dtype(np.float32))]
    image += [steps.ToTensor(), steps.ToTorchImage(channels_last=False)]
    pipelines = {"image": image, "label": [IntDecoder(), steps.ToTensor()]}

    def batches() -> Iterator[Any]:
        path = str(folder / "images.beton")
        made = Loader(path, BATCH, WORKERS, order=OrderOption.RANDOM, pipelines=pipelines, drop_last=True)
        for images, labels in endless(lambda: made):
            yield images.to(torch.float32), labels

    return batches()


def spdl_loader(folder: Path, variant: str) -> Iterator[Any]:
    """SPDL: files decoded, cropped, scaled, flipped and coloured by ffmpeg's filters on its threads."""
    import spdl.io
    import torch
    from spdl.pipeline import PipelineBuilder

    paths, rng = sorted(str(path) for path in (folder / "files").iterdir()), random.Random(0)
    torch.set_num_threads(1)

    def one(path: str) -> Any:
        share, aspect = rng.uniform(*SCALE), rng.uniform(3 / 4, 4 / 3)
        across, down = min(1.0, (share * aspect) ** 0.5), min(1.0, (share / aspect) ** 0.5)
        x, y = rng.random() * (1 - across), rng.random() * (1 - down)
        steps = [f"crop=iw*{across:.4f}:ih*{down:.4f}:iw*{x:.4f}:ih*{y:.4f}", f"scale={SIZE}:{SIZE}:flags=bilinear"]
        steps += ["hflip"] * (rng.random() < 0.5) + ["vflip"] * (rng.random() < 0.5)
        if variant == "full" and rng.random() < 0.2:
            steps.append(f"eq=brightness={rng.uniform(-0.1, 0.1):.3f}:contrast={rng.uniform(0.8, 1.2):.3f}")
            steps.append(f"hue=h={rng.uniform(-36, 36):.2f}:s={rng.uniform(0.9, 1.1):.3f}")
        if variant == "full" and rng.random() < 0.2:
            steps.append("hue=s=0")
        described = ",".join([*steps, "format=pix_fmts=rgb24"])
        return spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=described)

    def batch(frames: Any) -> Any:
        pixels = spdl.io.to_torch(spdl.io.convert_frames(frames))
        return pixels.permute(0, 3, 1, 2).to(torch.float32).sub_(127.5).div_(51.0).contiguous(), None

    files = (rng.choice(paths) for _ in itertools.count())
    builder = PipelineBuilder().add_source(files).pipe(one, concurrency=WORKERS).aggregate(BATCH)
    pipeline = builder.pipe(batch).add_sink(3).build(num_threads=WORKERS)
    pipeline.start()
    return iter(pipeline.get_iterator())


LOADERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    "torchvision, PIL": lambda folder, variant: torch_loader(folder, variant, False),
    "torchvision, v2 tensors": lambda folder, variant: torch_loader(folder, variant, True),
    "webdataset": webdataset_loader,
    "mosaicml-streaming": mosaic_loader,
    "litData": litdata_loader,
    "FFCV": ffcv_loader,
    "SPDL": spdl_loader,
}
ELSEWHERE = ("mosaicml-streaming", "litData", "FFCV", "SPDL")  # of the peers' own environment


def images_of(folder: Path) -> list[Path]:
    """The plain files that a peer's format is made of."""
    return sorted((folder / "files").iterdir())


class Sample:
    """What litData's worker processes call: a number -> its image and label."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __call__(self, number: int) -> dict[str, Any]:
        """One sample."""
        return {"image": self.paths[number].read_bytes(), "label": number % 2}


def write_mosaic(folder: Path, size: int = 1 << 23) -> None:
    """MDS shards of `size` bytes in `folder/mosaic`."""
    import streaming

    columns = {"image": "bytes", "label": "int"}
    with streaming.MDSWriter(out=str(folder / "mosaic"), columns=columns, size_limit=size, hashes=["xxh3_64"]) as out:
        for number, path in enumerate(images_of(folder)):
            out.write({"image": path.read_bytes(), "label": number % 2})


def write_litdata(folder: Path, size: int = 1 << 23) -> None:
    """Chunks of `size` bytes in `folder/litdata`."""
    import litdata

    paths = images_of(folder)
    out = str(folder / "litdata")
    litdata.optimize(
        Sample(paths),
        list(range(len(paths))),
        out,
        chunk_bytes=size,
        num_workers=1,
        start_method="fork",
        verbose=False,
    )


def write_ffcv(folder: Path) -> None:
    """`folder/images.beton`, JPEGs of the same quality."""
    import numpy as np
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter
    from PIL import Image

    paths = images_of(folder)

    class Images:
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, number: int) -> tuple[Any, int]:
            return np.array(Image.open(paths[number])), number % 2

    fields = {"image": RGBImageField(write_mode="jpg", jpeg_quality=QUALITY), "label": IntField()}
    DatasetWriter(str(folder / "images.beton"), fields, num_workers=1).from_indexed_dataset(Images())


WRITERS: dict[str, Callable[..., None]] = {  # (folder), and for the first two the bytes of a shard
    "mosaicml-streaming": write_mosaic,
    "litData": write_litdata,
    "FFCV": write_ffcv,
}
