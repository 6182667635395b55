"""The layer groups of a timm model: the one unit that starts, learning rates, CKA, L2 and re-initialisation share.

The groups are those of timm's `group_matcher(coarse=False)`: about one a residual or transformer block, with the
layers before and after joined to a neighbour as timm has it (a ViT's last norm belongs to its last block). Families
without a matcher are cut at their top-level modules, and `grouping` says so.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from timm.models._manipulate import group_with_matcher
from torch import nn


class InputOf(NamedTuple):
    """A tap on what goes into a module, where `taps` otherwise looks at what comes out."""

    module: nn.Module


def grouping(model: nn.Module) -> str:
    """Where the groups come from: "group_matcher" or "top-level modules"."""
    return "top-level modules" if _matcher(model) is None else "group_matcher"


def layer_groups(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Group name -> state-dict keys (parameters and buffers), from the input to the head.

    Every key of `model.state_dict()` is in exactly one group. A name is the path of the module that makes the group
    ("blocks.3", "layer2.1", "fc"); "stem" and "head" stand for first and last groups of several modules, and other
    groups of several modules join their paths with "+".
    """
    groups = _groups_of_keys(model)
    below, modules = _keys_below(model), dict(model.named_modules())
    roots = [_roots(below, modules, group) for group in groups]
    names = [_name(found, first=i == 0, last=i == len(roots) - 1) for i, found in enumerate(roots)]
    if len(set(names)) < len(names):
        names = ["+".join(found) for found in roots]
    assert len(set(names)) == len(names), f"group names repeat: {names}"
    return dict(zip(names, groups, strict=True))


def taps(model: nn.Module) -> dict[str, nn.Module]:
    """Group name -> the module whose output stands for the group: its last one, in the order of registration.

    A module without parameters counts where the matcher names it (ResNet's `maxpool` ends the stem; a ViT's
    `norm_pre`, an identity, is where cls token and position have been added). A group of bare parameters alone has no
    tap.
    """
    modules, below, silent = dict(model.named_modules()), _keys_below(model), _silent_modules(model)
    place = {name: i for i, name in enumerate(modules)}
    found: dict[str, nn.Module] = {}
    for name, keys in layer_groups(model).items():
        owners = [root for root in _roots(below, modules, keys) if root in modules]
        owners += [other for other, key in silent.items() if key in keys]
        if owners:
            found[name] = _last_of(modules[max(owners, key=place.__getitem__)])
    return found


def embedding_tap(model: nn.Module) -> InputOf:
    """The pooled embedding: what goes into the classifier.

    Raises ValueError for a model without a classifier.
    """
    for name in classifier_names(model):
        return InputOf(model.get_submodule(name))
    raise ValueError(
        f"{type(model).__name__} has no classifier whose input would be the embedding: build it with num_classes > 0"
    )


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Module names of the classifier: one, or two for distilled models; none for a model of num_classes=0."""
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = (configured,) if isinstance(configured, str) else tuple(configured)
    modules = dict(model.named_modules())
    return tuple(name for name in names if name in modules and any(True for _ in modules[name].parameters()))


def classifier_keys(model: nn.Module) -> tuple[str, ...]:
    """State-dict keys of the classifier, which is fresh in every start."""
    prefixes = tuple(name + "." for name in classifier_names(model))
    return tuple(key for key in model.state_dict() if key.startswith(prefixes)) if prefixes else ()


def group_index(names: Iterable[str], wanted: str | int) -> int:
    """How many leading groups `wanted` keeps: a count 0..n as it is, a name as its own place + 1 (that group included).

    Raises ValueError for an unknown name or a count outside 0..n, and says what there is.
    """
    known = list(names)
    if isinstance(wanted, str) and not wanted.lstrip("-").isdigit():
        if wanted in known:
            return known.index(wanted) + 1
        raise ValueError(f"unknown layer group {wanted!r}; groups: {', '.join(known)}")
    if not 0 <= int(wanted) <= len(known):
        raise ValueError(
            f"{int(wanted)} layer groups asked for, but the model has {len(known)}: give 0..{len(known)} or a name"
        )
    return int(wanted)


def _matcher(model: nn.Module) -> dict[str, Any] | Callable[..., Any] | None:
    """Timm's matcher of fine groups, or None where the family has none."""
    if not hasattr(model, "group_matcher"):
        return None
    try:
        return model.group_matcher(coarse=False)  # type: ignore[operator]
    except (NotImplementedError, AssertionError):
        return None


def _groups_of_keys(model: nn.Module) -> list[tuple[str, ...]]:
    keys = list(model.state_dict())
    matcher = _matcher(model)
    if matcher is not None:
        return [tuple(group) for group in group_with_matcher(((key, key) for key in keys), matcher).values()]
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(key.split(".")[0] if "." in key else "", []).append(key)
    bare = groups.pop("", [])  # tokens and position tables on the model itself enter with its first module
    ordered = list(groups.values()) or [[]]
    return [tuple(bare + ordered[0]), *map(tuple, ordered[1:])]


def _keys_below(model: nn.Module) -> dict[str, list[str]]:
    """Module path -> the state-dict keys at or below it."""
    below: dict[str, list[str]] = {}
    for key in model.state_dict(keep_vars=True):
        parts = key.split(".")
        for depth in range(1, len(parts)):
            below.setdefault(".".join(parts[:depth]), []).append(key)
    return below


def _roots(below: dict[str, list[str]], modules: dict[str, nn.Module], keys: tuple[str, ...]) -> list[str]:
    """The outermost modules (and bare parameters) that hold keys of this group alone, in order.

    Containers are entered, since a ModuleList is never called itself and a stage of one block should bear the block's
    name.
    """
    wanted = set(keys)
    roots: dict[str, None] = {}
    for key in keys:
        parts = key.split(".")
        paths = [".".join(parts[:depth]) for depth in range(1, len(parts))]
        whole = (path for path in paths if wanted.issuperset(below[path]) and not _is_transparent(path, modules, below))
        roots[next(whole, key)] = None
    return list(roots)


def _is_transparent(path: str, modules: dict[str, nn.Module], below: dict[str, list[str]]) -> bool:
    module = modules[path]
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return True
    return (
        isinstance(module, nn.Sequential) and sum(f"{path}.{name}" in below for name, _ in module.named_children()) == 1
    )


def _last_of(module: nn.Module) -> nn.Module:
    """The last child of a Sequential, whose output is the same: some families call the children themselves."""
    while type(module) is nn.Sequential and len(module):
        module = module[-1]
    return module


def _has_state(module: nn.Module) -> bool:
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _silent_modules(model: nn.Module) -> dict[str, str]:
    """Stateless modules that the matcher's patterns name themselves -> one key of their group."""
    matcher = _matcher(model)
    if not isinstance(matcher, dict):
        return {}
    keys = list(model.state_dict())
    names = [name for name, module in model.named_children() if not _has_state(module)]
    found: dict[str, str] = {}
    for group in group_with_matcher(((name, name) for name in [*keys, *names]), matcher).values():
        matched = [name for name in group if name in names and _is_matched(matcher, name)]
        first = next((name for name in group if name not in names), None)
        found.update({name: first for name in matched if first is not None})
    return found


def _is_matched(matcher: dict[str, Any], name: str) -> bool:
    specs = [
        spec if isinstance(spec, (tuple, list)) else [(spec, None)] for spec in matcher.values() if spec is not None
    ]
    return any(re.match(pattern, name) for entries in specs for pattern, _ in entries)


def _name(roots: list[str], *, first: bool, last: bool) -> str:
    if len(roots) == 1:
        return roots[0]
    numbered = [root for root in roots if root.rsplit(".", 1)[-1].isdigit()]
    if len(numbered) == 1:
        return numbered[0]
    if first:
        return "stem"
    return "head" if last else "+".join(roots)
