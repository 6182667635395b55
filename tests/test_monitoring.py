"""What a validation shows on request, read back from TensorBoard's event files; k-NN against scikit-learn."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainings import FAST, ranks, train

from analysis.flags import parser
from analysis.session import Session
from shards.choosing import Choice, plan_of
from shards.plan import PlanConfig
from shards.shardset import ShardSet
from train.metrics import evaluate
from train.pictures import batch_grid, confusion_picture, embedding_map
from train.reporting import duration, read_metrics

pytestmark = pytest.mark.usefixtures("one_rank")


def events(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def image(found: EventAccumulator, tag: str, number: int = 0) -> np.ndarray:
    data = np.frombuffer(found.Images(tag)[number].encoded_image_string, np.uint8)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def session(run: Path) -> Session:
    args: argparse.Namespace = parser("").parse_args([str(run), "--weights", "last", "--split", "val"])
    return Session(args)


def test_knn_scores_and_pictures_of_a_run(tiny_set: Path) -> None:
    run = train(tiny_set, "k", "--epochs", "2", "--knn-eval", "--fraction", "0.5")
    records = {kind: [r for r in read_metrics(run / "metrics.jsonl") if r["kind"] == kind] for kind in ("val", "train")}
    found = events(run)
    assert found.Tags()["images"] == ["train/batch", "val/confusion_matrix", "test/confusion_matrix"]
    assert [each.step for each in found.Images("val/confusion_matrix")] == [each["step"] for each in records["val"]]
    assert image(found, "train/batch").shape == (128, 128, 3)
    scalars = [each.value for each in found.Scalars("train/loss")]
    assert scalars == pytest.approx([each["loss"] for each in records["train"]], rel=1e-6)
    assert found.Scalars("val/knn_accuracy")[-1].value == pytest.approx(records["val"][-1]["knn_accuracy"])
    assert records["train"][-1]["memory_gb"] > 0.05
    assert "knn_accuracy" in json.loads((run / "results.json").read_text())["test"]

    opened = session(run)
    bank, asked = opened.bank("end", "train"), opened.bank("end", "val")
    split = opened.split("train")  # the bank is what the training may see: half of the set
    plan = plan_of(split, PlanConfig(16, 0), Choice(0.5, 0, None, "none", None))
    mine = np.zeros(split.num_samples, bool)
    mine[plan.draw(np.arange(plan.num_samples)).positions] = True
    assert 20 < mine.sum() < 40
    judge = KNeighborsClassifier(
        int(mine.sum()), metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.1)
    )
    judge.fit(bank.layer("embedding", "auto")[mine].astype(np.float64), bank.labels[mine])
    probabilities = judge.predict_proba(asked.layer("embedding", "auto").astype(np.float64))
    expected = evaluate("single-label", asked.labels, probabilities, 3)
    last = records["val"][-1]
    assert {name: last[f"knn_{name}"] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_two_ranks_have_the_knn_scores_of_one(make_set: Callable[..., ShardSet], tmp_path: Path) -> None:
    shards = make_set(tmp_path / "multi", task="multi-label", name="multi").path
    flags = ["--shards", str(shards), "--model", "test_vit", *FAST, "--epochs", "1", "--lr", "1e-12", "--knn-eval"]
    ranks(*flags, "--name", "one", world=1)
    ranks(*flags, "--name", "two", world=2)
    one, two = (json.loads(Path(f"runs/{name}/results.json").read_text())["test"] for name in ("one", "two"))
    assert {name: two[name] for name in one} == pytest.approx(one, abs=1e-9)


@pytest.mark.slow
def test_a_map_of_the_embeddings_at_each_validation(tiny_set: Path) -> None:
    run = train(tiny_set, "m", "--epochs", "2", "--log-embeddings")
    found = events(run)
    assert [each.step for each in found.Images("val/embeddings")] == [4, 8] and found.Images("test/embeddings")
    picture = image(found, "val/embeddings")
    assert picture.shape[0] > 300 and (picture != 255).any(2).mean() > 0.005  # something is drawn
    rng = np.random.default_rng(0)
    blobs = np.concatenate([rng.normal(np.eye(3)[kind] * 20, 0.5, (30, 3)) for kind in range(3)])
    places = embedding_map(blobs, 0)
    centres = [places[30 * kind : 30 * kind + 30].mean(0) for kind in range(3)]
    spread = max(np.linalg.norm(places[30 * k : 30 * k + 30] - centres[k], axis=1).mean() for k in range(3))
    assert min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2))) > 2 * spread
    assert np.array_equal(places, embedding_map(blobs, 0))


def test_a_batch_is_shown_as_it_is() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 3, 8, 8), np.uint8)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    level = torch.from_numpy(pixels).float() / 255
    images = (level - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    grid = batch_grid(images, mean, std)
    assert grid.shape == (16, 32, 3)
    for number in range(5):
        row, column = divmod(number, 4)
        tile = grid[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        assert np.array_equal(tile, pixels[number].transpose(1, 2, 0))
    assert not grid[8:, 8:].any()
    grey = batch_grid(images[:, :1], mean[:1], std[:1])
    assert np.array_equal(grey[:8, :8, 1], pixels[0, 0])


def test_the_confusion_picture_is_dark_where_the_counts_are() -> None:
    picture = confusion_picture(np.array([[9, 0], [0, 9]]), ["no", "yes"]).astype(int).sum(2)
    assert (picture < 200).mean() > 0.05
    empty = confusion_picture(np.zeros((2, 2), int), ["no", "yes"]).astype(int).sum(2)
    assert (empty < 200).mean() < (picture < 200).mean() / 2


def test_durations() -> None:
    assert [duration(seconds) for seconds in (4, 600, 12600)] == ["4 s", "10 min", "3.5 h"]
