"""The trainer end to end on a tiny set with tiny nets, in one process. Run: pytest tests/test_run.py"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from faulty_server import serve
from safetensors.torch import load_file
from trainings import FAST, PLAIN, losses, train

from shards.loader import Loader
from shards.shardset import ShardSet
from shards.transforms import train_transform
from train.models import create
from train.run import main
from train.rundir import open_run

pytestmark = pytest.mark.usefixtures("one_rank")


def test_a_run_and_what_it_leaves(tiny_set: Path) -> None:
    run = train(tiny_set, "a", "--epochs", "2", "--val-every", "0.5", "--checkpoint-every", "3")
    results = json.loads((run / "results.json").read_text())
    assert (results["model"], results["start"], results["steps"], results["target_metric"]) == (
        "test_vit",
        "ri",
        8,
        "accuracy",
    )
    assert results["best"]["value"] == results["val"]["accuracy"]
    assert results["test"]["samples"] == 19
    assert [step for step, _ in losses(run, "val")] == [2, 4, 6, 8]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "latest",
        "step-00000006",
        "step-00000008",
    ]
    config = json.loads((run / "config.json").read_text())
    assert config["manifest_digest"] == ShardSet(tiny_set).manifest.digest
    assert config["deepspeed_resolved"]["gradient_clipping"] == 1.0
    assert {"torch", "timm", "deepspeed", "medshard"} <= config["versions"].keys()
    assert (run / "log.txt").read_text().count("validation loss") == 4
    assert list((run / "tensorboard").glob("events*"))
    opened = open_run(run)
    opened.build_model().load_state_dict(opened.end_state("best"), strict=True)
    assert set(load_file(run / "weights" / "init.safetensors")) == set(opened.end_state("last"))


def test_micro_batches_have_the_gradient_of_the_whole(make_set: Callable[..., ShardSet], tmp_path: Path) -> None:
    shards = make_set(tmp_path / "multi", task="multi-label", channels=1, name="multi").path
    whole = train(shards, "whole", "--epochs", "1", *PLAIN)
    cut = train(shards, "cut", "--epochs", "1", "--micro-batch", "4", *PLAIN)
    for (_, a), (_, b) in zip(losses(whole), losses(cut), strict=True):
        assert a == pytest.approx(b, abs=2e-6)


def test_a_step_is_plain_torchs(tiny_set: Path) -> None:
    run = train(tiny_set, "sgd", "--epochs", "1", "--micro-batch", "8", *PLAIN)
    manifest, model = ShardSet(tiny_set).manifest, create("test_vit", 3, img_size=32)
    model.load_state_dict(load_file(run / "weights" / "init.safetensors"))
    transform = train_transform(32, manifest.mean, manifest.std, scale=(0.8, 1.0))
    loader = Loader(ShardSet(tiny_set).split("train"), transform, global_batch=16, seed=0, threads=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for batch, (_, loss) in zip(loader, losses(run), strict=False):
        optimizer.zero_grad()
        mean = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
        assert mean.item() == pytest.approx(loss, abs=2e-6)
        mean.backward()
        optimizer.step()
    loader.close()
    after = load_file(run / "weights" / "last.safetensors")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(after[key], tensor, rtol=1e-4, atol=1e-6)


def test_a_damaged_image_is_masked_and_named_and_splits_may_lack(
    make_set: Callable[..., ShardSet], tmp_path: Path
) -> None:
    shards = make_set(tmp_path / "bare", val=0, test=0, name="bare")
    row = shards.split("train").rows(np.array([5]))
    tar = shards.path / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    content[int(row.offsets[0]) + 30] ^= 255
    tar.write_bytes(content)
    run = train(shards.path, "bare", "--epochs", "2")
    results = open_run(run).results()
    assert (results["weights"], results["best"], results["val"], results["test"]) == ("last", None, None, None)
    assert [key for key, _ in results["bad_samples"]] == [shards.split("train").key(5)]
    assert all(math.isfinite(loss) for _, loss in losses(run))
    with pytest.raises(ValueError, match="cannot be read"):
        train(shards.path, "strict", "--epochs", "1", "--max-bad", "0")


def test_a_set_at_a_url_trains_as_the_folder_does(tiny_set: Path) -> None:
    with serve(tiny_set) as server:
        cache = ["--cache", "fetched", "--cache-limit", "1MB"]
        remote = train(server.url, "remote", "--epochs", "1", "--order", "windowed", *cache)  # type: ignore[arg-type]
    local = train(tiny_set, "local", "--epochs", "1", "--order", "windowed")
    assert losses(remote) == losses(local) and list(Path("fetched").rglob("train-*.tar"))
    assert open_run(remote).config.data.shards == server.url  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="give a folder for what is fetched"):
        main(["--shards", server.url, "--model", "test_vit", "--name", "none", *FAST])


def test_operators_of_ones_own(tiny_set: Path) -> None:
    steps = '[{"op": "Resize", "size": 40}, {"op": "RandomCrop", "size": 32}, {"op": "Solarize", "p": 0.3}]'
    squash = '[{"op": "Resize", "size": [32, 32]}]'
    run = train(tiny_set, "own", "--epochs", "1", "--train-operators", steps, "--eval-operators", squash)
    data = open_run(run).config.data  # type: ignore[union-attr]
    assert [type(each).__name__ for each in data.eval_transform([0.5] * 3, [0.5] * 3).operators] == [
        "Resize",
        "Normalize",
    ]
    for wrong, message in (
        ('[{"op": "Blur"}]', "unknown operator 'Blur': did you mean GaussianBlur?; known: Resize"),
        ('[{"op": "Resize", "side": 3}]', "Resize has no parameter 'side': did you mean size?; it has size"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            train(tiny_set, "none", "--train-operators", wrong)
    with pytest.raises(ValueError, match="end in 64 x 64 pixels, image_size is 32"):
        train(tiny_set, "none", "--eval-operators", '[{"op": "Resize", "size": [64, 64]}]')


def test_a_frozen_backbone_stays(tiny_set: Path) -> None:
    run = train(tiny_set, "probe", "--epochs", "1", "--freeze-backbone", "--lr", "0.1", model="test_resnet")
    before, after = (load_file(run / "weights" / f"{name}.safetensors") for name in ("init", "last"))
    assert {key for key, tensor in before.items() if not torch.equal(tensor, after[key])} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    "schedule", [["plateau"], ["multistep", "--milestones", "1"], ["onecycle", "--min-lr", "0.1"]]
)  # one cycle has its own lowest rate
def test_schedules_and_layer_decay_run(tiny_set: Path, schedule: list[str]) -> None:
    run = train(tiny_set, "s", "--epochs", "2", "--layer-decay", "0.5", "--val-every", "0.5", "--schedule", *schedule)
    assert (run / "results.json").is_file()


def test_test_scores_any_run(tiny_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tiny_set, "scored", "--epochs", "1")
    expected = json.loads((run / "results.json").read_text())["test"]
    capsys.readouterr()
    assert main(["--test", str(run), "--global-batch", "8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert found["accuracy"] == expected["accuracy"]
    assert main(["--test", str(run / "weights" / "init.safetensors"), "--split", "val"]) == 0
    with pytest.raises(ValueError, match="--split dev"):
        main(["--test", str(run), "--split", "dev"])


def test_no_flags_take_the_only_set_or_list_them(tiny_set: Path) -> None:
    with pytest.raises(ValueError, match=r"make one with python prep/make_shards\.py"):
        main([])
    for name in ("one", "two"):
        Path("data/shards").mkdir(parents=True, exist_ok=True)
        Path("data/shards", name).symlink_to(tiny_set)
        if name == "one":
            assert main([*FAST, "--model", "test_vit", "--epochs", "1"]) == 0
            assert Path("runs/tiny-test_vit-ri-0/results.json").is_file()
    with pytest.raises(ValueError, match=r"one, two; choose with --shards data/shards/one"):
        main([])


def test_grey_images_are_repeated_for_a_net_of_three_channels_on_request(
    make_set: Callable[..., ShardSet], tmp_path: Path, tiny_set: Path
) -> None:
    donor = train(tiny_set, "donor", "--epochs", "1", "--no-tensorboard")
    grey = make_set(tmp_path / "grey", channels=1, name="grey").path
    flags = ["--start", "wt", "--weights", "runs/donor", "--first-conv", "repeat", "--epochs", "1", "--no-tensorboard"]
    run = train(grey, "grey", *flags)
    first = "patch_embed.proj.weight"
    start = load_file(run / "weights" / "init.safetensors")
    assert torch.equal(start[first], load_file(donor / "weights" / "best.safetensors")[first])
    opened = open_run(run)
    assert opened.info.in_chans == 3 and opened.shards.manifest.channels == 1
    model, images = opened.build_model(), torch.rand(2, 1, 32, 32)
    assert torch.equal(model(images), model(images.repeat(1, 3, 1, 1)))
    assert main(["--test", str(run)]) == 0
    with pytest.raises(ValueError, match="give a set that fits"):
        main(["--test", str(donor), "--shards", str(grey)])
