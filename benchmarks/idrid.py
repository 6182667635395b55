"""Does transfer help on real photographs? tf_efficientnet_lite0 on IDRiD, from ImageNet weights (WT), from their
means and variances alone (ST) and from random starts (RI).

    python prep/make_shards.py --dataset IDRiD --raw DIR --out data/shards/IDRiD
    python train/lite0.py data/weights/lite0.safetensors
    python benchmarks/idrid.py --shards data/shards/IDRiD --weights data/weights/lite0.safetensors --seeds 5

Writes runs below --out (a run that is done is not done again) and prints the test quadratic kappa of each with medians,
means and standard deviations. About 4 minutes a run on one core; --parallel runs go side by side, a thread each.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "--model tf_efficientnet_lite0 --image-size 128 --epochs 8 --global-batch 16 --lr 5e-4 --threads 1"


def train(start: str, seed: int, args: argparse.Namespace) -> float:
    """Test quadratic kappa of one run."""
    name = f"idrid-{start}-{seed}"
    results = args.out / name / "results.json"
    if not results.is_file():
        command = [sys.executable, ROOT / "train" / "run.py"]
        if results.parent.is_dir():  # interrupted
            command += ["--resume", results.parent]
        else:
            command += ["--shards", args.shards, *RECIPE.split(), "--start", start, "--seed", str(seed)]
            command += ["--out", args.out, "--name", name, *(["--weights", args.weights] if start != "ri" else [])]
        settings = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
        subprocess.run([str(part) for part in command], check=True, env=os.environ | settings)
    return json.loads(results.read_text())["test"]["quadratic_kappa"]


def main(args: argparse.Namespace) -> None:
    """Train all, print the table."""
    with ThreadPoolExecutor(args.parallel) as pool:
        waiting = {
            start: [pool.submit(train, start, seed, args) for seed in range(args.seeds)] for start in ("wt", "st", "ri")
        }
        kappas = {start: [future.result() for future in futures] for start, futures in waiting.items()}
    print("| start | test quadratic kappa by seed | median | mean ± SD |\n|---|---|---|---|")
    for start, values in kappas.items():
        spread = f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        print(f"| {start} | {', '.join(f'{v:.3f}' for v in values)} | {statistics.median(values):.3f} | {spread} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True, help="shard set of IDRiD")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights for timm's tf_efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs (default runs)")
    parser.add_argument("--seeds", type=int, default=5, help="runs a start (default 5)")
    parser.add_argument("--parallel", type=int, default=2, help="runs side by side, one thread each (default 2)")
    main(parser.parse_args())
