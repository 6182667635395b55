"""Many passes over one batch that differ in one layer group each, without computing the unchanged beginning again.

A model is cut into units: the outermost modules whose state belongs to one layer group (or that have no state). One
recorded pass keeps each unit's output; a pass with a group exchanged then answers, for every unit that ran before the
group's first, with the recorded output. What stands between units (additions, reshapes) runs as always, so this holds
for any model that calls its modules. With L groups of equal cost, L passes cost about L / 2.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Replay:
    """Runs a model on one batch again and again with layer groups exchanged.

    `reuse=False` computes every pass whole: the slow way to the same digits.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, Sequence[str]], *, reuse: bool = True):
        self.model, self.groups, self.reuse = model, dict(groups), reuse
        self._units, self._bare = _units(model, groups)
        self._modified: set[nn.Module] = set()  # units whose output somebody changes in place afterwards
        self._events: list[tuple[nn.Module, Tensor | None]] = []

    def run(self, images: Tensor, exchanges: Mapping[str, Mapping[str, Tensor]]) -> Iterator[tuple[str | None, Tensor]]:
        """Yield (None, output of the model as it is), then (group, output with that group's tensors exchanged).

        `exchanges` maps group -> {state-dict key: tensor}; the model is as before after each step.
        """
        with torch.no_grad():
            yield None, self._record(images) if self.reuse else self.model(images)
            for group, tensors in exchanges.items():
                with exchanged(self.model, tensors), self._answered(group):
                    yield group, self.model(images)
        self._events = []

    def _record(self, images: Tensor) -> Tensor:
        """The plain pass, with every unit's output kept; run again if one was changed in place after the first."""
        before = len(self._modified)
        self._events, versions = [], []

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                self._events.append((module, None))
                return
            kept = output.clone() if module in self._modified else output
            self._events.append((module, kept))
            versions.append((module, kept, kept._version))

        handles = [unit.register_forward_hook(hook) for unit in self._units]
        try:
            result = self.model(images)
        finally:
            for handle in handles:
                handle.remove()
        self._modified |= {module for module, kept, version in versions if kept._version != version}
        return result if len(self._modified) == before else self._record(images)

    def _first_event(self, group: str) -> int:
        """How many recorded calls do not depend on the group: those before its first unit, none where it is unclear."""
        if not self.reuse or group in self._bare:
            return 0
        calls = (number for number, (unit, _) in enumerate(self._events) if self._units[unit] == group)
        return next(calls, 0)

    @contextmanager
    def _answered(self, group: str) -> Iterator[None]:
        """Within: the units that ran before the group answer with what was recorded."""
        answers: dict[nn.Module, list[Tensor | None]] = {}
        for unit, kept in self._events[: self._first_event(group)]:
            answers.setdefault(unit, []).append(kept)
        try:
            for unit, outputs in answers.items():
                unit.forward = _answering(unit.forward, outputs, clone=unit in self._modified)
            yield
        finally:
            for unit in answers:
                del unit.__dict__["forward"]


def _answering(forward: Callable[..., Any], outputs: Sequence[Tensor | None], *, clone: bool) -> Callable[..., Any]:
    waiting = iter(outputs)

    def answer(*args: Any, **kwargs: Any) -> Any:
        kept = next(waiting, None)
        if kept is None:
            return forward(*args, **kwargs)
        return kept.clone() if clone else kept

    return answer


@contextmanager
def exchanged(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within: the model's tensors of these state-dict keys are the given ones; afterwards its own again, bit for bit.

    Raises ValueError for a key that the model lacks or a tensor of another shape.
    """
    state = model.state_dict(keep_vars=True)
    for key, tensor in tensors.items():
        if key not in state or state[key].shape != tensor.shape:
            found = tuple(state[key].shape) if key in state else "no such key"
            raise ValueError(f"cannot exchange {key!r}: shape {tuple(tensor.shape)}, the model has {found}")
    own = {key: state[key].data for key in tensors}
    try:
        for key, tensor in tensors.items():
            state[key].data = tensor.to(own[key].device, own[key].dtype)
        yield
    finally:
        for key, tensor in own.items():
            state[key].data = tensor


def _units(model: nn.Module, groups: Mapping[str, Sequence[str]]) -> tuple[dict[nn.Module, str | None], set[str]]:
    """Outermost modules of one group -> its name (None without state); and groups with parameters outside any unit."""
    group_of = {key: group for group, keys in groups.items() for key in keys}
    units: dict[nn.Module, str | None] = {}
    bare: set[str] = set()

    def visit(module: nn.Module, path: str) -> None:
        prefix = f"{path}." if path else ""
        inside = {group for key, group in group_of.items() if key.startswith(prefix)}
        container = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        if path and len(inside) <= 1 and not container:
            units[module] = next(iter(inside), None)
            return
        children = dict(module.named_children())
        bare.update(
            group
            for key, group in group_of.items()
            if key.startswith(prefix) and key[len(prefix) :].split(".")[0] not in children
        )
        for name, child in children.items():
            visit(child, prefix + name)

    visit(model, "")
    return units, bare
