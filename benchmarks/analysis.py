"""The analyses against the same work done the published way, in one run; and what memory they take.

    python benchmarks/analysis.py [--only cka,reinit,knn,memory] [--images 64] [--samples 20000] [--threads 2]

CKA: DeiT-S, 25 taps (both branches of each block, and the patch embedding), one batch of unpooled tokens, the study's
three matrices. The published way makes two Gram matrices for every pair of layers and centres both; ours makes each
layer's once and takes one product. k-NN: weighted, k = 200, against scikit-learn's brute force in float64.
Re-initialisation of all layer groups of DeiT-S: forward time against plain repeated passes, and the whole run with
decoding against a pass over the images for every group. Memory: a synthetic bank of --samples x --layers x --width is
extracted, searched and compared; peak anonymous memory (what is mapped from disk may go at any time). Weights and
features are random: time does not depend on them. CPU seconds stand beside those of the clock.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file bears the package's name and would shadow it

import cv2
import numpy as np
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from analysis import reinit as reinit_script
from analysis.banks import open_bank
from analysis.cka import frame
from analysis.flags import parser
from analysis.grams import grams
from analysis.replay import Replay, exchanged
from analysis.session import Session
from analysis.similarity import cka_of_hsic, hsic_of_grams, hsic_of_layers, linear_gram
from shards.sets import write_set
from shards.writer import Sample
from train.config import Config
from train.hooks import tapped
from train.knn import knn_probabilities
from train.layers import layer_groups
from train.models import create
from train.rundir import WeightsInfo, save_weights


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of the clock and of the CPU of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        work()
        seconds.append((time.perf_counter() - start, time.process_time() - cpu))
    clock, cpu = np.median(seconds, axis=0)
    return float(clock), float(cpu)


def compared(ours: tuple[float, float], other: tuple[float, float], name: str) -> dict[str, float]:
    """Both, and how many times as fast ours is, by the clock and by the CPU."""
    return {
        "ours_s": ours[0], f"{name}_s": other[0], "times": other[0] / ours[0],
        "ours_cpu_s": ours[1], f"{name}_cpu_s": other[1], "times_cpu": other[1] / ours[1],
    }  # fmt: skip


def tokens(images: int) -> list[list[torch.Tensor]]:
    """Activations of 25 taps of two states of DeiT-S."""
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = timm.create_model("deit_small_patch16_224").eval()
        taps = {"embed": model.patch_embed}
        for i, block in enumerate(model.blocks):
            taps |= {f"{i}.attn": block.attn, f"{i}.mlp": block.mlp}
        batch = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(7))
        with tapped(taps) as outputs, torch.inference_mode():
            model(batch)
            states.append([outputs[name] for name in taps])
    return states


def published(first: list[torch.Tensor], second: list[torch.Tensor]) -> np.ndarray:
    """Debiased CKA of all pairs: two float32 Gram matrices a pair, each checked, centred in float64, correlated."""

    def centred(flat: torch.Tensor) -> torch.Tensor:
        gram = torch.mm(flat, flat.T)
        if not torch.allclose(gram, gram.T):
            raise ValueError("not symmetric")
        gram, n = gram.double().fill_diagonal_(0), len(gram)
        means = gram.sum(0) / (n - 2)
        means -= means.sum() / (2 * (n - 1))
        return (gram - means[:, None] - means[None]).fill_diagonal_(0)

    matrix = np.empty((len(first), len(second)))
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            k, other = centred(left.flatten(1)), centred(right.flatten(1))
            matrix[i, j] = float(torch.dot(k.ravel(), other.ravel()) / (k.norm() * other.norm()))
    return matrix


def cka(images: int, repeats: int) -> dict[str, float]:
    """Seconds of the three matrices both ways, and how far each is from float64."""
    start, end = tokens(images)

    def ours() -> np.ndarray:
        return cka_of_hsic(hsic_of_grams(grams([*start, *end])))

    ours()  # threads and libraries are found
    fast = timed(ours, 3 * repeats)
    theirs: list[np.ndarray] = []
    slow = timed(lambda: theirs.extend(published(*p) for p in ((start, start), (end, start), (end, end))), 1)
    exact = cka_of_hsic(hsic_of_grams(np.stack([linear_gram(layer.numpy()) for layer in (*start, *end)])))
    n = len(start)
    cut = [(m[:n, :n], m[n:, :n], m[n:, n:]) for m in (ours(), exact)]
    apart = {
        "largest_error": max(float(np.abs(a - b).max()) for a, b in zip(*cut, strict=True)),
        "published_largest_error": max(float(np.abs(a - b).max()) for a, b in zip(theirs, cut[1], strict=True)),
    }
    return {**compared(fast, slow, "published"), **apart}


def knn(bank: int, queries: int, repeats: int) -> dict[str, float]:
    """Seconds of k-NN both ways on `bank` x 384, and how far the probabilities are apart."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(bank + queries, 384)).astype(np.float32)
    labels = generator.integers(0, 5, bank)
    rows, asked = features[:bank], features[bank:]

    def ours() -> np.ndarray:
        return knn_probabilities(rows, labels, asked, num_classes=5)

    def theirs() -> np.ndarray:
        oracle = KNeighborsClassifier(200, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.1))
        return oracle.fit(np.float64(rows), labels).predict_proba(np.float64(asked))

    apart = float(np.abs(ours() - theirs()).max())
    return {**compared(timed(ours, repeats), timed(theirs, repeats), "sklearn"), "largest_difference": apart}


def reinit(images: int) -> dict[str, float]:
    """Seconds of one batch through DeiT-S with every group exchanged in turn, with and without kept beginnings."""
    model = timm.create_model("deit_small_patch16_224").eval()
    groups, state = layer_groups(model), {key: value.clone() for key, value in model.state_dict().items()}
    exchanges = {group: {key: state[key] for key in keys} for group, keys in groups.items()}
    batch = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    found = []
    for reuse in (True, False):
        replay = Replay(model, groups, reuse=reuse)
        found.append(timed(lambda replay=replay: list(replay.run(batch, exchanges)), 1))
    return {**compared(*found, "plain"), "groups": len(groups)}


def reinit_whole(images: int) -> dict[str, float]:
    """Seconds of the script's work on a run, decoding and metrics included, and of a pass a group over the images."""
    with tempfile.TemporaryDirectory() as folder:
        session = run_of(Path(folder), images)
        start = session.state("start")
        exchanges = {group: {key: start[key] for key in keys} for group, keys in session.groups.items()}
        ours = timed(lambda: reinit_script.exchanged_metrics(session, exchanges), 1)
        model = session.holding("end")

        def plain() -> None:
            for tensors in ({}, *exchanges.values()):
                with exchanged(model, tensors), torch.no_grad():
                    for batch in session.loader(session.split()):
                        model(batch.images)

        return {**compared(ours, timed(plain, 1), "plain"), "images": images}


def run_of(folder: Path, images: int) -> Session:
    """A run of DeiT-S on photographs of noise, 1024 px."""
    generator, samples = np.random.default_rng(0), []
    for number in range(images):
        small = generator.integers(0, 255, (64, 64, 3), np.uint8)
        data = cv2.imencode(".jpg", cv2.resize(small, (1024, 1024)))[1].tobytes()
        key = f"{number:08d}-{number * 2654435761 % 2**32:08x}"
        samples.append(Sample("test", key, data, "jpeg", (number % 2,), 1024, 1024, number))
    levels = ([0.5] * 3, [0.25] * 3)
    shards = write_set(
        folder / "set", samples, name="noise", classes=["a", "b"], channels=3, task="single-label", mean=levels[0],
        std=levels[1],
    )  # fmt: skip
    name, manifest = "deit_small_patch16_224", shards.manifest
    content = Config.model_validate({"data": {"shards": str(shards.path)}, "model": {"model": name}})
    info = WeightsInfo(
        name, 2, 3, 224, tuple(shards.classes), tuple(manifest.mean), tuple(manifest.std), manifest.digest,
        content.model_dump(mode="json"),
    )  # fmt: skip
    (folder / "run" / "weights").mkdir(parents=True)
    (folder / "run" / "config.json").write_text(json.dumps({"format": 1, "config": content.model_dump(mode="json")}))
    for seed, state in enumerate(("init", "best")):
        save_weights(
            folder / "run" / "weights" / f"{state}.safetensors", create(name, 2, 3, seed=seed).state_dict(), info
        )
    return Session(parser("").parse_args([str(folder / "run"), "--batch", "16"]))


class Peak:
    """Largest anonymous memory of this process while the block runs, in GB above what there was."""

    def __enter__(self) -> "Peak":
        self.before, self.most, self.done = self._now(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.most = max(self.most, self._now() - self.before)

    def _now(self) -> float:
        text = Path("/proc/self/status").read_text()
        return int(text.split("RssAnon:")[1].split()[0]) * 1024 / 1e9


def memory(samples: int, layers: int, width: int) -> dict[str, float]:
    """Peak GB and seconds of extraction, k-NN of one layer, CKA of all layers, and the frame of one value."""
    model = nn.Module()
    model.taps = nn.ModuleList(nn.Linear(16, width) for _ in range(layers))
    model.forward = lambda images: [tap(images) for tap in model.taps][-1]

    def batches(consumed: int) -> Iterator[tuple[torch.Tensor, ...]]:
        generator = torch.Generator().manual_seed(1)
        for first in range(consumed, samples, 1000):
            ids = torch.arange(first, min(first + 1000, samples))
            yield torch.randn(len(ids), 16, generator=generator), ids % 5, ids, torch.ones(len(ids), dtype=torch.bool)

    found: dict[str, float] = {"bank_GB": samples * layers * width * 4 / 1e9}
    with tempfile.TemporaryDirectory() as folder:
        taps = {str(i): tap for i, tap in enumerate(model.taps)}
        bank = None

        def note(name: str, work: Callable[[], object]) -> None:
            with Peak() as peak:
                seconds, cpu = timed(work, 1)
            found.update({f"{name}_GB": peak.most, f"{name}_s": seconds, f"{name}_cpu_s": cpu})
            print(json.dumps({"so far": found}), file=sys.stderr, flush=True)

        note("extract", lambda: open_bank(Path(folder), {"of": "noise"}, model, taps, batches, samples))
        bank = open_bank(Path(folder), {"of": "noise"}, model, taps, batches, samples)
        arrays = list(bank.layers.values())
        note("knn", lambda: knn_probabilities(arrays[0], bank.labels, arrays[0][:2000], num_classes=5))
        note("cka", lambda: hsic_of_layers(arrays))
        note("frame", lambda: frame(arrays[0], arrays[1], 0))
    return found


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    print(json.dumps({"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__, **vars(args)}))
    for name, work in (
        ("cka", lambda: cka(args.images, args.repeats)),
        ("knn", lambda: knn(args.bank, args.queries, args.repeats)),
        ("reinit", lambda: reinit(min(args.images, 16))),
        ("reinit whole", lambda: reinit_whole(min(args.images, 16))),
        ("memory", lambda: memory(args.samples, args.layers, args.width)),
    ):
        if args.only is None or name.split()[0] in args.only.split(","):
            print(json.dumps({"what": name, **work()}), flush=True)


if __name__ == "__main__":
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--only", help="some of cka, knn, reinit, memory, by commas; default: all")
    made.add_argument("--images", type=int, default=64, help="images of the CKA batch")
    made.add_argument("--bank", type=int, default=20_000)
    made.add_argument("--queries", type=int, default=2_000)
    made.add_argument("--samples", type=int, default=20_000, help="images of the memory test")
    made.add_argument("--layers", type=int, default=25)
    made.add_argument("--width", type=int, default=384)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=2)
    main(made.parse_args())
