"""What a training refuses, in one line and with nothing left behind. Run: pytest tests/test_run_mistakes.py"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trainings import FAST, ROOT, losses, train

from shards.shardset import ShardSet
from train import assembly
from train.run import command_line, main
from train.rundir import WeightsInfo

pytestmark = pytest.mark.usefixtures("one_rank")


def test_a_loss_that_is_not_finite_is_named(tiny_set: Path) -> None:
    wild = ["--epochs", "2", "--lr", "1e30", "--warmup-steps", "0", "--optimizer", "sgd", "--gradient-clipping", "0"]
    with pytest.raises(ValueError, match=r"loss of step \d+ is not finite; sample ids [0-9a-f]{16}, .*--on-nan skip"):
        train(tiny_set, "wild", *wild)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "resnet5O"], ["resnet5O", "nearest", "resnet50"]),
        (["--model", "test_vit", "--start", "wt", "--weights", "none.safetensors"], ["none.safetensors"]),
        (["--model", "test_vit", "--global-batch", "7", "--mixup", "0.1"], ["--mixup"]),
        (["--model", "test_vit", "--optimizer", "lamb", "--zero-stage", "1"], ["lamb", "--zero-stage 0"]),
        (["--model", "test_vit", "--optimizer", "adaam"], ["adaam", "nearest"]),
        (["--model", "test_vit", "--balance", "classes", "--class-weights", "balanced"], ["--balance", "twice"]),
        (["--model", "test_vit", "--min-lr", "0.1"], ["--min-lr 0.1", "above the rate 0.0001"]),
        (["--model", "test_vit", "--view", "coarse"], ["coarse", "default"]),
        (["--model", "test_vit", "--image-size", "40"], ["40 pixels", "--image-size"]),
    ],
)
def test_mistakes_leave_nothing_behind(tiny_set: Path, more: list[str], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        main(["--shards", str(tiny_set), *FAST, *more])
    assert all(word in str(caught.value) for word in words), caught.value
    assert not Path("runs").exists()


def test_a_fixed_crop_is_held_against_the_images_that_are_drawn(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "INDEX_ROWS", 7)
    split = ShardSet(tiny_set).split("train")
    rows = split.rows(np.arange(60))
    small = [split.key(int(i)) for i in np.flatnonzero(np.minimum(rows.heights, rows.widths) < 48)]
    flags = ["--train-operators", '[{"op": "RandomCrop", "size": 48}]', "--image-size", "48", "--exclude", "small.txt"]
    Path("small.txt").write_text("\n".join(small[:-1]))
    with pytest.raises(ValueError, match="RandomCrop: 48 x 48 does not fit an image of"):
        train(tiny_set, "small", *flags)
    assert len(small) > 2 and not Path("runs").exists()
    Path("small.txt").write_text("\n".join(small))
    assert len(losses(train(tiny_set, "large", *flags, "--stop-after-steps", "1", "--no-tensorboard"))) == 1


@pytest.mark.parametrize("suffix", ["tar", "cols"])
def test_a_damaged_shard_of_any_split_is_refused_before_the_first_step(
    tiny_set: Path, tmp_path: Path, suffix: str
) -> None:
    shutil.copytree(tiny_set, tmp_path / "cut")
    last = sorted((tmp_path / "cut").glob(f"test-*.{suffix}"))[-1]
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{last.stem}"):
        main(["--shards", str(tmp_path / "cut"), *FAST, "--model", "test_vit"])
    assert not Path("runs").exists()


def test_weights_that_do_not_fit_are_refused(tiny_set: Path) -> None:
    run = train(tiny_set, "donor", "--epochs", "1")
    weights = str(run / "weights" / "best.safetensors")
    with pytest.raises(ValueError, match=r"do not fit|match"):
        main(["--shards", str(tiny_set), *FAST, "--model", "test_resnet", "--start", "wt", "--weights", weights])
    assert [path.name for path in Path("runs").iterdir()] == ["donor"]
    assert (
        main(
            [
                "--shards",
                str(tiny_set),
                *FAST,
                "--model",
                "test_vit",
                "--start",
                "wt",
                "--weights",
                weights,
                "--epochs",
                "1",
                "--name",
                "heir",
            ]
        )
        == 0
    )
    start, end = load_file("runs/heir/weights/init.safetensors"), load_file(weights)
    assert torch.equal(start["blocks.0.attn.qkv.weight"], end["blocks.0.attn.qkv.weight"])


def test_what_a_resume_may_not_change(tiny_set: Path) -> None:
    run = train(tiny_set, "kept", "--epochs", "2", "--stop-after-steps", "1")
    with pytest.raises(ValueError, match=r"kept exists: --resume runs/kept"):
        train(tiny_set, "kept")
    with pytest.raises(ValueError, match=r"--lr 0\.5 differs from the run's 0\.0001"):
        main(["--resume", str(run), "--lr", "0.5"])
    with pytest.raises(ValueError, match="keeps batch"):
        main(["--resume", str(run), "--global-batch", "8"])
    with pytest.raises(ValueError, match="no run directory"):
        main(["--resume", "runs/other"])


def test_a_run_that_was_begun_before_its_choices_were_refused_goes_on(
    tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--balance", "classes", "--class-weights", "balanced", "--min-lr", "0.1", "--epochs", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(assembly, "check_balance", lambda _: None)
        patch.setattr(assembly, "check_floor", lambda *_: None)
        run = train(tiny_set, "old", *flags, "--no-tensorboard", "--stop-after-steps", "1")
    assert main(["--resume", str(run), "--stop-after-steps", "2"]) == 0
    assert len(losses(run)) == 2


def test_a_resume_with_another_set_is_refused(
    tiny_set: Path, make_set: Callable[..., ShardSet], tmp_path: Path
) -> None:
    run = train(tiny_set, "kept", "--epochs", "2", "--stop-after-steps", "1")
    other = make_set(tmp_path / "other", seed=1, name="other").path
    with pytest.raises(ValueError, match="not the set"):
        main(["--resume", str(run), "--shards", str(other)])


def test_a_world_that_does_not_divide_the_batch(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="use 2 or 4 ranks"):
        command_line(["--shards", str(tiny_set), *FAST, "--model", "test_vit"])
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_mistake_is_one_line_through_the_launcher_too() -> None:
    done = subprocess.run([ROOT / "launch.sh", "train", "--epocs", "3"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout + done.stderr == "error: unknown flag --epocs: did you mean --epochs?\n"


def test_a_model_that_refuses_an_image_without_a_word_is_told_in_one_line() -> None:
    """A bare `assert` in a model has no text."""

    class Silent(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    info = WeightsInfo("silent", 2, 3, 64)
    with pytest.raises(ValueError, match=r"silent does not take images of 64 pixels \(AssertionError\): take another"):
        assembly._try_image(Silent(), info, 64)
