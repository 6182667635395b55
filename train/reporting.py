"""What a run tells while it goes: log.txt, metrics.jsonl, TensorBoard, and a progress bar. Rank 0 alone writes."""

import json
import math
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from shards.aside import write_aside


def dumps(value: Any, **options: Any) -> str:
    """Strict JSON: numbers unrounded, what is not finite as null."""
    return json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, **options)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a last line that a crash cut short is left out.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines):
        try:
            records += [json.loads(line)] if line else []
        except json.JSONDecodeError:
            if any(lines[number + 1 :]):
                raise ValueError(f"{path}, line {number + 1} is not JSON: was it edited?") from None
    return records


def memory_gb() -> float:
    """The most memory held so far by the first rank, 10^9 bytes: its GPU's, or the process's where there is none."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


MOST_WAITING = 0.05  # share of the time; above it the data are slower than the network


def advice(share: float) -> str:
    """What to do where training waits for data; nothing to say below MOST_WAITING."""
    if share <= MOST_WAITING:
        return ""
    return (
        f"waited for data {share:.0%} of the time, more than {MOST_WAITING:.0%}: raise --threads up to the cores of a "
        "rank, store images nearer to the size trained at, or take a lighter --preset; python -m shards bench DIR says "
        "which of reading, decoding and augmentation is the limit"
    )


class Reporter:
    """Writes where `folder` is given (rank 0), and is silent where it is None.

    Records of steps after `first_step`, which a resumed run writes again, are dropped.
    """

    def __init__(
        self, folder: Path | None, *, tensorboard: bool, total_steps: int, first_step: int = 0, per_step: int = 1
    ):
        self.folder = folder
        self.writer: Any = None
        self.bar: Any = None
        self._start, self._steps, self._wait, self._seen = time.monotonic(), 0, 0.0, 0
        self.per_step = per_step
        self._advised, self._records = False, 0
        if folder is None:
            return
        path = folder / "metrics.jsonl"
        kept = [each for each in read_metrics(path) if each["step"] <= first_step and each["kind"] != "test"]
        write_aside(path, "".join(dumps(record) + "\n" for record in kept).encode())
        self._metrics = path.open("a", encoding="utf-8")
        self._log = (folder / "log.txt").open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        # disable=None: a bar on a terminal, plain lines elsewhere.
        self.bar = tqdm(total=total_steps, initial=first_step, unit="step", disable=None, dynamic_ncols=True)

    def say(self, line: str) -> None:
        """One line on the console and, with the time, in log.txt."""
        if self.folder is None:
            return
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        self._log.flush()
        if self.bar is not None and not self.bar.disable:
            self.bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def step(self, wait_seconds: float) -> None:
        """Count a step, before its record; `wait_seconds`: what it waited for data."""
        self._steps += 1
        self._wait += wait_seconds
        if self.bar is not None:
            self.bar.update(1)

    def train(self, step: int, record: Mapping[str, Any], *, last_step: int) -> None:
        """Record a training step with the rates since the last record."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = self._steps * self.per_step / seconds
        left = seconds / max(self._steps, 1) * (last_step - step)
        share = min(self._wait / seconds, 1.0)
        self._start, self._steps, self._wait = time.monotonic(), 0, 0.0
        self.record(
            "train", step, {**record, "images_per_second": speed, "wait_share": share, "memory_gb": memory_gb()}
        )
        if self.bar is not None:
            self.bar.set_postfix_str(
                f"loss {record['loss']:.4f}, lr {record['lr']:.2e}, {speed:.0f} images/s, waited {share:.0%}, "
                f"{memory_gb():.1f} GB"
            )
            if self.bar.disable:
                self.say(
                    f"step {step}/{last_step} epoch {record['epoch']:.2f} loss {record['loss']:.4f} "
                    f"lr {record['lr']:.3g} {speed:.0f} images/s, waited for data {share:.0%}, {memory_gb():.1f} GB, "
                    f"{duration(left)} left"
                )
        self._records += 1
        if self._records > 1 and not self._advised and advice(share):  # the first record has the start in it
            self._advised = True
            self.say(advice(share))

    def picture(self, tag: str, image: np.ndarray, step: int) -> None:
        """An image uint8[h, w, 3] for TensorBoard."""
        if self.writer is not None:
            self.writer.add_image(tag, image, step, dataformats="HWC")

    def record(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, and its numbers as scalars of TensorBoard."""
        if self.folder is None:
            return
        self._metrics.write(dumps({"kind": kind, "step": step, **values}) + "\n")
        self._metrics.flush()
        if self.writer is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self.writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close bar and files."""
        if self.folder is None:
            return
        self.bar.close()
        self._metrics.close()
        self._log.close()
        if self.writer is not None:
            self.writer.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
