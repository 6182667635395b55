"""The training itself: steps counted by samples consumed, validation, checkpoints, the end.

A step depends on (config, weights, samples consumed) alone: learning rate, order, crops and dropout are pure functions
of them, so a resumed run goes on as if it had never stopped.
"""

import math
import shutil
import time
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shards.loader import Batch
from train import checkpoints
from train.divergence import Diverged, check_weights, judge_loss
from train.engine import (
    agree,
    data_alone,
    first_word,
    plain_copy,
    save_engine,
    share_buffers,
    total,
    train_mode,
    whole_state,
)
from train.evaluation import Scores, evaluate_split
from train.job import Job
from train.mixing import draw_mix, mix_images
from train.monitoring import knn_metrics, show, wants_features
from train.objective import Inputs, divisor, stand_ins, total_weight, views_loss
from train.optimisation import Rates
from train.pictures import batch_grid
from train.progress import Progress, merged, passed, step_seed
from train.pulse import Pulse
from train.reporting import Reporter
from train.resharding import Whole, load_optimizer
from train.rundir import read_weights, save_weights
from train.stopping import Preempted, Wish


class Trainer:
    """A run in progress on this rank."""

    def __init__(
        self, job: Job, engine: Any, rates: Rates, progress: Progress, reporter: Reporter, pulse: Pulse, wish: Wish
    ):
        self.job, self.engine, self.rates, self.progress, self.reporter = job, engine, rates, progress, reporter
        self.pulse, self.wish = pulse, wish
        self.samples_per_epoch = job.plan.samples_per_epoch
        self.average: nn.Module | None = deepcopy(engine.module) if job.config.training.ema else None
        self.class_weights = job.class_weights
        self._shown = False
        self._saved_at = time.monotonic()

    # ---- the course of a run

    def fit(self, stop_after: int | None = None) -> bool:
        """Train to the end, or until `stop_after` steps of the whole run are done. Whether the end was reached.

        Raises Preempted after a SIGTERM, SIGUSR1 or Ctrl-C, with a checkpoint written.
        """
        progress, last = self.progress, self.rates.total_steps
        loader = self.job.training_loader(progress.consumed)
        waited = loader.wait_seconds
        try:
            self._validate_if_due()
            batches = iter(loader)
            while progress.step < last and not (stop_after is not None and progress.step >= stop_after):
                self.pulse.beat(f"step {progress.step + 1}, waiting for data")
                batch = next(batches)
                self.reporter.step(loader.wait_seconds - waited)  # before its record, which counts this wait
                waited = loader.wait_seconds
                self._step(batch)
                progress.bad = merged(progress.bad, loader.bad)
                self._validate_if_due()
                ends = progress.step in (last, stop_after)
                if ends or passed(progress.consumed, self.job.batch, self.samples_per_epoch):
                    self.save(must=ends)
        finally:
            loader.close()
        return progress.step >= last

    def _step(self, batch: Batch) -> None:
        """One step of the optimizer over this rank's part of a global batch."""
        training, progress = self.job.config.training, self.progress
        inputs, weight = self._take_in(batch)
        rate = self._set_rate()
        mean = self._descend(inputs, weight, batch.sample_ids)
        progress.step += 1
        progress.consumed += self.job.batch
        self._update_average()
        if progress.step % training.log_every == 0 or progress.step == self.rates.total_steps:
            record = {"epoch": self.epoch, "consumed": progress.consumed, "loss": mean, "lr": rate}
            self.reporter.train(progress.step, record, last_step=self.rates.total_steps)

    def _take_in(self, batch: Batch) -> tuple[Inputs, float]:
        """The batch as it enters the net, and how much counts in the global one.

        Saves where a checkpoint is due. Raises Preempted where any rank is to stop.
        """
        training, progress = self.job.config.training, self.progress
        labels, valid = batch.labels.to(self.job.device), batch.valid.to(self.job.device)
        views = [stand_ins(view, batch.valid).to(self.job.device) for view in batch.views]
        self.pulse.beat(f"step {progress.step + 1}, meeting the other ranks")
        weight, stop, save = self._agree_on(total_weight(labels, valid, self.class_weights).item())
        if stop:
            self.save(must=True)
            raise Preempted
        if save:
            self.save()
        torch.manual_seed(step_seed(training.seed, progress.consumed, self.job.ranks.rank))
        mixes = [draw_mix(training, progress.step, batch.sample_ids, valid, view.shape[2:]) for view in views]
        views = [view if mix is None else mix_images(view, mix) for view, mix in zip(views, mixes, strict=True)]
        if not self._shown:
            self._show_batch(views[0])
        return Inputs(views, labels, valid, mixes), divisor(weight)

    def _descend(self, inputs: Inputs, weight: float, sample_ids: Tensor) -> float:
        """Backpropagate micro-batch by micro-batch, move the weights; the mean loss of the global batch."""
        world = self.job.ranks.world
        micro = self.job.settings.micro_batch(world)
        parts = [slice(start, start + micro) for start in range(0, len(inputs.valid), micro)]
        losses, failed = 0.0, torch.zeros(len(inputs.valid), dtype=torch.bool)
        train_mode(self.engine)
        for part in parts:
            self.pulse.beat(f"step {self.progress.step + 1}, forward")
            loss = self._loss(inputs.part(part))
            if not math.isfinite(value := loss.item()):
                failed[part] = inputs.valid[part].cpu()
                if self.job.config.training.on_nan == "skip":
                    loss, value = torch.stack([p.sum() for p in self.engine.module.parameters()]).sum() * 0, 0.0
            losses += value
            self.pulse.beat(f"step {self.progress.step + 1}, backward")
            self.engine.backward(loss * (world * len(parts) / weight))
            if part is parts[-1]:
                mean = self._judge_loss(losses, sample_ids.cpu()[failed]) / weight
            self.engine.step()
        return mean

    def _judge_loss(self, losses: float, failed_ids: Tensor) -> float:
        """Sum of the loss over ranks. Where it is not finite: Diverged on every rank, before a weight moves, unless
        such losses are to be skipped.
        """
        whole, line = judge_loss(losses, failed_ids, self.progress.step + 1, self.job.device)
        if line is not None:
            if self.job.config.training.on_nan == "stop" or self.engine.zero_optimization_stage() == 3:
                raise Diverged(f"{line}: lower --lr, or --on-nan skip; --resume goes on from the last checkpoint")
            self.reporter.say(f"warning: {line}; their micro-batches count as zero")
        return whole

    def _loss(self, part: Inputs) -> Tensor:
        return views_loss(
            self.engine,
            part.views,
            part.labels,
            part.valid,
            mixes=part.mixes,
            label_smoothing=self.job.config.training.label_smoothing,
            class_weights=self.class_weights,
        )

    def _show_batch(self, images: Tensor) -> None:
        """The first rank's part of the first batch, as it enters the net."""
        self._shown = True
        if self.reporter.writer is not None:
            mean, std = self.job.config.data.norm(self.job.shards.manifest)
            self.reporter.picture("train/batch", batch_grid(images, mean, std), self.progress.step + 1)

    def _agree_on(self, weight: float) -> tuple[float, bool, bool]:
        """What counts in the global batch; whether any rank wants to stop; whether a checkpoint is due."""
        training, step = self.job.config.training, self.progress.step
        late = training.checkpoint_minutes and time.monotonic() - self._saved_at > 60 * training.checkpoint_minutes
        due = step > 0 and training.checkpoint_every and step % training.checkpoint_every == 0
        values = [weight, float(self.wish.asked), float(bool(late or due))]
        sums = total(torch.tensor(values, dtype=torch.float64, device=self.job.device)).tolist()
        return sums[0], sums[1] > 0, sums[2] > 0

    def _set_rate(self) -> float:
        history = [math.nan if value is None else value for value in self.progress.history]
        rate = self.rates.at(self.progress.step, history)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        return rate

    def _update_average(self) -> None:
        if self.average is None:
            return
        decay = self.job.config.training.ema
        with torch.no_grad():
            pairs = zip(self.average.parameters(), self.engine.module.parameters(), strict=True)
            for mean, now in pairs:
                mean.lerp_(now, 1 - decay)

    # ---- validation

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return self.progress.consumed / self.samples_per_epoch

    def _validate_if_due(self) -> None:
        step = self.progress.step
        if step == 0 or self.progress.validated == step or "val" not in self.job.shards.split_names:
            return
        every = self.job.config.training.val_every * self.samples_per_epoch
        if step == self.rates.total_steps or passed(self.progress.consumed, self.job.batch, every):
            self.validate()

    def validate(self) -> None:
        """Score the validation split, and keep the weights where the target metric is the best so far."""
        check_weights(self.engine.module, self.progress.step, self.job.device)
        model = self._model_to_evaluate()
        found = self.scores(model, "val")
        values = found.values
        show(self.job, self.reporter, found.predictions, "val", self.progress.step)
        target = self.job.shards.manifest.target_metric
        value, progress = values[target], self.progress
        self.reporter.record("val", progress.step, {"epoch": self.epoch, "consumed": progress.consumed, **values})
        progress.validated = progress.step
        progress.history.append(value if math.isfinite(value) else None)
        better = math.isfinite(value) and (progress.best is None or value > progress.best["value"])
        if better:
            metrics = {name: number if math.isfinite(number) else None for name, number in values.items()}
            progress.best = {"value": value, "step": progress.step, "epoch": self.epoch, "metrics": metrics}
            self._save_weights("best", self._state())
        self.reporter.say(
            f"epoch {self.epoch:.2f}: validation loss {values['loss']:.4f}, {target} {value:.4f}"
            + (" (best so far)" if better else "")
        )

    def scores(self, model: nn.Module, split: str) -> Scores:
        """Loss, metrics and predictions of a model on a split. Raises Preempted where a signal came meanwhile."""
        found = evaluate_split(self.job, model, split, stop=self._any_signalled, features=wants_features(self.job))
        more: dict[str, float] | None = {}
        if found is not None and self.job.config.evaluation.knn_eval:
            more = knn_metrics(self.job, model, found.predictions, stop=self._any_signalled)
        if found is None or more is None:
            self.save(must=True)
            raise Preempted
        found.values.update(more)
        for line in found.remarks:
            self.reporter.say(f"warning: {split}: {line}")
        return found

    def _any_signalled(self) -> bool:
        self.pulse.beat(f"evaluation after step {self.progress.step}")
        return self._agree_on(0.0)[1]

    def _model_to_evaluate(self) -> nn.Module:
        share_buffers(self.engine.module)
        if self.average is None:
            return self.engine.module
        for mine, other in zip(self.average.buffers(), self.engine.module.buffers(), strict=True):
            mine.copy_(other)
        return self.average

    # ---- what is kept

    def _state(self) -> dict[str, Tensor]:
        if self.average is None:
            return whole_state(self.engine)
        return {name: plain_copy(tensor) for name, tensor in self.average.state_dict().items()}

    def _save_weights(self, name: str, state: dict[str, Tensor]) -> None:
        path = self.job.folder / "weights" / f"{name}.safetensors"
        agree(lambda: save_weights(path, state, self.job.info))

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint and weights/last.safetensors; all ranks call it. What is whole already is left.

        Where it cannot be written (a full disk) nothing of it stays, and the run goes on with a warning. Raises
        ValueError instead where it `must` be written: the run ends here; Diverged where a weight is not finite.
        """
        check_weights(self.engine.module, self.progress.step, self.job.device)
        progress, training = self.progress, self.job.config.training
        folder = self.job.folder / "checkpoints"
        tag = checkpoints.tag_of(progress.step)
        part = folder / f"{tag}{checkpoints.PART}"
        scaler = getattr(self.engine, "torch_autocast_z0_gradscaler", None)
        progress.scaler = scaler.state_dict() if scaler is not None else None
        self._model_to_evaluate()
        self.pulse.beat(f"the checkpoint of step {progress.step}")
        if agree(lambda: checkpoints.fresh(part)):
            if (wrong := self._write(part)) is not None:
                line = f"the checkpoint of step {progress.step} could not be written ({wrong}): free space in {folder}"
                if must:
                    raise ValueError(f"{line}; --resume {self.job.folder} then goes on from the one before")
                self.reporter.say(f"warning: {line}; the run goes on, and the one before stays the newest")
                self._saved_at = time.monotonic()
                return
            self._save_weights("last", self._state())
        agree(lambda: checkpoints.prune(folder, training.keep_checkpoints))
        self._saved_at = time.monotonic()

    def _write(self, part: Path) -> str | None:
        """Write and seal a checkpoint; where that fails, on any rank, why, with nothing left of it."""
        wrong = first_word(save_engine(self.engine, part.parent, part.name))
        state = self._state() if self.average is not None else None
        stage, world = self.engine.zero_optimization_stage(), self.job.ranks.world

        def seal() -> str | None:
            nonlocal wrong
            try:
                if wrong is None:
                    if state is not None:
                        save_weights(part / "ema.safetensors", state, self.job.info)
                    checkpoints.seal(part, asdict(self.progress), world=world, stage=stage)
            except OSError as error:
                wrong = str(error)
            if wrong is not None:
                shutil.rmtree(part, ignore_errors=True)
            return wrong

        return agree(seal)

    def load(self, checkpoint: checkpoints.Checkpoint, whole: Whole | None = None) -> None:
        """Take up a checkpoint of this run; `whole` is its content where another number of ranks wrote it."""
        if whole is not None:
            load_optimizer(self.engine, whole, self.job.ranks.rank, self.job.ranks.world)
        else:
            with data_alone():
                self.engine.load_checkpoint(str(checkpoint.path.parent), tag=checkpoint.path.name)
        self.progress = Progress(**checkpoint.state)
        if self.average is not None:
            self.average.load_state_dict(read_weights(checkpoint.path / "ema.safetensors")[0])
        scaler = getattr(self.engine, "torch_autocast_z0_gradscaler", None)
        if scaler is not None and self.progress.scaler is not None:
            scaler.load_state_dict(self.progress.scaler)
