"""pytest -m slow tests/test_benchmarks.py

Every benchmark that needs no run and no peer's environment, at its smallest: it still works, and prints its figures.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, texture

ROOT = Path(__file__).parents[1]
SMALL = [  # arguments, and what its figures look like
    ("consumers.py patches --rounds 1 --seconds 0.2", r"at 96 px: \d+ images/s"),
    ("consumers.py originals --photos {photos} --rounds 1 --seconds 0.2", r"at 256 px \d+: \d+ times"),
    ("consumers.py paced --photos {photos} --rounds 1 --seconds 0.2", r"waited [\d.]+% of the time"),
    ("consumers.py memory --batches 4", r"batch 4: \d+ MB resident"),
    ("conversion.py --photos 60 --patches 60 --loop 20 --rounds 1", r"jpeg"),
    ("interruptions.py --kills 1 --images 12", r"all \d+ sets equal .*: True"),
    ("loaders.py --photos {photos} --samples 300 --rounds 1 --seconds 0.2 --only ours,+host", r"ours, host"),
    ("original_chain.py {photos} --images 1", r"stored at 512 px, training: mean [\d.]+"),
    ("parity.py {photos} --images 1", r"\| .*ColorJitter"),
    ("plan.py --samples 1000000 --shards 1000", r"samples"),
    ("resumption.py --samples 600 --rounds 1", r"windowed.*[\d.]+"),
    ("walk.py --samples 1600 --shard-size 50 --rounds 1", r"remote.*[\d.]+"),
    ("analysis.py --only cka,knn --images 8 --bank 300 --queries 20 --repeats 1", r'"what": "knn"'),
    ("analysis.py --only memory --samples 200 --layers 2 --width 16", r'"what": "memory"'),
    (
        "gpu.py --photos {photos} --device cpu --models test_vit --batch 8 --samples 64 --rounds 1 --seconds 0.2",
        r"stall",
    ),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three photographs larger than what is stored."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(3):
        (folder / f"{n}.jpg").write_bytes(encode(texture(n, 700, 900, 3, rng), "jpeg"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("command", "figures"), SMALL, ids=[command.split(" --")[0] for command, _ in SMALL])
def test_a_benchmark_runs_small(command: str, figures: str, photos: Path) -> None:
    script, *options = (word.replace("+", " ") for word in command.format(photos=photos).split())
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *options], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(figures, done.stdout), done.stdout
