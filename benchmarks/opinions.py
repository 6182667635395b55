"""CKA and its kin as others have them, on the same features: where they agree with ours, where not.

    python benchmarks/opinions.py [--netrep FOLDER]

Wants rsatoolbox and ckatorch in the environment (pip install rsatoolbox ckatorch), and a checkout of
github.com/ahwillia/netrep for --netrep: none of them is needed by the project. Each row is a number of theirs, the one
of ours that means the same, and their difference; docs/analysis.md has the table with the reasons.
"""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from analysis.opinions import cca, procrustes
from analysis.similarity import batch_hsics, cka_of_hsic, hsic_of_grams, linear_gram


def cka(first: np.ndarray, second: np.ndarray, *, biased: bool = False) -> float:
    return float(cka_of_hsic(hsic_of_grams(np.stack([linear_gram(first), linear_gram(second)]), biased=biased))[0, 1])


def show(what: str, theirs: float, ours: float) -> None:
    print(f"{what:62s} {theirs:9.5f} {ours:9.5f} {theirs - ours:9.1e}", flush=True)


def rsatoolbox_rows(first: np.ndarray, second: np.ndarray) -> None:
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm, compare

    rdms = [calc_rdm(Dataset(side), method="euclidean") for side in (first, second)]
    for method in ("cosine_cov", "corr_cov", "cosine"):
        theirs = float(np.asarray(compare(*rdms, method=method)).item())
        show(f"rsatoolbox {method}, against ours biased", theirs, cka(first, second, biased=True))
        show(f"rsatoolbox {method}, against ours unbiased", theirs, cka(first, second))


def ckatorch_rows(first: np.ndarray, second: np.ndarray, tokens: tuple[np.ndarray, np.ndarray]) -> None:
    import torch
    from ckatorch.core import cka_base, cka_batch

    sides = torch.from_numpy(first), torch.from_numpy(second)
    show("ckatorch cka_base, against ours biased", float(cka_base(*sides)), cka(first, second, biased=True))
    show("ckatorch cka_base unbiased, against ours", float(cka_base(*sides, unbiased=True)), cka(first, second))
    batches = [side[:96].reshape(3, 32, -1) for side in sides]
    hsic = np.mean([hsic_of_grams(np.stack([linear_gram(b[i].numpy()) for b in batches])) for i in range(3)], 0)
    show("ckatorch cka_batch of [batches, images, features]", float(cka_batch(*batches)), cka_of_hsic(hsic)[0, 1])
    flat = [side.reshape(len(side), -1) for side in tokens]
    keyed = cka_of_hsic(batch_hsics(flat, np.arange(len(flat[0])), batch=len(flat[0])).mean(0))[0, 1]
    theirs = float(cka_batch(*map(torch.from_numpy, tokens)))
    show("ckatorch cka_batch of [images, tokens, features], as its CKA()", theirs, keyed)


def netrep_rows(first: np.ndarray, second: np.ndarray) -> None:
    from netrep.metrics import LinearMetric
    from netrep.metrics.cka import LinearCKA

    theirs = float(np.cos(LinearCKA().score(first, second)))
    show("cos of netrep LinearCKA, against ours biased", theirs, cka(first, second, biased=True))
    show("cos of netrep LinearCKA, against ours unbiased", theirs, cka(first, second))
    for name, alpha, ours in (
        ("Procrustes", 1.0, procrustes(first, second)),
        ("mean CCA", 0.0, cca(first, second)["cca_mean"]),
    ):
        metric = LinearMetric(alpha=alpha, center_columns=True, score_method="angular")
        theirs = float(np.cos(metric.fit(first, second).score(first, second)))
        show(f"cos of netrep {name} (LinearMetric alpha={alpha:g})", theirs, ours)


def main(args: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")
    if args.netrep is not None:
        sys.path.insert(0, str(args.netrep))
    state = np.random.RandomState(1337)
    small = state.randn(100, 10)
    related = small, state.randn(100, 10) + small
    generator = np.random.default_rng(0)
    unrelated = generator.normal(size=(100, 384)), generator.normal(size=(100, 384))
    base = generator.normal(size=(24, 16, 8))
    tokens = base, base[:, ::-1] + generator.normal(size=base.shape)
    print(f"{'':62s} {'theirs':>9s} {'ours':>9s} {'apart':>9s}")
    for name, pair in (("related, 100 images of 10", related), ("unrelated, 100 images of 384", unrelated)):
        print(name)
        rsatoolbox_rows(*pair)
        ckatorch_rows(*pair, tokens)
        if args.netrep is not None:
            netrep_rows(*pair)


if __name__ == "__main__":
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--netrep", type=Path, help="a checkout of netrep; without it, its rows are left out")
    main(made.parse_args())
