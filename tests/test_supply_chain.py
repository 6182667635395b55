"""Nothing that comes with data, weights or a package list can run or slip in."""

import ast
import io
import os
import pickle
import re
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from shards.foreign import index_foreign
from shards.shardset import ShardSet
from train.rundir import read_deepspeed
from train.weights import read_state

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("prep", "shards", "train", "analysis")
FORBIDDEN = {"eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load", "marshal.loads", "joblib.load"}


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def bomb_file(tmp_path: Path, name: str) -> tuple[Path, Path]:
    marker, path = tmp_path / "ran", tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"fc.weight": torch.zeros(2, 2)}, "module": Bomb(marker)}, path)
    return path, marker


def test_the_bomb_is_live(tmp_path: Path):
    path, marker = bomb_file(tmp_path, "weights.pth")
    torch.load(path, weights_only=False)
    assert marker.exists()
    marker.unlink()
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def test_foreign_weights_run_nothing(tmp_path: Path):
    path, marker = bomb_file(tmp_path, "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth"):
        read_state(path)
    assert not marker.exists()


def test_a_foreign_deepspeed_folder_runs_nothing(tmp_path: Path):
    _, marker = bomb_file(tmp_path, "step-1/mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match="cannot be read safely"):
        read_deepspeed(tmp_path / "step-1")
    assert not marker.exists()


def test_what_lies_in_an_archive_runs_nothing(tiny_set: Path, tmp_path: Path):
    """webdataset's own decoders unpickle .pyd and .pickle members, and load .pth; ours index and read such a tar."""
    marker, image = tmp_path / "ran", ShardSet(tiny_set).split("train").read(0)
    bombs = {".pyd": pickle.dumps(Bomb(marker)), ".pickle": pickle.dumps(Bomb(marker)), ".pth": b""}
    bombs[".pth"] = bomb_file(tmp_path / "aside", "weights.pth")[0].read_bytes()
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "train-000000.tar", "w") as tar:
        for key in ("a", "b"):
            for ending, data in ((".jpg", bytes(image)), (".cls", b"1"), *bombs.items()):
                member = tarfile.TarInfo(f"{key}{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    index_foreign(tmp_path / "set", classes=["no", "yes"])
    split = ShardSet(tmp_path / "set").split("train")
    assert split.num_samples == 2 and bytes(split.read(1)) == bytes(image)
    assert not marker.exists() and not (tmp_path / "aside" / "ran").exists()


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("room", ROOMS)
def test_no_call_that_could_run_what_was_read(room: str):
    for path in sorted((ROOT / room).rglob("*.py")):
        for name, node in calls(path):
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            options = {option.arg: option.value for option in node.keywords}
            assert name not in FORBIDDEN, f"{where} calls {name}"
            assert not ("shell" in options and ast.unparse(options["shell"]) == "True"), f"{where}: shell=True"
            if name == "torch.load":
                assert "weights_only" in options and ast.unparse(options["weights_only"]) == "True", where
            if name in ("np.load", "numpy.load"):
                assert "allow_pickle" not in options, f"{where}: numpy's default refuses pickles"


def test_every_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    installed = [
        *project["dependencies"],
        *(each for name in ("cuda13", "demo", "dev") for each in project["optional-dependencies"][name]),
    ]
    for wanted in installed:
        name = re.match(r"[A-Za-z0-9._-]+", wanted)
        assert name and name.group().lower().replace("_", "-") in pinned, f"{wanted} is not pinned in constraints.txt"
