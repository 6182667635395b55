"""One training job: what stays the same from its first step to its last, and the loaders that follow from it."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shards.choosing import Choice, plan_of
from shards.joined import JoinedSplit
from shards.loader import Loader
from shards.plan import Plan, PlanConfig
from shards.shardset import ShardSet, Split
from shards.transforms import AnyTransform, Transform
from train.config import Config
from train.data_config import shares
from train.ds_settings import DeepSpeedSettings
from train.engine import Ranks
from train.objective import balanced_weights
from train.rundir import WeightsInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What stays the same from the first step to the last."""

    config: Config
    settings: DeepSpeedSettings
    shards: ShardSet
    ranks: Ranks
    device: torch.device
    folder: Path
    info: WeightsInfo

    @property
    def batch(self) -> int:
        """Samples a step over all ranks."""
        return self.settings.train_batch_size

    @property
    def train_transform(self) -> AnyTransform:
        """The preset's augmentation or the config's own, and normalisation with the set's mean and std."""
        return self.config.data.train_transform(*self.config.data.norm(self.shards.manifest))

    @property
    def eval_transform(self) -> Transform:
        """Resize, center crop, normalisation."""
        return self.config.data.eval_transform(*self.config.data.norm(self.shards.manifest))

    @cached_property
    def training_split(self) -> Split | JoinedSplit:
        """The training split, or those of a mixture."""
        data = self.config.data
        if data.mix is None:
            return self.shards.split("train")
        sets = [data.open(place) for place in shares(data.mix)]
        return JoinedSplit([each.split("train") for each in sets])

    @cached_property
    def plan(self) -> Plan:
        """What of the training split comes when."""
        data = self.config.data
        config = PlanConfig(self.batch, self.config.training.seed, data.order, data.tail, data.window, data.partitions)
        exclude = Path(data.exclude) if data.exclude is not None else None
        cache = Path(data.cache) if data.cache is not None else None
        choice = Choice(data.fraction, data.fraction_seed, exclude, data.balance, cache)
        weights = list(shares(data.mix).values()) if data.mix is not None else None
        plan = plan_of(self.training_split, config, choice, weights)
        if data.order == "windowed" and plan.partitions != data.partitions and self.ranks.rank == 0:
            log.warning("%d partitions, not %d: they divide the global batch", plan.partitions, data.partitions)
        return plan

    @property
    def class_weights(self) -> torch.Tensor | None:
        """float32[classes] on the job's device, from the images that the plan draws; None unless asked for."""
        if self.config.training.class_weights == "none":
            return None
        counts = np.bincount(self.training_split.labels(self.drawn), minlength=self.shards.num_classes)
        return torch.tensor(balanced_weights(counts.tolist()), dtype=torch.float32, device=self.device)

    def training_loader(self, consumed: int = 0) -> Loader:
        """This rank's part of the training, endless from `consumed` samples of all ranks on."""
        return self._loader(self.training_split, self.train_transform, plan=self.plan, samples_consumed=consumed)

    @property
    def drawn(self) -> np.ndarray:
        """Positions int64[m], rising, of the stored images that an epoch's plan draws from: all, or a fraction's."""
        return np.unique(self.plan.draw(np.arange(self.plan.num_samples)).positions)

    @cached_property
    def drawn_ids(self) -> np.ndarray:
        """Ids uint64[m] of the same images."""
        return self.training_split.sample_ids(self.drawn)

    def evaluation_loader(self, split: Split | JoinedSplit) -> Loader:
        """This rank's part of one pass over a split, every sample once."""
        return self._loader(split, self.eval_transform, order="sequential", tail="partial")

    def _loader(self, split: Split | JoinedSplit, transform: AnyTransform, **more: Any) -> Loader:
        data, ranks = self.config.data, self.ranks
        return Loader(
            split,
            transform,
            global_batch=self.batch,
            seed=self.config.training.seed,
            node_ranks=ranks.of_node,
            rank=ranks.rank,
            world=ranks.world,
            executor=data.executor,
            device=str(self.device),
            threads=data.threads,
            prefetch=data.prefetch,
            verify=data.verify,
            max_bad=data.max_bad,
            strict=data.strict,
            **more,
        )
