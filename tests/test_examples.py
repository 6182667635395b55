"""The examples: configs that the trainer takes, a notebook that runs top to bottom."""

import os
from pathlib import Path

import pytest

from train import ds_settings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


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
