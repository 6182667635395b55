"""Nothing that comes with data, weights or a package list can run or slip in."""

import ast
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tomllib
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from made_runs import arguments
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_report import write_run
from trainings import train

from analysis import knn, report
from prep.annotations import read_outlines
from prep.images import PixelOptions, UndecodableImage, prepare
from prep.sources import camelyon
from shards.foreign import index_foreign
from shards.shardset import ShardSet
from train import checkpoints
from train.models import create
from train.run import main as run_training
from train.rundir import read_deepspeed
from train.weights import read_state

pytestmark = pytest.mark.usefixtures("one_rank")
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


def test_weights_of_the_hub_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, marker = bomb_file(tmp_path, "pytorch_model.bin")

    def download(*_: Any, filename: str, **__: Any) -> str:
        if filename.endswith(".safetensors"):
            raise EntryNotFoundError("none")
        return str(path)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", download)
    with pytest.raises(ValueError, match="could not be had"):
        create("resnet18.a1_in1k", 2, 3, img_size=32, pretrained=True)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["weights.pth", "step-1/mp_rank_00_model_states.pt"])
def test_an_analysis_of_foreign_weights_runs_nothing(name: str, tiny_set: Path, tmp_path: Path):
    path, marker = bomb_file(tmp_path, name)
    given = path if path.name == "weights.pth" else path.parent
    with pytest.raises(ValueError, match="cannot be read safely"):
        knn.main(arguments(given, "--shards", str(tiny_set), "--model", "resnet18", script="knn"))
    assert not marker.exists()


def test_a_swapped_file_of_a_checkpoint_is_not_read_on_resume(tiny_set: Path, tmp_path: Path):
    run = train(tiny_set, "r", "--epochs", "1", "--checkpoint-every", "1")
    (run / "results.json").unlink()
    bomb, marker = bomb_file(tmp_path, "bomb")
    swapped = [path for path in (run / "checkpoints").rglob("*.pt") if path.write_bytes(bomb.read_bytes())]
    assert swapped and run_training(["--resume", str(run)]) == 0
    assert not marker.exists() and "is not what was written" in (run / "log.txt").read_text()


@pytest.mark.parametrize(
    ("stage", "part"),
    [("0", "mp_rank_00_model"), pytest.param("2", "zero_pp_rank_0_mp_rank_00_optim", marks=pytest.mark.slow)],
)
def test_a_checkpoint_made_to_fit_runs_nothing_on_resume(stage: str, part: str, tiny_set: Path, tmp_path: Path):
    """Its trainer.json is the attacker's, too: hashes guard against damage alone."""
    run, marker = (
        train(tiny_set, "r", "--epochs", "1", "--checkpoint-every", "1", "--zero-stage", stage),
        tmp_path / "ran",
    )
    (run / "results.json").unlink()
    for folder in (run / "checkpoints").glob("step-*"):
        path = folder / f"{part}_states.pt"
        torch.save(torch.load(path, weights_only=False) | {"more": Bomb(marker)}, path)
        record = json.loads((folder / checkpoints.STATE_FILE).read_text())
        record["files"][path.name] = [path.stat().st_size, checkpoints._digest(path)]
        (folder / checkpoints.STATE_FILE).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"cannot be read safely: .*posix\.system"):
        run_training(["--resume", str(run)])
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


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_an_archive_are_refused(kind: bytes, tmp_path: Path):
    """Nothing is extracted, so no link is followed and no path left; such a member is named, not skipped."""
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "train-000000.tar", "w") as tar:
        for name, data in (("../../a.cls", b"1"), ("../../a.jpg", None)):
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = kind, "/etc/passwd"
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data or b""))
    with pytest.raises(ValueError, match=r"train-000000\.tar: .*(link|device|pipe)"):
        index_foreign(tmp_path / "set", classes=["no", "yes"])


def test_a_picture_larger_than_its_file_lets_on_is_refused():
    """40,000 x 40,000 pixels in 190 kB: the header is read first."""
    rows = zlib.compress(bytes(5001) * 40_000, 9)
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    told = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    with pytest.raises(UndecodableImage, match="more than 268435456 pixels"):
        prepare(b"\x89PNG\r\n\x1a\n" + told, PixelOptions(1, 256))


def test_a_packed_file_of_patches_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(camelyon, "MAX_UNPACKED_BYTES", 1 << 20)
    packed = tmp_path / "camelyonpatch_level_2_split_test_x.h5.gz"
    packed.write_bytes(gzip.compress(bytes(2 << 20)))
    with pytest.raises(ValueError, match=r"unpacks to over 1048576 bytes: is this PatchCamelyon's\?"):
        camelyon.unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [packed.name]


LAUGHS = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))


@pytest.mark.parametrize("entity", [LAUGHS, '<!ENTITY e11 SYSTEM "file:///etc/passwd">'])
def test_entities_of_an_annotation_are_not_followed(entity: str, tmp_path: Path):
    body = '<ASAP_Annotations><Annotation PartOfGroup="Tumor"><Coordinates>&e11;</Coordinates></Annotation>'
    text = f'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e0 "ha">{entity}]>{body}</ASAP_Annotations>'
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(ValueError, match="the annotation of slide 3 is no ASAP xml file"):
        read_outlines(tmp_path / "a.xml", "slide 3")


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


def pins() -> dict[str, str]:
    """Name -> version of constraints.txt."""
    lines = (line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#")
    return {canonicalize_name(name): version for name, version in lines}


def needed(wanted: Iterable[str], extra: str, found: dict[str, str]) -> None:
    """Put these requirements, and what they need in turn on this machine, into `found` (name -> installed version)."""
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        if name not in found or requirement.extras:
            distribution = metadata.distribution(name)
            found[name] = distribution.version
            for each in requirement.extras or {""}:
                needed(distribution.requires or [], each, found)


def test_all_that_is_installed_for_us_is_pinned_as_it_is_here():
    """Not our own dependencies alone: theirs, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras, found = project["optional-dependencies"], dict[str, str]()
    needed(project["dependencies"], "", found)
    for extra in extras.keys() - {"cuda12"}:  # the other CUDA's
        needed(extras[extra], "", found)
    assert len(found) > 200
    known = pins()
    assert {name: version for name, version in found.items() if known.get(name) != version} == {}
    assert {canonicalize_name(Requirement(each).name) for each in extras["cuda12"]} <= known.keys()


EVIL = "<script>alert(1)</script>"
KEPT = {"format", "analysis", "target", "target_metric", "start", "config", "manifest_digest", "weights"}


def poisoned(value: Any, key: str = "") -> Any:
    """A JSON value with a script in every text that says something, and in every layer's name."""
    if key in KEPT:
        return value
    if isinstance(value, dict):
        return {
            (name + EVIL if key in ("layers", "same_layer") else name): poisoned(value[name], name) for name in value
        }
    if isinstance(value, list):
        return [poisoned(each, key) for each in value]
    return value + EVIL if isinstance(value, str) else value


def test_texts_of_a_run_are_no_code_in_its_report(make_set: Callable[..., ShardSet], tmp_path: Path):
    """Classes, names and words of analyses may come from others; a browser runs none of them."""
    run = write_run(tmp_path / "run", make_set(tmp_path / "set", name="tiny").path, "wt")
    for path in [*(run / "analysis").glob("*.json"), run / "results.json"]:
        path.write_text(json.dumps(poisoned(json.loads(path.read_text()))))
    config = json.loads((run / "config.json").read_text())
    config["config"]["model"]["model"] += EVIL
    config["config"]["optimizer"]["optimizer"] += EVIL
    (run / "config.json").write_text(json.dumps(config))
    page = tmp_path / "report.html"
    report.main(Namespace(runs=[run], studies=tmp_path, out=page, shards=None, model=None, json=False, quiet=False))
    assert EVIL not in page.read_text() and "&lt;script&gt;" in page.read_text()
