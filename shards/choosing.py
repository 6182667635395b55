"""Which samples of a split a run draws, and how often: fractions, exclusions, class balance, mixtures, as one plan."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shards.balance import BalancedOrder
from shards.joined import JoinedSplit
from shards.mixture import Mixture
from shards.permutation import make_key
from shards.plan import Plan, PlanConfig
from shards.shardset import Split
from shards.subsets import Bools, Subset, cached, cached_codes, keep_but, keep_fraction


@dataclass(frozen=True)
class Choice:
    """What a run takes of a training split; the default is all of it, once an epoch.

    fraction: share of the samples, more than 0 and at most 1, by whole groups and stratified; .1 lies within .2.
    fraction_seed: which part it is. exclude: a text file of keys, one a line. balance: `none`, or `classes`: every
    class comes equally often (`balance.BalancedOrder` says what an epoch is). cache: a folder where chosen subsets are
    kept, so that the next start need not read the whole index.
    """

    fraction: float = 1.0
    fraction_seed: int = 0
    exclude: Path | None = None
    balance: str = "none"
    cache: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}: give more than 0 and at most 1")
        if self.balance not in ("none", "classes"):
            raise ValueError(f"balance {self.balance!r} is unknown; known: none, classes")
        if self.exclude is not None and not self.exclude.is_file():
            raise ValueError(f"there is no file {self.exclude} of excluded keys: give a text file, a key a line")

    def plan(self, split: Split, config: PlanConfig) -> Plan:
        """The plan of one split under this choice.

        Raises ValueError where nothing is left, no key of `exclude` is in the split, or a multi-label set is balanced.
        """
        if self.balance == "classes" and split.manifest.task == "multi-label":
            raise ValueError(
                f"balance classes: {split.manifest.name} is multi-label, an image has no one class; drop it"
            )
        kept = self._kept(split)
        if self.balance == "classes":
            classes = self._classes(split, kept)
            key = make_key(config.seed, "balance", split.digest)
            return Plan(split.shard_sizes, config, split.digest, order=BalancedOrder(classes, key))
        subset = None if kept is None else Subset(kept)
        return Plan(split.shard_sizes, config, split.digest, subset=subset)

    def _classes(self, split: Split, kept: Bools | None) -> np.ndarray:
        """The class of each stored sample, -1 where it is left out: one pass over the index, kept in the cache."""

        def classes() -> np.ndarray:
            return split.labels() if kept is None else np.where(kept, split.labels(), -1)

        if self.cache is None:
            return classes()
        return cached_codes(self._cache_file(split, "classes"), classes, split.num_samples)

    def _cache_file(self, split: Split, ending: str) -> Path:
        """Named by the digest of all that decides what is kept."""
        assert self.cache is not None
        text = self.exclude.read_bytes() if self.exclude is not None else b""
        what = f"{split.digest}/{split.name}/{self.fraction}/{self.fraction_seed}/{hashlib.sha256(text).hexdigest()}"
        return self.cache / "subsets" / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.{ending}"

    def _kept(self, split: Split) -> Bools | None:
        if self.fraction == 1 and self.exclude is None:
            return None
        if self.cache is None:
            return self._select(split)
        return cached(self._cache_file(split, "bits"), lambda: self._select(split), split.num_samples)

    def _select(self, split: Split) -> Bools:
        kept = np.ones(split.num_samples, bool) if self.exclude is None else keep_but(self.exclude, split)
        if self.fraction < 1:
            kept = kept & keep_fraction(self.fraction, split.groups(), strata(split.labels()), seed=self.fraction_seed)
        return kept


def strata(labels: np.ndarray) -> np.ndarray:
    """int64[n] of what a fraction is stratified by: the class, or of several labels the rarest positive one (0: none).

    labels: int64[n], or float32[n, classes] of 0, 1 and NaN.
    """
    if labels.ndim == 1:
        return labels
    positive = labels == 1
    order = np.argsort(positive.sum(0), kind="stable")  # the rarest first
    first = np.argmax(positive[:, order], axis=1)
    return np.where(positive.any(1), order[first] + 1, 0).astype(np.int64)


def plan_of(
    split: Split | JoinedSplit, config: PlanConfig, choice: Choice | None = None, weights: list[float] | None = None
) -> Plan:
    """The plan of a split, or of a mixture of several in the shares `weights`."""
    choice = choice or Choice()
    if isinstance(split, Split):
        return choice.plan(split, config)
    return Mixture([choice.plan(each, config) for each in split.splits], weights or [], split.digest)
