"""One training job: what stays the same from its first step to its last, and the loaders that follow from it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from shards.loader import Loader
from shards.plan import Plan
from shards.shardset import ShardSet, Split
from shards.transforms import Transform, eval_transform, train_transform
from train.config import Config
from train.ds_settings import DeepSpeedSettings
from train.engine import Ranks
from train.rundir import WeightsInfo


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
    def train_transform(self) -> Transform:
        """The preset's augmentation, and normalisation with the set's mean and std."""
        data, manifest = self.config.data, self.shards.manifest
        return train_transform(data.image_size, manifest.mean, manifest.std, scale=data.crop_scale, preset=data.preset)

    @property
    def eval_transform(self) -> Transform:
        """Resize, center crop, normalisation."""
        data, manifest = self.config.data, self.shards.manifest
        return eval_transform(data.image_size, manifest.mean, manifest.std, resize=data.resize_to)

    @property
    def plan(self) -> Plan:
        """The order of the training split, as its loader has it."""
        return self.loader(self.shards.split("train"), training=True).plan

    def loader(self, split: Split, *, training: bool, consumed: int = 0) -> Loader:
        """Batches of this rank: endless from `consumed`, or one pass."""
        data = self.config.data
        return Loader(
            split,
            self.train_transform if training else self.eval_transform,
            global_batch=self.batch,
            seed=self.config.training.seed,
            order=data.order if training else "sequential",
            tail=data.tail if training else "partial",
            rank=self.ranks.rank,
            world=self.ranks.world,
            executor=data.executor,
            device=str(self.device),
            threads=data.threads,
            prefetch=data.prefetch,
            samples_consumed=consumed,
            verify=data.verify,
            max_bad=data.max_bad,
        )
