"""What a validation looks at besides the scores, on request: k-NN at the embedding, a map of it, and pictures.

All ranks call it alike: embeddings are gathered as logits are, so k-NN metrics are those of the whole split on any
number of ranks.
"""

from collections.abc import Callable

import numpy as np
from torch import nn

from train.engine import agree
from train.evaluation import Predictions, predict
from train.job import Job
from train.knn import knn_probabilities
from train.layers import embedding_tap
from train.metrics import confusion_matrix, evaluate, ignoring_unsaid, quietly
from train.pictures import MOST_POINTS, confusion_picture, embedding_map, map_picture
from train.reporting import Reporter

PREFIX = "knn_"


def wants_features(job: Job) -> bool:
    """Whether evaluations are to keep embeddings."""
    return job.config.evaluation.knn_eval or job.config.evaluation.log_embeddings


def knn_metrics(
    job: Job, model: nn.Module, found: Predictions, *, stop: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """All metrics of weighted k-NN at the embedding, names with knn_ in front. None where `stop` said so.

    Bank: the images that the training draws, under the evaluation transform; k from the manifest (fewer where the bank
    is smaller), T .1 (the study's).
    """
    queries = found.features
    assert queries is not None
    loader = job.evaluation_loader(job.training_split)
    try:
        bank = predict(
            model, loader, device=job.device, precision=job.settings.precision, stop=stop, tap=embedding_tap(model)
        )
    finally:
        loader.close()
    if bank is None:
        return None
    features = bank.features
    assert features is not None
    mine = np.isin(bank.sample_ids, job.drawn_ids)
    single = job.shards.task == "single-label"

    def score() -> dict[str, float]:
        probabilities = knn_probabilities(
            features[mine], bank.labels[mine], queries, num_classes=job.shards.num_classes,
            k=job.shards.manifest.knn_k, multi_label=not single,
        )  # fmt: skip
        with quietly():
            metrics = evaluate(job.shards.task, *ignoring_unsaid(found.labels, probabilities), job.shards.num_classes)
        return {PREFIX + name: value for name, value in metrics.items()}

    return agree(score)


def show(job: Job, reporter: Reporter, found: Predictions, split: str, step: int) -> None:
    """Confusion matrix (single-label) and, where asked for, the map of embeddings, as images of TensorBoard."""
    if reporter.writer is None:
        return
    classes, single = job.shards.classes, job.shards.task == "single-label"
    if single and len(found.labels):
        matrix = confusion_matrix(found.labels, found.logits.argmax(1), len(classes))
        reporter.picture(f"{split}/confusion_matrix", confusion_picture(matrix, classes), step)
    if job.config.evaluation.log_embeddings and found.features is not None and len(found.features) > 3:
        features = found.features[:MOST_POINTS]  # in the order of sample ids, which are hashes: as good as drawn
        places = embedding_map(features, job.config.training.seed)
        labels = found.labels[: len(features)]
        kinds, names = (labels, classes) if single else first_label(labels, classes)
        title = f"UMAP of {len(features)} embeddings, {split}, step {step}"
        reporter.picture(f"{split}/embeddings", map_picture(places, kinds, names, title), step)


def first_label(labels: np.ndarray, classes: list[str]) -> tuple[np.ndarray, list[str]]:
    """One colour a point where images have several labels: the first that is 1, or none.

    `labels` int64[n], or float[n, classes]; int64[n] and the names of its values.
    """
    positive = labels == 1
    return np.where(positive.any(1), positive.argmax(1), len(classes)), [*classes, "none of them"]
