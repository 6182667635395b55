"""The analyses against the same work done the published way, in one run.

    python benchmarks/analysis.py [--images 64] [--bank 20000] [--queries 2000] [--threads 2]

CKA: DeiT-S, 25 taps (both branches of each block, and the patch embedding), one batch of unpooled tokens, the study's
three matrices. The published way makes two Gram matrices for every pair of layers; ours makes each layer's once and
takes one product. k-NN: weighted, k = 200, against scikit-learn's brute force in float64. Re-initialisation: forward
time of all layer groups, against plain repeated passes. Weights and features are random: time does not depend on them.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this file bears the package's name and would shadow it

import numpy as np
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier

from analysis.replay import Replay
from analysis.similarity import cka_of_hsic, hsic_of_grams
from analysis.tokens import gram
from train.hooks import tapped
from train.knn import knn_probabilities
from train.layers import layer_groups


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


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
        with tapped(model, taps) as outputs, torch.inference_mode():
            model(batch)
            states.append([outputs[name] for name in taps])
    return states


def published(first: list[torch.Tensor], second: list[torch.Tensor]) -> np.ndarray:
    """Debiased CKA of all pairs, two Gram matrices a pair."""

    def hsic(k: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        n = len(k)
        ones = torch.ones(n, 1, dtype=k.dtype)
        middle = (ones.T @ k @ ones) * (ones.T @ other @ ones) / ((n - 1) * (n - 2))
        return (torch.trace(k @ other) + middle - 2 / (n - 2) * (ones.T @ k @ other @ ones)) / (n * (n - 3))

    matrix = np.empty((len(first), len(second)))
    for i, left in enumerate(first):
        x = left.flatten(1)
        k = (x @ x.T).fill_diagonal_(0)
        own = hsic(k, k)
        for j, right in enumerate(second):
            y = right.flatten(1)
            other = (y @ y.T).fill_diagonal_(0)
            matrix[i, j] = float(hsic(k, other) / (own * hsic(other, other)).sqrt())
    return matrix


def cka(images: int, repeats: int) -> dict[str, float]:
    """Seconds of the three matrices both ways, and how far they are apart."""
    start, end = tokens(images)

    def ours() -> np.ndarray:
        return cka_of_hsic(hsic_of_grams(np.stack([gram(layer) for layer in (*start, *end)])))

    fast = timed(ours, repeats)
    begun = time.perf_counter()
    theirs = [published(*pair) for pair in ((start, start), (end, start), (end, end))]
    slow = time.perf_counter() - begun
    n, found = len(start), ours()
    mine = (found[:n, :n], found[n:, :n], found[n:, n:])
    apart = max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
    return {"ours_s": fast, "published_s": slow, "times": slow / fast, "largest_difference": apart}


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

    fast, slow = timed(ours, repeats), timed(theirs, 1)
    apart = float(np.abs(ours() - theirs()).max())
    return {"ours_s": fast, "sklearn_s": slow, "times": slow / fast, "largest_difference": apart}


def reinit(images: int) -> dict[str, float]:
    """Seconds of one batch through DeiT-S with every group exchanged in turn, with and without kept beginnings."""
    model = timm.create_model("deit_small_patch16_224").eval()
    groups, state = layer_groups(model), {key: value.clone() for key, value in model.state_dict().items()}
    exchanges = {group: {key: state[key] for key in keys} for group, keys in groups.items()}
    batch = torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(7))
    seconds = {}
    for name, reuse in (("ours_s", True), ("plain_s", False)):
        replay = Replay(model, groups, reuse=reuse)
        seconds[name] = timed(lambda replay=replay: list(replay.run(batch, exchanges)), 1)
    return {**seconds, "groups": len(groups), "times": seconds["plain_s"] / seconds["ours_s"]}


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    print(json.dumps({"torch": torch.__version__, "timm": timm.__version__, "numpy": np.__version__, **vars(args)}))
    for name, work in (
        ("cka", lambda: cka(args.images, args.repeats)),
        ("reinit", lambda: reinit(min(args.images, 16))),
        ("knn", lambda: knn(args.bank, args.queries, args.repeats)),
    ):
        print(json.dumps({"what": name, **work()}), flush=True)


if __name__ == "__main__":
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--images", type=int, default=64, help="images of the CKA batch")
    made.add_argument("--bank", type=int, default=20_000)
    made.add_argument("--queries", type=int, default=2_000)
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--threads", type=int, default=2)
    main(made.parse_args())
