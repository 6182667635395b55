"""What the pipelines make on one GPU, and how much of a training step is lost to waiting for data there.

    python benchmarks/gpu.py --photos FOLDER
    python benchmarks/gpu.py --photos FOLDER --device cpu --models test_vit --batch 16 --seconds 1      (without one)

Writes every .jpg under FOLDER at 256 and 512 px short side (JPEG q90) as shard sets. First the public Loader alone, as
`--executor auto` chooses on the device (on a GPU DALI, decode `mixed`): images a second, `light` and `full`, at 224 px.
Then a step (forward, backward, SGD; bf16 autocast on a GPU, channels last) of each model on one cached batch and on the
Loader's, in turn in each round: the share of data stall is 1 - cached / fed, by the medians of the rounds. Prints the
device's name, versions and two tables of Markdown, which are recorded in benchmarks/README.md. Three minutes on a GPU.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import timm
import torch
from loaders import COLUMNS, photographs, write
from peers import SCALE, SIZE

from shards.loader import Batch, Loader
from shards.shardset import ShardSet
from shards.transforms import train_transform

WARM = 8
MODELS = ("resnet50.tv_in1k", "deit_small_patch16_224.fb_in1k")
PACKAGES = ("torch", "timm", "nvidia-dali-cuda130", "nvidia-dali-cuda120")


def loader_of(folder: Path, variant: str, args: argparse.Namespace) -> Loader:
    """The public Loader as a training has it."""
    transform = train_transform(SIZE, [0.5] * 3, [0.2] * 3, scale=SCALE, preset=variant)
    split = ShardSet(folder / "set").split("train")
    return Loader(split, transform, global_batch=args.batch, threads=args.threads, device=args.device)


def settle(device: str) -> None:
    """Wait for what the GPU still has to do."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(one: Callable[[], None], args: argparse.Namespace) -> float:
    """Seconds a call, over at least `--seconds`, after the first few."""
    for _ in range(WARM):
        one()
    settle(args.device)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < args.seconds or count < 2:
        one()
        count += 1
        if count % 16 == 0:
            settle(args.device)  # else the host runs ahead of the clock
    settle(args.device)
    return (time.perf_counter() - begun) / count


def rate(folder: Path, variant: str, args: argparse.Namespace) -> float:
    """Images a second of the Loader, nobody else at work."""
    loader = loader_of(folder, variant, args)
    batches = iter(loader)

    def one() -> None:
        next(batches)

    seconds = timed(one, args)
    loader.close()
    return args.batch / seconds


def stepper(name: str, args: argparse.Namespace) -> Callable[[Batch], None]:
    """One training step of a model that starts at random."""
    model = timm.create_model(name, num_classes=2, img_size=SIZE) if "vit" in name else timm.create_model(name)
    model = model.to(args.device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    kind = torch.device(args.device).type

    def step(batch: Batch) -> None:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
            loss = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def stall(name: str, folder: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step on a cached batch, and on the Loader's."""
    step, cached, fed = stepper(name, args), list[float](), list[float]()
    loader = loader_of(folder, "full", args)
    batches: Iterator[Batch] = iter(loader)
    held = next(batches)
    for _ in range(args.rounds):
        cached.append(timed(lambda: step(held), args))
        fed.append(timed(lambda: step(next(batches)), args))
    loader.close()
    return statistics.median(cached), statistics.median(fed)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder with .jpg photographs of 512 px or more")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a trial (default cuda)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="of timm")
    parser.add_argument("--samples", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=min(8, len(os.sched_getaffinity(0))))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, after the warm-up")
    args = parser.parse_args(argv)
    if not args.photos.is_dir():
        parser.error(f"--photos {args.photos} is no folder: give one with .jpg photographs")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device is found here: --device cpu tries the script without one")
    on_gpu = args.device.startswith("cuda")
    name = torch.cuda.get_device_name(args.device) if on_gpu else "CPU, a trial: no figure of a GPU"
    installed = {each.name: each.version for each in metadata.distributions()}
    print(f"{name}; {args.threads} threads; {', '.join(f'{p} {installed[p]}' for p in PACKAGES if p in installed)}\n")
    with tempfile.TemporaryDirectory(prefix="gpu-") as place:
        for side in dict.fromkeys(side for side, _ in COLUMNS):
            write(Path(place) / str(side), photographs(args.photos, side), args.samples)
        print(f"| images/s | {' | '.join(f'{side} {variant}' for side, variant in COLUMNS)} |")
        print("|" + "---|" * (1 + len(COLUMNS)))
        cells = [f"{rate(Path(place) / str(side), variant, args):.0f}" for side, variant in COLUMNS]
        print(f"| {name} | {' | '.join(cells)} |\n", flush=True)
        print("| step, 256 full | cached batch, ms | fed by the Loader, ms | data stall |\n|---|---|---|---|")
        for model in args.models:
            cached, fed = stall(model, Path(place) / "256", args)
            print(f"| {model} | {1e3 * cached:.1f} | {1e3 * fed:.1f} | {1 - cached / fed:.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
