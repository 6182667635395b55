"""The run directory, and the door through which analyses open what was trained.

    runs/NAME/  config.json  log.txt  metrics.jsonl  results.json  checkpoints/step-…/
                weights/{init,best,last}.safetensors

`open_run` takes a run directory, a .safetensors file or a DeepSpeed checkpoint folder. Weights files carry what they
need in their metadata: model, classes, normalisation, manifest digest, config.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shards.aside import aside
from shards.errors import first_line
from shards.fetching import shown_place
from shards.shardset import ShardSet
from train.config import Config
from train.reporting import read_metrics

CONFIG_FILE = "config.json"
RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.jsonl"
MODEL_STATES = "mp_rank_00_model_states.pt"
FOREIGN_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
Which = Literal["init", "best", "last"]


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself. `mean` and `std` are on the 0..1 scale, one number a channel."""

    model: str
    num_classes: int
    in_chans: int
    img_size: int
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    manifest_digest: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    def metadata(self) -> dict[str, str]:
        """Text by name, as safetensors wants it: each value as JSON, the model's name as it is."""
        values = {name: json.dumps(value) for name, value in vars(self).items() if name != "model"}
        return {"format": "pt", "model": self.model, **values}

    @classmethod
    def parse(cls, metadata: Mapping[str, str], where: str) -> "WeightsInfo":
        """The reverse of `metadata`. Raises ValueError where the file is not of this project."""
        try:
            values = {name: json.loads(metadata[name]) for name in cls.__dataclass_fields__ if name != "model"}
            for name in ("classes", "mean", "std"):
                values[name] = tuple(values[name])
            return cls(model=metadata["model"], **values)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{where} does not say what model it is of ({error}): give --model and --shards") from None


def save_weights(path: Path, state: Mapping[str, Tensor], info: WeightsInfo) -> None:
    """Write a state dict that timm loads strictly: aside, fsync, rename. Raises OSError, with nothing left, else."""
    try:
        with aside(path) as part:
            save_file({name: tensor.contiguous() for name, tensor in state.items()}, part, metadata=info.metadata())
    except SafetensorError as error:  # its word for a full disk
        raise OSError(f"{path} cannot be written: {error}") from None


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file, on the CPU. Raises ValueError where it is missing or is none."""
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None


@dataclass(frozen=True)
class Run:
    """Something trained, opened. `folder` is the run directory where it is known."""

    path: Path
    info: WeightsInfo
    out_dir: Path
    folder: Path | None = None
    given_shards: str | None = None

    @property
    def name(self) -> str:
        """Short name for figures and reports."""
        return self.folder.name if self.folder is not None and self.path == self.folder else self.path.stem

    @property
    def record(self) -> dict[str, Any]:
        """config.json of the run: `config`, `deepspeed`, `versions`, …; empty for foreign weights."""
        return read_json(self.folder / CONFIG_FILE) if self.folder is not None else {}

    @property
    def config(self) -> Config | None:
        """The run's config; None for foreign weights."""
        content = self.record.get("config") or self.info.config
        return Config.model_validate(dict(content)) if content else None

    @property
    def shards(self) -> ShardSet:
        """The set that was given, else the one of the training.

        Raises ValueError where none is known, it has changed since, or its channels or classes do not fit.
        """
        config = self.config
        where = self.given_shards or (config.data.shards if config is not None else None)
        if where is None:
            raise ValueError(f"{self.path} does not say which shard set it belongs to: give --shards DIR")
        data = config.data if config is not None and self.given_shards is None else None
        found = ShardSet(
            where,
            view=config.data.view if config is not None else None,
            labels_file=data.labels_file if data else None,
            split_file=data.split_file if data else None,
            cache=config.data.cache if config is not None else None,
            cache_limit=config.data.cache_bytes if config is not None else None,
        )
        if self.given_shards is None and self.info.manifest_digest not in ("", found.manifest.digest):
            raise ValueError(f"{shown_place(where)} is not the set that {self.path} was trained on: give --shards DIR")
        channels = config.data.image_channels(found.manifest) if config is not None else found.manifest.channels
        if config is not None and config.model.first_conv == "repeat" and channels == 1:
            channels = 3
        if channels != self.info.in_chans or found.num_classes != self.info.num_classes:
            raise ValueError(
                f"{shown_place(where)} has {found.manifest.channels} channels and {found.num_classes} classes, "
                f"{self.path} takes {self.info.in_chans} and {self.info.num_classes}: give a set that fits with "
                "--shards DIR"
            )
        return found

    def build_model(self) -> nn.Module:
        """The architecture with fresh weights, in evaluation mode."""
        from train.models import create

        info = self.info
        return create(info.model, info.num_classes, info.in_chans, img_size=info.img_size).eval()

    def init_state(self) -> dict[str, Tensor]:
        """The weights of step 0. Raises ValueError where only a file is known, or the run has lost them."""
        if self.folder is None:
            raise ValueError(f"{self.path} has no start: weights/init.safetensors lies in a run directory; give that")
        start = self.folder / "weights" / "init.safetensors"
        if not start.is_file():
            raise ValueError(
                f"no weights file {start}, which training writes at step 0, to compare with: bring it back, or give "
                f"{self.folder}/weights/best.safetensors for what asks of the end alone"
            )
        return read_weights(start)[0]

    def end_state(self, which: Which = "best") -> dict[str, Tensor]:
        """The weights that were opened; of a run directory the best, the last or the first."""
        if self.path.suffix == ".safetensors" and self.info.config:
            return read_weights(self.path)[0]
        if self.path.is_file():
            return self._foreign_state()
        if self.folder is not None and self.path == self.folder:
            return read_weights(self.folder / "weights" / f"{which}.safetensors")[0]
        return read_deepspeed(self.path)

    def _foreign_state(self) -> dict[str, Tensor]:
        """A file that others wrote, under timm's names. Raises ValueError where a tensor of the model is missing."""
        from train.weights import load_weights, read_state

        model = self.build_model()
        report = load_weights(model, read_state(self.path), self.path.name)
        if lacking := [*report.missing, *(["its classifier"] if report.fresh_head else [])]:
            raise ValueError(f"{self.path} does not hold all of {self.info.model}: it lacks {', '.join(lacking[:3])}")
        return model.state_dict()

    def results(self) -> dict[str, Any]:
        """results.json, with undefined metrics as NaN, and None for a split that the set lacks.

        Raises ValueError where the run has not ended.
        """
        path = (self.folder or self.path) / RESULTS_FILE
        if not path.is_file():
            raise ValueError(f"{self.path} has no {RESULTS_FILE}: the run has not ended (--resume goes on)")
        content = read_json(path)
        return content | {name: with_nan(content[name]) for name in ("val", "test") if content.get(name) is not None}

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl with what is undefined as NaN; none for a file alone."""
        return with_nan(read_metrics(self.folder / METRICS_FILE)) if self.folder is not None else []


def open_run(path: str | Path, shards: str | Path | None = None, model: str | None = None) -> Run:
    """Open a run directory, a weights file (.safetensors, or torch's) or a DeepSpeed checkpoint folder.

    `shards` takes the place of the set of the training; `model` names the architecture of foreign weights. Raises
    ValueError in one line where the path is none of the three or does not say what it holds.
    """
    path = Path(path)
    given = str(shards) if shards is not None else None
    if path.is_file() and path.suffix in FOREIGN_SUFFIXES:
        from train.weights import read_state

        info = _info((read_state(path), {}), path, given, model)
        return Run(path, info, path.parent / f"{path.stem}-analysis", None, given)
    if path.is_file() and path.suffix == ".safetensors":
        folder = _run_folder(path.parent.parent) if path.parent.name == "weights" else None
        # A run's own results are those of its best weights; others lie beside them under their name.
        part = "" if path.stem == "best" else path.stem
        out = folder / "analysis" / part if folder else path.parent / f"{path.stem}-analysis"
        return Run(path, _info(read_weights(path), path, given, model), out, folder, given)
    if _run_folder(path) is not None:
        first = next(
            (f for w in ("best", "last", "init") if (f := path / "weights" / f"{w}.safetensors").is_file()), None
        )
        if first is None:
            raise ValueError(f"{path} has no weights yet: its training has not begun")
        return Run(path, _info(read_weights(first), first, given, model), path / "analysis", path, given)
    if (found := _deepspeed_folder(path)) is not None:
        folder = _run_folder(found.parent.parent)
        if folder is not None:
            info = _info(read_weights(folder / "weights" / "init.safetensors"), found, given, model)
            return Run(found, info, folder / "analysis" / found.name, folder, given)
        return Run(found, _info((read_deepspeed(found), {}), found, given, model), found / "analysis", None, given)
    raise ValueError(f"{path} is no run directory, no weights file and no DeepSpeed checkpoint folder")


def read_deepspeed(folder: Path) -> dict[str, Tensor]:
    """The model's tensors of a DeepSpeed checkpoint of stage 0-2, read without running code.

    Raises ValueError at stage 3, whose files hold pieces.
    """
    path = folder / MODEL_STATES
    if not path.is_file():
        raise ValueError(f"{folder} is of ZeRO stage 3, in pieces: take weights/last.safetensors of its run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling refuses in many ways; all mean that the file is not safe to read
        raise ValueError(f"{path} cannot be read safely: {first_line(error)}") from None
    module = content.get("module") if isinstance(content, dict) else None
    if not isinstance(module, dict):
        raise ValueError(f"{path} holds no module: is it a DeepSpeed checkpoint?")
    return {str(name): tensor for name, tensor in module.items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError where the file is missing or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _run_folder(path: Path) -> Path | None:
    return path if (path / CONFIG_FILE).is_file() and (path / "weights").is_dir() else None


def _deepspeed_folder(path: Path) -> Path | None:
    """The folder with the model states: the path itself, or what its `latest` names."""
    candidates = [path]
    if (path / "latest").is_file():
        candidates.append(path / (path / "latest").read_text(encoding="utf-8").strip())
    for folder in candidates:
        if (folder / MODEL_STATES).is_file() or any(folder.glob("zero_pp_rank_0_*model_states.pt")):
            return folder
    return None


def _info(
    weights: tuple[dict[str, Tensor], dict[str, str]], path: Path, shards: str | None, model: str | None
) -> WeightsInfo:
    state, metadata = weights
    if set(WeightsInfo.__dataclass_fields__) <= set(metadata):
        info = WeightsInfo.parse(metadata, str(path))
        if model not in (None, info.model):
            raise ValueError(f"{path} holds {info.model}, not {model}: drop --model")
        return info
    if (model := model or metadata.get("model")) is None:
        raise ValueError(f"{path} does not say what model it is of: give --model")
    return _foreign_info(state, path, shards, model)


def _foreign_info(state: Mapping[str, Tensor], path: Path, shards: str | None, model: str) -> WeightsInfo:
    """Classes and channels from the shapes of the first and the last layer, as timm names them."""
    from train.models import create, input_size
    from train.weights import fitting_names

    probe = create(model, 1)
    state = fitting_names(dict(state), probe)
    head, first = (_names(probe, key) for key in ("classifier", "first_conv"))
    sizes = [
        next((int(state[f"{name}.weight"].shape[axis]) for name in names if f"{name}.weight" in state), None)
        for names, axis in ((head, 0), (first, 1))
    ]
    if None in sizes:
        raise ValueError(f"{path} has no {' or '.join([*head, *first])}: is it of {model}?")
    size = input_size(probe)[-1]
    if shards is None:
        return WeightsInfo(model, sizes[0] or 0, sizes[1] or 0, size)
    found = ShardSet(shards)
    manifest = found.manifest
    return WeightsInfo(
        model, sizes[0] or 0, sizes[1] or 0, size, tuple(found.classes), tuple(manifest.mean), tuple(manifest.std),
        manifest.digest,
    )  # fmt: skip


def _names(model: nn.Module, key: str) -> tuple[str, ...]:
    value = model.pretrained_cfg.get(key)  # type: ignore[operator, union-attr]
    return (value,) if isinstance(value, str) else tuple(value or ())


def with_nan(value: Any) -> Any:
    """JSON's content with every null as NaN."""
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: with_nan(each) for key, each in value.items()}
    return [with_nan(each) for each in value] if isinstance(value, list) else value
