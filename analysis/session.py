"""What the scripts share: the opened run, its data and models, and features by state and split."""

import argparse
import difflib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from analysis import ranks
from analysis.banks import Bank, open_bank
from analysis.results import digest_of_state, find_result
from shards.command_line import tell
from shards.loader import Batch, Loader
from shards.progress import progress
from shards.shardset import ShardSet, Split
from shards.transforms import Transform, eval_transform
from train.evaluation import AUTOCAST
from train.hooks import Tap, fine_taps
from train.layers import embedding_tap, layer_groups, taps
from train.metrics import UndefinedMetric, evaluate
from train.rundir import Run, open_run

EMBEDDING = "embedding"


def help_out() -> None:
    """Extract shares of banks until rank 0 has no more to ask for."""
    sessions: dict[str, Session] = {}
    while (request := ranks.hear()) is not None:
        args = argparse.Namespace(**request["args"])
        session = sessions.get(repr(args)) or sessions.setdefault(repr(args), Session(args))
        session.features = request["features"]
        session.shares(request["state"], request["split"])


class Session:
    """One run, opened for questions. States are "start" and "end"; nothing is read before it is needed."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.run: Run = open_run(args.run, args.shards, args.model)
        other = self.run.path == self.run.folder and args.weights != "best"
        base = self.run.out_dir / args.weights if other else self.run.out_dir
        self.out: Path = args.out or base / "-".join(_parts_of(args) + self._other_set())
        self.features: Path = args.banks or (args.out or base) / "features"
        self.device = _device(args.device)
        self._states: dict[str, dict[str, Tensor]] = {}

    def _other_set(self) -> list[str]:
        """How results name a set that is not the one of the training, nor a copy of it."""
        if self.args.shards is None or self.run.info.manifest_digest in ("", self.shards.manifest.digest):
            return []
        return [f"set-{self.shards.manifest.name}-{self.shards.manifest.digest[:8]}"]

    @cached_property
    def shards(self) -> ShardSet:
        """The run's shard set."""
        return self.run.shards

    @cached_property
    def model(self) -> nn.Module:
        """The architecture, whatever weights it holds now, in evaluation mode."""
        return self.run.build_model()

    @cached_property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """The layer groups that were asked for -> their state-dict keys."""
        found = layer_groups(self.model)
        return {name: found[name] for name in choose(list(found), self.args.layers)}

    @property
    def taps(self) -> dict[str, nn.Module]:
        """Layer group -> the module whose output stands for it, or finer taps, those that were asked for."""
        return self.taps_of(self.model)

    def taps_of(self, model: nn.Module) -> dict[str, nn.Module]:
        """The same on another copy of the model."""
        found = fine_taps(model) if self.args.taps == "fine" else taps(model)
        return {name: found[name] for name in choose(list(found), self.args.layers)}

    def state(self, which: str) -> dict[str, Tensor]:
        """The weights of "start" or "end".

        Raises ValueError for a start that this run does not have.
        """
        if which not in self._states:
            self._states[which] = self.run.init_state() if which == "start" else self.run.end_state(self.args.weights)
        return self._states[which]

    @property
    def states(self) -> tuple[str, ...]:
        """("start", "end") of a run; a file or checkpoint of its own, or whose run lost its start, has only an end."""
        folder = self.run.folder
        lost = folder != self.run.path and not (folder and (folder / "weights" / "init.safetensors").is_file())
        return ("end",) if lost else ("start", "end")

    def holding(self, which: str) -> nn.Module:
        """The model with the weights of a state, on the device.

        Raises ValueError where the weights are not those of the model.
        """
        try:
            self.model.load_state_dict(self.state(which))
        except RuntimeError as error:
            raise ValueError(f"{self.run.path}: the weights do not fit {self.run.info.model}: {error}") from None
        return self.model.to(self.device).eval()

    def split(self, name: str | None = None) -> Split:
        """A split of the set; ValueError naming those that exist."""
        return self.shards.split(name or self.args.split)

    def autocast(self) -> torch.autocast:
        """The context of a forward pass. It keeps no cast weights, which would outlive an exchange of tensors."""
        kind = AUTOCAST.get(self.args.precision)
        return torch.autocast(
            self.device.type, dtype=kind or torch.bfloat16, enabled=kind is not None, cache_enabled=False
        )

    def num_images(self, split: Split) -> int:
        """Images of a split that count, within --limit."""
        return min(split.num_samples, self.args.limit or split.num_samples)

    @cached_property
    def transform(self) -> Transform:
        """The evaluation transform of the training, or the usual one for foreign weights."""
        info, config, manifest = self.run.info, self.run.config, self.shards.manifest
        mean, std = info.mean or manifest.mean, info.std or manifest.std
        if config is not None:
            return config.data.eval_transform(mean, std)
        return eval_transform(info.img_size, mean, std)

    @property
    def quiet(self) -> bool:
        """Whether no progress is wanted."""
        return bool(self.args.quiet or self.args.json)

    def progress(self, images: int | None, what: str) -> Any:
        """A progress bar over so many images of this run, or over a number that is not known yet."""
        return progress(images, f"{self.run.name} {what}", "image", quiet=self.quiet)

    def loader(self, split: Split, consumed: int = 0) -> Loader:
        """One pass over a split in stored order, from image `consumed` on."""
        return Loader(
            split,
            self.transform,
            global_batch=self.args.batch,
            order="sequential",
            tail="partial",
            device=str(self.device),
            threads=self.args.threads,
            samples_consumed=consumed,
        )

    def batches(self, split: Split, doing: str) -> Iterator[tuple[Batch, np.ndarray]]:
        """(batch, bool[b]: which of its images count) of one pass within --limit, where damaged images do not count.

        A bar says what the run is `doing`.
        """
        seen, total = 0, self.num_images(split)
        with self.progress(total, doing) as bar:
            for batch in self.loader(split):
                inside = np.arange(len(batch.labels)) < total - seen
                yield batch, batch.valid.cpu().numpy().astype(bool) & inside
                bar.update(int(inside.sum()))
                seen += int(inside.sum())
                if seen >= total:
                    return

    def bank(self, which: str, split_name: str | None = None) -> Bank:
        """Features of a state on a split, all layers and the embedding, from disk where they are there."""
        split = self.split(split_name)

        def shares() -> list[Bank]:
            asked = {"args": vars(self.args), "features": self.features, "state": which, "split": split.name}
            ranks.tell(asked)
            return self.shares(which, split.name)

        together = ranks.world_size() > 1 and self.args.banks is None
        bank = self._bank(self.features, which, split, 0, self.num_images(split), shares if together else None)
        if together:
            shutil.rmtree(self._parts(which, split), ignore_errors=True)
        return bank

    def shares(self, which: str, split_name: str) -> list[Bank]:
        """Extract this rank's share of a bank, wait for the others, and return all shares in order.

        Raises ValueError on every rank where one of them fails.
        """
        split, problem = self.split(split_name), None
        place, total = self._parts(which, split), self.num_images(split)
        spans = [
            ranks.share(total, self.args.batch, number, ranks.world_size()) for number in range(ranks.world_size())
        ]
        own = spans[ranks.rank()]
        try:
            if own[0] < own[1]:
                self._bank(place, which, split, *own)
        except (ValueError, OSError, RuntimeError) as error:
            problem = str(error)
        ranks.agree(problem)
        if ranks.rank() != 0:
            return []
        return [self._bank(place, which, split, start, stop) for start, stop in spans if start < stop]

    def _parts(self, which: str, split: Split) -> Path:
        return self.features / f"parts-{digest_of_state(self.state(which))[:16]}-{split.name}"

    def _bank(
        self,
        folder: Path,
        which: str,
        split: Split,
        start: int,
        stop: int,
        shares: Callable[[], list[Bank]] | None = None,
    ) -> Bank:
        """The bank of images `start` to `stop` of a split."""
        wanted: dict[str, Tap] = {**self.taps, EMBEDDING: embedding_tap(self.model)}
        model = self.holding(which)
        part = {} if folder == self.features else {"from": start}
        return open_bank(
            folder,
            {**self.identity(which), "split": split.name, **part},
            model,
            wanted,
            lambda consumed: self.loader(split, start + consumed),
            stop - start,
            device=self.device,
            autocast=AUTOCAST.get(self.args.precision),
            name=f"{self.run.name} {which} on {split.name}",
            reuse_only=self.args.banks is not None,
            quiet=self.quiet,
            shares=shares,
        )

    def identity(self, *states: str) -> dict[str, Any]:
        """What features come from: weights, data, transform, precision."""
        return {
            "model": self.run.info.model,
            "weights": {which: digest_of_state(self.state(which)) for which in states},
            "shards": self.shards.digest,
            "set": self.shards.manifest.name,
            "phantom": self.shards.manifest.phantom,
            "transform": repr(self.transform),
            "device": self.device.type,
            "precision": self.args.precision,
        }

    def request(self, *states: str, **options: Any) -> dict[str, Any]:
        """What is asked, in full: equal requests have equal answers."""
        split = self.split()
        layers = list(self.taps if self.args.taps == "fine" else self.groups)
        shared = {"split": split.name, "images": self.num_images(split), "layers": layers, "taps": self.args.taps}
        return {**self.identity(*states), **shared, "seed": self.args.seed, **options}

    def answered(self, name: str, request: Mapping[str, Any]) -> bool:
        """Whether NAME.json answers the request already; says so, and how to have it done again."""
        found = None if self.args.force else find_result(self.out, name, request)
        if found is not None:
            tell(self.args, found, f"{self.out / name}.json is done already (--force works it out again)")
        return found is not None

    def metrics(self, labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
        """All metrics of the set's task, NaN where undefined, of shapes as in `train.metrics.evaluate`.

        What a k-NN or a probe says passes `ignoring_unsaid` first.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetric)  # NaN says it in the result
            return evaluate(self.shards.task, labels, probabilities, self.shards.num_classes)

    @property
    def target(self) -> str:
        """The metric that the set is judged by."""
        return self.shards.manifest.target_metric


def _device(wanted: str | None) -> torch.device:
    """The one that was asked for, else a GPU where there is one; of several ranks each takes its own GPU.

    Raises ValueError for a GPU that is not there.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; ./launch.sh doctor says more; take --device cpu")
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(f"cuda:{ranks.local_rank()}" if name == "cuda" and ranks.world_size() > 1 else name)


def _parts_of(args: argparse.Namespace) -> list[str]:
    """Names of what an analysis is a part of: none for the whole test split, all layer groups."""
    parts = [f"split-{args.split}"] if args.split != "test" else []
    parts += [f"limit-{args.limit}"] if args.limit else []
    parts += [args.taps] if args.taps != "groups" else []
    return parts + (["some-layers"] if args.layers else [])


def choose(known: Sequence[str], wanted: str | None) -> list[str]:
    """The layers of a comma list in the model's order, all without one; ValueError with the nearest name."""
    if wanted is None:
        return list(known)
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0)
            raise ValueError(f"unknown layer {name!r}; nearest: {', '.join(near)} (all: {', '.join(known)})")
    if not names:
        raise ValueError("--layers names no layer: leave it out for all")
    return [name for name in known if name in names]
