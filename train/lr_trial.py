"""One try of the search for a learning rate: a training that keeps nothing but its records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from train.divergence import Diverged
from train.loop import Trainer
from train.reporting import Reporter

SMOOTHING = 0.9  # of the loss in a range test
BLOWN_UP = 4.0  # times its lowest value, where a range test ends


class Trial(Trainer):
    """A training that writes neither checkpoints nor weights."""

    validates = True

    def save(self, *, must: bool = False) -> None:
        """Keep nothing."""

    def _save_weights(self, name: str, state: dict[str, Tensor]) -> None:
        del name, state

    def _validate_if_due(self) -> None:
        if self.validates:
            super()._validate_if_due()


@dataclass
class Notebook:
    """Takes a reporter's place in a try: keeps the records, and passes steps on to the bar of the whole search."""

    bar: Reporter
    writer: None = None  # no pictures of a try
    records: list[dict[str, Any]] = field(default_factory=list)

    def say(self, line: str) -> None:
        """Warnings alone: of each try the search tells itself."""
        if line.startswith("warning"):
            self.bar.say(line)

    def step(self, wait_seconds: float) -> None:
        """Count a step."""
        self.bar.step(wait_seconds)

    def train(self, step: int, record: Mapping[str, Any], *, last_step: int) -> None:
        """Keep the record of a step."""
        del last_step
        self.record("train", step, record)

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep a record."""
        self.records.append({"kind": kind, "step": step, **values})

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind."""
        return [each for each in self.records if each["kind"] == kind]


class RangeNotebook(Notebook):
    """Ends the try where the smoothed loss has blown up."""

    smooth, lowest = 0.0, math.inf

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Keep a record with the smoothed loss, free of the bias of its first steps. Raises Diverged."""
        self.smooth = SMOOTHING * self.smooth + (1 - SMOOTHING) * values["loss"]
        smooth = self.smooth / (1 - SMOOTHING**step)
        super().record(kind, step, {**values, "smooth_loss": smooth})
        self.lowest = min(self.lowest, smooth)
        if step > 10 and smooth > BLOWN_UP * self.lowest:
            raise Diverged(f"the loss has blown up at step {step}")


@dataclass(frozen=True)
class Ramp:
    """Rates of a range test: from `low` to `high` by a constant factor a step."""

    low: float
    high: float
    total_steps: int
    epoch_steps: float

    def at(self, step: int, history: Sequence[float] = ()) -> float:
        """Rate of a step."""
        del history
        return float(self.low * (self.high / self.low) ** (step / max(self.total_steps - 1, 1)))
