"""The trainer end to end on a tiny set with tiny nets: exact repeats, resumes, ranks. Run: pytest tests/test_run.py

In-process runs are one rank; `launch` starts several, under deepspeed's launcher or bare, and ends their group in time.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulty_server import serve
from safetensors.torch import load_file

from shards.loader import Loader
from shards.shardset import ShardSet
from shards.transforms import train_transform
from train import assembly, checkpoints
from train.models import create
from train.reporting import read_metrics
from train.run import command_line, main
from train.rundir import open_run, read_json

ROOT = Path(__file__).resolve().parents[1]
RUN = str(ROOT / "train" / "run.py")
FAST = ["--start", "ri", "--image-size", "32", "--global-batch", "16", "--log-every", "1", "--threads", "1"]
# Adam and clipping hide a wrong scale of the gradient; plain descent shows it.
PLAIN = ["--optimizer", "sgd", "--gradient-clipping", "0", "--schedule", "constant", "--warmup-steps", "0"]
PLAIN += ["--lr", "0.05", "--weight-decay", "0"]
DEADLINE_SECONDS = 240


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """One rank on the CPU, in an empty folder, with as many threads afterwards as before."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(shards: Path, name: str, *more: str, model: str = "test_vit") -> Path:
    """Train in this process; the run directory."""
    assert main(["--shards", str(shards), "--model", model, "--name", name, *FAST, *more]) == 0
    return Path("runs") / name


def losses(run: Path, kind: str = "train") -> list[tuple[int, float]]:
    """(step, loss) of each record, at full precision."""
    return [(each["step"], each["loss"]) for each in read_metrics(run / "metrics.jsonl") if each["kind"] == kind]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": path}


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output; the whole process group is gone afterwards."""
    try:
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
        return process.returncode, output
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def start(command: list[str], **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        env={**environment(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(*arguments: str, ranks: int = 2) -> tuple[int, str]:
    """`deepspeed train/run.py …`; its exit code and output."""
    port = str(20_000 + os.getpid() % 20_000)
    return finish(start(["deepspeed", "--master_port", port, "--num_accelerators", str(ranks), RUN, *arguments]))


def ranks(*arguments: str, world: int = 2) -> None:
    """`train/run.py …` on several ranks without a launcher, which takes half the time; all must succeed."""
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_000 + os.getpid() % 20_000)}
    processes = [
        start([sys.executable, RUN, *arguments], RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank in range(world)
    ]
    for code, output in [finish(process) for process in processes]:
        assert code == 0, output


# ---- one rank


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


def test_one_seed_gives_one_run_and_a_stop_changes_nothing(tiny_set: Path) -> None:
    options = ["--epochs", "2", "--mixup", "0.4", "--ema", "0.9", "--checkpoint-every", "2"]
    first = train(tiny_set, "first", *options)
    again = train(tiny_set, "again", *options, "--stop-after-steps", "3")
    assert not (again / "results.json").exists()
    init = (again / "weights" / "init.safetensors").read_bytes()
    assert main(["--resume", str(again), "--stop-after-steps", "5"]) == 0
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)
    assert losses(again, "val") == losses(first, "val")
    assert (again / "weights" / "init.safetensors").read_bytes() == init
    for name in ("best", "last"):
        mine, other = (load_file(run / "weights" / f"{name}.safetensors") for run in (first, again))
        assert all(torch.equal(tensor, other[key]) for key, tensor in mine.items())
    assert losses(train(tiny_set, "other", *options, "--seed", "1")) != losses(first)
    assert main(["--resume", str(again)]) == 0  # done: nothing to do


def test_dropout_and_batchnorm_resume_bit_for_bit(tiny_set: Path) -> None:
    first = train(tiny_set, "first", "--epochs", "2", model="test_efficientnet")
    again = train(tiny_set, "again", "--epochs", "2", "--stop-after-steps", "5", model="test_efficientnet")
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)
    assert losses(again, "val") == losses(first, "val")


def test_a_damaged_checkpoint_is_passed_over(tiny_set: Path) -> None:
    first = train(tiny_set, "first", "--epochs", "2")
    again = train(tiny_set, "again", "--epochs", "2", "--stop-after-steps", "6")
    newest = again / "checkpoints" / "step-00000006" / "mp_rank_00_model_states.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)
    assert "step-00000006 is damaged" in (again / "log.txt").read_text()


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


def test_parts_and_mixtures_go_on_from_any_step(tiny_set: Path, make_set: Callable[..., ShardSet]) -> None:
    other = make_set(Path("other"), seed=9, name="other").path
    flags = ["--mix", f"{tiny_set}=0.75,{other}=0.25", "--fraction", "0.5", "--epochs", "2"]
    whole = train(tiny_set, "whole", *flags)
    train(tiny_set, "part", *flags, "--stop-after-steps", "3")
    assert main(["--resume", "runs/part"]) == 0
    assert losses(Path("runs/part")) == losses(whole)
    balanced = train(tiny_set, "balanced", "--balance", "classes", "--epochs", "1")
    assert read_json(balanced / "config.json")["config"]["data"]["balance"] == "classes"
    with pytest.raises(ValueError, match="mix: got 'A=x'"):
        train(tiny_set, "none", "--mix", "A=x,B=1")


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
        ('[{"op": "Blur"}]', "unknown operator 'Blur'; known: Resize"),
        ('[{"op": "Resize", "side": 3}]', "Resize has no parameter 'side'; it has size"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            train(tiny_set, "none", "--train-operators", wrong)
    with pytest.raises(ValueError, match="end in 64 x 64 pixels, image_size is 32"):
        train(tiny_set, "none", "--eval-operators", '[{"op": "Resize", "size": [64, 64]}]')


def test_weights_of_classes_cutmix_and_stochastic_depth_go_on_bit_for_bit(tiny_set: Path) -> None:
    flags = ["--class-weights", "balanced", "--cutmix", "1.0", "--mixup", "0.2", "--drop-path", "0.3", "--epochs", "2"]
    whole = train(tiny_set, "whole", *flags)
    train(tiny_set, "part", *flags, "--stop-after-steps", "3")
    assert main(["--resume", "runs/part"]) == 0
    assert losses(Path("runs/part")) == losses(whole)
    plain = train(tiny_set, "plain", *flags[:2], "--epochs", "2")
    assert losses(plain) != losses(whole)
    rows = (whole / "predictions-test.csv").read_text().splitlines()
    assert rows[0] == "key,label,p(kind0),p(kind1),p(kind2)" and len(rows) == 20
    assert len((whole / "predictions-val.csv").read_text().splitlines()) == 18
    with pytest.raises(ValueError, match="has no stochastic depth: drop --drop-path"):
        train(tiny_set, "none", "--drop-path", "0.1", model="vgg11")


@pytest.mark.slow
def test_a_compiled_run_trains_and_goes_on(tiny_set: Path) -> None:
    whole = train(tiny_set, "whole", "--compile", "--epochs", "1")
    assert [step for step, _ in losses(whole)] == [
        step for step, _ in losses(train(tiny_set, "plain", "--epochs", "1"))
    ]
    assert dict(losses(whole)) == pytest.approx(dict(losses(Path("runs/plain"))), rel=1e-3)
    assert not any("_orig_mod" in name for name in load_file(whole / "weights" / "best.safetensors"))


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


def test_a_loss_that_is_not_finite_is_named(tiny_set: Path) -> None:
    wild = ["--epochs", "2", "--lr", "1e30", "--warmup-steps", "0", "--optimizer", "sgd", "--gradient-clipping", "0"]
    with pytest.raises(ValueError, match=r"loss of step \d+ is not finite; sample ids [0-9a-f]{16}, .*--on-nan skip"):
        train(tiny_set, "wild", *wild)


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


# ---- mistakes


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


# ---- several ranks


def test_two_ranks_take_the_steps_of_one(tiny_set: Path) -> None:
    alone = train(tiny_set, "alone", "--epochs", "1", *PLAIN)
    arguments = ["--shards", str(tiny_set), "--model", "test_vit", "--name", "pair", *FAST, "--epochs", "1", *PLAIN]
    code, output = launch(*arguments)
    assert code == 0, output
    for (_, a), (_, b) in zip(losses(alone), losses(Path("runs/pair")), strict=True):
        assert a == pytest.approx(b, abs=2e-6)
    one, two = (json.loads(Path(f"runs/{name}/results.json").read_text())["test"] for name in ("alone", "pair"))
    assert one["samples"] == two["samples"] == 19
    assert one["accuracy"] == two["accuracy"]


@pytest.mark.slow
def test_errors_on_two_ranks_are_one_line(tiny_set: Path) -> None:
    arguments = ["--shards", str(tiny_set), "--name", "wrong", *FAST]
    _, output = launch(*arguments, "--model", "resnet5O")
    assert output.count("error:") == 1 and "Traceback" not in output, output
    _, output = launch(*arguments, "--model", "test_vit", ranks=3)
    assert output.count("use 2 or 4 ranks") == 1 and "Traceback" not in output, output
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_resume_bit_for_bit(tiny_set: Path, stage: int) -> None:
    base = [
        "--shards",
        str(tiny_set),
        "--model",
        "test_vit",
        *FAST,
        "--epochs",
        "2",
        "--zero-stage",
        str(stage),
        *PLAIN,
    ]
    ranks(*base, "--name", "whole")
    alone = train(tiny_set, "alone", "--epochs", "2", *PLAIN)
    for (_, a), (_, b) in zip(losses(alone), losses(Path("runs/whole")), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    ranks(*base, "--name", "cut", "--stop-after-steps", "3")
    ranks("--resume", "runs/cut")
    assert losses(Path("runs/cut")) == losses(Path("runs/whole"))
    assert losses(Path("runs/cut"), "val") == losses(Path("runs/whole"), "val")


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_the_same_samples(tiny_set: Path) -> None:
    alone = train(tiny_set, "alone", "--epochs", "2")
    base = ["--shards", str(tiny_set), "--model", "test_vit", "--name", "moved", *FAST, "--epochs", "2"]
    ranks(*base, "--stop-after-steps", "3")
    assert main(["--resume", "runs/moved"]) == 0
    for (_, a), (_, b) in zip(losses(alone), losses(Path("runs/moved")), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize("stage", ["1", "2"])
def test_averaged_weights_at_zero_stages(tiny_set: Path, stage: str) -> None:
    plain = train(tiny_set, "plain", "--epochs", "1", "--ema", "0.9")
    sharded = train(tiny_set, "sharded", "--epochs", "1", "--ema", "0.9", "--zero-stage", stage)
    for (_, a), (_, b) in zip(losses(plain, "val"), losses(sharded, "val"), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_checkpoint_to_go_on_from(tiny_set: Path, number: signal.Signals) -> None:
    whole = train(tiny_set, "whole", "--epochs", "40", "--no-tensorboard")
    process = start(
        [
            sys.executable,
            RUN,
            "--shards",
            str(tiny_set),
            "--model",
            "test_vit",
            "--name",
            "cut",
            *FAST,
            "--epochs",
            "40",
            "--no-tensorboard",
        ]
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(losses(Path("runs/cut"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    code, output = finish(process)
    assert code == 75, output
    found, damaged = checkpoints.newest(Path("runs/cut/checkpoints"))
    assert found is not None and not damaged and 5 <= found.state["step"] < 150
    assert main(["--resume", "runs/cut"]) == 0
    assert losses(Path("runs/cut")) == losses(whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_resume_bit_for_bit(tiny_set: Path, precision: str) -> None:
    options: list[Any] = ["--epochs", "2", "--precision", precision]
    first = train(tiny_set, "first", *options)
    again = train(tiny_set, "again", *options, "--stop-after-steps", "3")
    assert main(["--resume", str(again)]) == 0
    assert losses(again) == losses(first)


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.distributed.*is deprecated:FutureWarning")  # DeepSpeed at stage 3
@pytest.mark.parametrize(("stage", "what"), [("2", "optimizer"), ("3", "parameters")])
def test_offloaded_states_change_no_digit_and_resume(tiny_set: Path, stage: str, what: str) -> None:
    flags = ["--zero-stage", stage, "--epochs", "2", "--no-tensorboard"]
    plain = train(tiny_set, "plain", *flags)
    moved = train(tiny_set, "moved", *flags, "--offload", what, "--stop-after-steps", "3")
    assert main(["--resume", str(moved)]) == 0
    for (_, a), (_, b) in zip(losses(plain), losses(moved), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    train(tiny_set, "whole", *flags, "--offload", what)
    assert losses(Path("runs/whole")) == losses(moved)


@pytest.mark.slow
def test_a_mistake_is_one_line_through_the_launcher_too() -> None:
    done = subprocess.run([ROOT / "launch.sh", "train", "--epocs", "3"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout + done.stderr == "error: unknown flag --epocs: did you mean --epochs?\n"
