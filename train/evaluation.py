"""Evaluation over a whole split: every sample once, gathered over the ranks once, metrics on the whole."""

import warnings
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from shards.loader import Batch
from shards.manifest import Task
from train.ds_settings import Precision
from train.engine import gather_first
from train.hooks import pool, tapped
from train.job import Job
from train.layers import InputOf, embedding_tap
from train.metrics import evaluate
from train.test_time import Tta, mean_logits

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Predictions(NamedTuple):
    """What a model says of a split, in the order of the sample ids, the same for any number of ranks."""

    sample_ids: np.ndarray  # uint64[n]
    labels: np.ndarray  # int64[n] or float32[n, classes]
    logits: np.ndarray  # float64[n, classes]
    features: np.ndarray | None = None  # float32[n, d], the embedding, where it was asked for

    def probabilities(self, task: Task) -> np.ndarray:
        """Softmax over classes, or a sigmoid a label: float64[n, classes]."""
        logits = torch.from_numpy(self.logits)
        return (logits.softmax(1) if task == "single-label" else logits.sigmoid()).numpy()

    def loss(self, task: Task) -> float:
        """Mean cross-entropy over samples, or binary cross-entropy over known labels; NaN without any."""
        logits, labels = torch.from_numpy(self.logits), torch.from_numpy(self.labels)
        if task == "single-label":
            return float(nn.functional.cross_entropy(logits, labels)) if len(labels) else float("nan")
        known = ~labels.isnan()
        return float(nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known].double()))


def predict(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
    precision: Precision,
    stop: Callable[[], bool] = lambda: False,
    tap: InputOf | None = None,
    tta: Tta = "none",
) -> Predictions | None:
    """Logits, and what enters `tap`, of every valid sample of one pass, gathered over the ranks.

    Logits are the mean over the versions of an image that `tta` names; the tap sees the image as it is. None
    where `stop` said so on any rank.

    All ranks call it with the same number of batches, of one size. The model is put into evaluation mode.
    """
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    with tapped({} if tap is None else {"": tap}) as seen:
        for batch in batches:
            if stop():
                return None
            images = batch.images.to(device)
            with torch.inference_mode(), autocast(device, precision):
                logits = model(images).float()
            features = [pool(each).float() for each in seen.values()]  # of the image as it is
            with torch.inference_mode(), autocast(device, precision):
                logits = mean_logits(model, images, logits, tta)
            parts.append((batch.sample_ids, batch.labels, logits, batch.valid, *features))
    columns = [torch.cat([part.to(device) for part in column]) for column in zip(*parts, strict=True)]
    ids, labels, logits, valid, *more = (gather_first(column).cpu() for column in columns)
    kept = np.flatnonzero(valid.numpy())
    unsigned = ids.numpy().view(np.uint64)
    order = kept[np.argsort(unsigned[kept], kind="stable")]
    found = more[0].numpy()[order] if more else None
    return Predictions(unsigned[order], labels.numpy()[order], logits.numpy()[order].astype(np.float64), found)


def score(
    predictions: Predictions, task: Task, num_classes: int, *, study: bool = False
) -> tuple[dict[str, float], list[str]]:
    """Loss and all metrics, unrounded, with the number of samples; and what is undefined, in words.

    `study`: metrics as the published study's code has them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = evaluate(task, predictions.labels, predictions.probabilities(task), num_classes)
    if study:
        metrics = as_the_study(metrics, predictions.labels, task, num_classes)
    values = {"loss": predictions.loss(task), **metrics, "samples": float(len(predictions.labels))}
    return values, sorted({str(warning.message) for warning in caught})


def as_the_study(metrics: dict[str, float], labels: np.ndarray, task: Task, num_classes: int) -> dict[str, float]:
    """Metrics as the published study reports them: 3 digits, and a ROC-AUC of .5 where scikit-learn's raises.

    Its one-vs-one mean raises where a class has no sample; a label's, where all of its samples are alike.
    """
    if task == "single-label":
        whole = len(np.unique(labels)) == num_classes
    else:
        whole = all(len(np.unique(label[~np.isnan(label)])) == 2 for label in labels.T)
    told = metrics if whole else metrics | {"roc_auc": 0.5}
    return {name: round(value, 3) for name, value in told.items()}


def autocast(device: torch.device, precision: Literal["fp32", "bf16", "fp16"]) -> torch.autocast:
    """The context of a forward pass."""
    return torch.autocast(device.type, dtype=AUTOCAST.get(precision, torch.bfloat16), enabled=precision != "fp32")


class Scores(NamedTuple):
    """What `evaluate_split` found."""

    values: dict[str, float]
    remarks: list[str]  # what is undefined or was unreadable, in words
    predictions: Predictions


def evaluate_split(
    job: Job, model: nn.Module, split: str, *, stop: Callable[[], bool] = lambda: False, features: bool = False
) -> Scores | None:
    """Loss and metrics of a model on a split of the job's set, embeddings with `features`; None where `stop` said so.

    All ranks call it.
    """
    tap = embedding_tap(model) if features else None
    loader = job.evaluation_loader(job.shards.split(split))
    try:
        found = predict(
            model,
            loader,
            device=job.device,
            precision=job.settings.precision,
            stop=stop,
            tap=tap,
            tta=job.config.data.tta,
        )
        bad = [f"{key} is left out: {reason}" for key, reason in loader.bad]
    finally:
        loader.close()
    if found is None:
        return None
    study = job.config.evaluation.study_metrics
    values, undefined = score(found, job.shards.task, job.shards.num_classes, study=study)
    return Scores(values, [*bad, *undefined], found)
