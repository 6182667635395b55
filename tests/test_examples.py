"""The examples: configs that the trainer takes, a notebook that runs top to bottom."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from prep.tables import read_table
from shards.checking import check_set
from shards.shardset import ShardSet
from train import ds_settings

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"


@pytest.mark.parametrize(
    ("name", "batch", "stage", "precision"),
    [("cpu", 16, 0, "fp32"), ("gpu", 64, 0, "bf16"), ("8gpus-zero1-bf16", 512, 1, "bf16")],
)
def test_ds_configs_say_what_their_names_say(name: str, batch: int, stage: int, precision: str):
    settings = ds_settings.read(EXAMPLES / "ds_config" / f"{name}.json")
    assert (settings.train_batch_size, settings.stage, settings.precision) == (batch, stage, precision)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # jupyter's own
def test_the_tour_runs_top_to_bottom(monkeypatch: pytest.MonkeyPatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook, timeout=280, kernel_name="python3", resources={"metadata": {"path": os.fspath(EXAMPLES)}}
    )
    client.execute()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_folder_of_ones_own_from_the_package_registry(tmp_path: Path):
    """The commands of docs/datasets.md for PyPI's elpv-dataset, as they stand there. Wants the package registry."""
    page = (ROOT / "docs" / "datasets.md").read_text()
    (block,) = [text for text in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if "elpv" in text]
    (tmp_path / "prep").symlink_to(ROOT / "prep")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2624 images") == 1 and "2624 samples whole, every image decodes" in done.stdout
    assert (tmp_path / "elpv.png").stat().st_size > 10_000
    folder = tmp_path / "data" / "shards" / "elpv"
    assert check_set(folder) == []
    table = {row["path"]: row["defect"] for _, row in read_table(tmp_path / "data/raw/elpv/table.csv", ("path",))}
    with (folder.with_name("elpv.private") / "sources.csv").open() as file:
        sources = {row["key"]: row["source"] for row in csv.DictReader(file)}
    shard_set = ShardSet(folder)
    assert shard_set.classes == ["0.00", "0.33", "0.67", "1.00"]
    for name in shard_set.split_names:
        split = shard_set.split(name)
        told = [shard_set.classes[label] for label in split.labels()]
        assert told == [table[sources[split.key(position)]] for position in range(split.num_samples)]
