"""Weights files and what `open_run` opens. Run: pytest tests/test_rundir.py"""

import json
import math
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from shards.shardset import ShardSet
from train.config_file import load
from train.models import create
from train.rundir import WeightsInfo, open_run, read_weights, save_weights

MODEL = "test_resnet"


def info_of(shards: Path) -> WeightsInfo:
    config = load({}, {"shards": str(shards), "model": MODEL, "start": "ri", "image_size": "48"})
    digest = ShardSet(shards).manifest.digest
    names = ("kind0", "kind1", "kind2")
    return WeightsInfo(MODEL, 3, 3, 48, names, (0.5,) * 3, (0.2,) * 3, digest, config.model_dump(mode="json"))


@pytest.fixture
def run_folder(tmp_path: Path, tiny_set: Path) -> Path:
    """A run directory as the trainer leaves it."""
    folder, info = tmp_path / "run", info_of(tiny_set)
    (folder / "weights").mkdir(parents=True)
    for number, name in enumerate(("init", "best", "last")):
        save_weights(folder / "weights" / f"{name}.safetensors", create(MODEL, 3, seed=number).state_dict(), info)
    (folder / "config.json").write_text(
        json.dumps({"config": dict(info.config), "manifest_digest": info.manifest_digest})
    )
    (folder / "results.json").write_text('{"test": {"roc_auc": null, "accuracy": 0.25}, "val": null}')
    return folder


def test_timm_loads_the_weights_strictly_without_our_code(run_folder: Path) -> None:
    model = timm.create_model(MODEL, num_classes=3)
    model.load_state_dict(load_file(run_folder / "weights" / "best.safetensors"), strict=True)
    timm.create_model(MODEL, num_classes=3, checkpoint_path=str(run_folder / "weights" / "best.safetensors"))


def test_metadata_comes_back(run_folder: Path, tiny_set: Path) -> None:
    _, metadata = read_weights(run_folder / "weights" / "init.safetensors")
    assert WeightsInfo.parse(metadata, "x") == info_of(tiny_set)


def test_a_run_directory(run_folder: Path, tiny_set: Path) -> None:
    run = open_run(run_folder)
    assert (run.name, run.out_dir, run.info.model) == ("run", run_folder / "analysis", MODEL)
    assert run.shards.path.samefile(tiny_set)
    assert run.config is not None and run.config.data.image_size == 48
    run.build_model().load_state_dict(run.end_state(), strict=True)
    for which, seed in (("init", 0), ("best", 1), ("last", 2)):
        expected = create(MODEL, 3, seed=seed).state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in run.end_state(which).items())  # type: ignore[arg-type]
    assert torch.equal(run.init_state()["conv1.0.weight"], create(MODEL, 3, seed=0).state_dict()["conv1.0.weight"])
    assert math.isnan(run.results()["test"]["roc_auc"])
    assert run.results()["val"] is None


def test_a_weights_file_inside_a_run_knows_its_start(run_folder: Path) -> None:
    run = open_run(run_folder / "weights" / "last.safetensors")
    assert run.out_dir == run_folder / "analysis" / "last"  # the best weights' results stay what they are
    assert open_run(run_folder / "weights" / "best.safetensors").out_dir == run_folder / "analysis"
    assert set(run.init_state()) == set(run.end_state())


def test_a_weights_file_alone(run_folder: Path, tmp_path: Path, tiny_set: Path) -> None:
    path = tmp_path / "alone.safetensors"
    path.write_bytes((run_folder / "weights" / "best.safetensors").read_bytes())
    run = open_run(path)
    assert run.out_dir == tmp_path / "alone-analysis"
    assert run.shards.num_classes == 3
    with pytest.raises(ValueError, match="no start"):
        run.init_state()


def test_foreign_weights_want_a_model(tmp_path: Path, tiny_set: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file(create(MODEL, 3).state_dict(), path)
    with pytest.raises(ValueError, match="--model"):
        open_run(path, tiny_set)
    run = open_run(path, tiny_set, MODEL)
    assert (run.info.num_classes, run.info.in_chans, run.info.classes) == (3, 3, ("kind0", "kind1", "kind2"))
    run.build_model().load_state_dict(run.end_state(), strict=True)
    with pytest.raises(ValueError, match="is it of"):
        open_run(path, tiny_set, "test_vit")


def test_a_foreign_file_may_name_its_model_itself(tmp_path: Path, tiny_set: Path) -> None:
    path = tmp_path / "named.safetensors"
    said = {"model": MODEL, "num_classes": "3", "in_chans": "3", "source": "elsewhere"}  # as train/lite0.py writes
    save_file(create(MODEL, 3).state_dict(), path, metadata=said)
    for name in (None, MODEL):
        run = open_run(path, tiny_set, name)
        assert run.info.model == MODEL
        run.build_model().load_state_dict(run.end_state(), strict=True)
    save_file(create(MODEL, 7).state_dict(), path, metadata=said)
    with pytest.raises(ValueError, match=r"has 3 channels and 3 classes, .*named\.safetensors takes 3 and 7: give a"):
        _ = open_run(path, tiny_set).shards


def test_torch_files_of_others_open_under_their_own_names(tmp_path: Path, tiny_set: Path) -> None:
    model = create(MODEL, 3)
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "a.pth"
    )
    run = open_run(tmp_path / "a.pth", tiny_set, MODEL)
    assert (run.info.num_classes, run.info.in_chans, run.name) == (3, 3, "a")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in run.end_state().items())
    state = model.state_dict()
    lost = next(name for name in state if name.startswith("layer1") and name.endswith("bn1.weight"))
    torch.save({name: value for name, value in state.items() if name != lost}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=rf"b\.pth does not hold all of test_resnet: it lacks {re.escape(lost)}"):
        open_run(tmp_path / "b.pth", tiny_set, MODEL).end_state()


def test_a_deepspeed_checkpoint_folder(run_folder: Path, tmp_path: Path, tiny_set: Path) -> None:
    folder = run_folder / "checkpoints" / "step-00000004"
    folder.mkdir(parents=True)
    state = create(MODEL, 3, seed=5).state_dict()
    torch.save({"module": state}, folder / "mp_rank_00_model_states.pt")
    (folder.parent / "latest").write_text(folder.name)
    for path in (folder, folder.parent):
        run = open_run(path)
        assert torch.equal(run.end_state()["conv1.0.weight"], state["conv1.0.weight"])
        assert set(run.init_state()) == set(state)
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    assert open_run(moved, tiny_set, MODEL).info.num_classes == 3


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, tiny_set: Path) -> None:
    torch.save({"module": {"w": Path("x")}}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match="cannot be read safely"):
        open_run(tmp_path, tiny_set, MODEL)


def test_a_set_that_does_not_fit_is_refused(run_folder: Path, tmp_path: Path, make_set) -> None:  # type: ignore[no-untyped-def]
    other = make_set(tmp_path / "grey", channels=1, train=4, val=0, test=0, name="grey")
    with pytest.raises(ValueError, match="1 channels and 3 classes"):
        _ = open_run(run_folder, other.path).shards


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "text"])
def test_other_things_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing.safetensors" if kind == "text" else tmp_path / "thing"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no tensors here")
    with pytest.raises(ValueError, match="thing") as caught:
        open_run(path)
    assert "\n" not in str(caught.value)
