"""DeepSpeed, held at arm's length: ranks, process group, engine, whole weights.

`python train/run.py` alone is one rank without ports or a launcher; under `deepspeed` the launcher's environment tells.
"""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.errors import first_line
from train.ds_settings import DeepSpeedSettings
from train.stopping import ending_while_waiting

T = TypeVar("T")
TORCH_LOADS = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")  # torch refuses both at once
TIMEOUT = timedelta(minutes=30)  # a rank that waits longer for its peers gives up


@dataclass(frozen=True)
class Ranks:
    """Who this process is among its peers."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1  # ranks on this machine

    @property
    def of_node(self) -> range:
        """The ranks of this machine: the launcher numbers them one after the other."""
        return range(self.rank - self.local_rank, self.rank - self.local_rank + self.local_world)

    @property
    def first(self) -> bool:
        """Whether this rank writes and speaks."""
        return self.rank == 0


def ranks_from_environment() -> Ranks:
    """What the launcher set; one rank without it."""
    return Ranks(*(int(os.environ.get(name, default)) for name, default in _ENVIRONMENT))


_ENVIRONMENT = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_SIZE", "1"))


def device_of(ranks: Ranks) -> torch.device:
    """The rank's GPU where there is one and DS_ACCELERATOR does not say cpu."""
    if os.environ.get("DS_ACCELERATOR", "cuda") != "cuda" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", ranks.local_rank)


def join(ranks: Ranks, device: torch.device) -> None:
    """Join the process group: gloo on the CPU, NCCL on GPUs. From here on cuDNN takes algorithms that repeat."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    # Without this the first start on a CPU compiles a shared-memory all-reduce for most of a minute; gloo serves.
    __compatible_ops__["deepspeed_shm_comm"] = False
    backend = "gloo" if device.type == "cpu" else "nccl"
    if ranks.world > ranks.local_world and (name := interface_to(os.environ.get("MASTER_ADDR", ""))) is not None:
        # Gloo listens at the address of the machine's own name, which on many is 127.0.1.1: no other machine finds it.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if ranks.world == 1:
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"})
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    with ending_while_waiting():
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=TIMEOUT)


def interface_to(host: str) -> str | None:
    """Name of the network interface by which this machine reaches `host` (itself, too); None where there is none."""
    import psutil

    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: the kernel chooses the way
            own = probe.getsockname()[0]
    except OSError:
        return None
    found = psutil.net_if_addrs().items()
    return next((name for name, each in found if any(entry.address.split("%")[0] == own for entry in each)), None)


def leave() -> None:
    """Leave the process group, if joined; the process can join another afterwards."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()
        deepspeed.comm.comm.cdb = None  # it would go on with the group that has ended


def world_size() -> int:
    """Ranks in the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def data_alone() -> Iterator[None]:
    """What torch loads within holds tensors and four of DeepSpeed's classes: nothing in it can run.

    DeepSpeed itself loads with `weights_only=False`; torch's own variable overrules it. Raises ValueError where a file
    holds anything else.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    before = {name: os.environ.pop(name, None) for name in TORCH_LOADS}
    os.environ[TORCH_LOADS[0]] = "1"
    try:
        with torch.serialization.safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]):
            yield
    except pickle.UnpicklingError as error:
        found = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), str(error).splitlines()[0])
        raise ValueError(f"the checkpoint cannot be read safely: {found[:150]}") from None
    finally:
        del os.environ[TORCH_LOADS[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def build_engine(model: nn.Module, optimizer: torch.optim.Optimizer, settings: DeepSpeedSettings, world: int) -> Any:
    """The DeepSpeed engine over a model and an optimizer of ours."""
    import deepspeed
    from deepspeed.runtime import torch_autocast

    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False  # else an earlier engine's precision is this one's in gradients
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings.resolved(world), dist_init_required=False
    )
    if settings.precision == "fp16" and settings.stage >= 1:
        _scale_losses(engine.optimizer)
    return engine


def _scale_losses(zero: Any) -> None:
    """Give ZeRO under fp16 autocast a loss scaler that works; its state lies in DeepSpeed's own checkpoints.

    What it takes by itself (0.19.8), a torch GradScaler for each rank and group, is unscaled after clipping, and never
    lowered where the norm overflows: such a step is skipped, and so is every step after it.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    zero.torch_autocast_gradscaler = None
    zero.loss_scaler = DynamicLossScaler(
        init_scale=2.0**16, scale_window=2000, min_scale=1.0, delayed_shift=1, consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )  # fmt: skip
    zero.dynamic_loss_scale = True


def train_mode(engine: nn.Module) -> None:
    """Training mode, but for modules all of whose parameters are frozen: their BatchNorm statistics stay."""
    engine.train()
    for module in engine.modules():
        own = list(module.parameters())
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()


def agree(function: Callable[[], T]) -> T:
    """What `function` returns on rank 0, on every rank; its ValueError or OSError is raised on every rank.

    The result travels between our own processes alone.
    """
    answer: list[Any] = [None, None]
    if world_size() == 1:
        return function()
    if dist.get_rank() == 0:
        try:
            answer[0] = function()
        except (ValueError, OSError) as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise ValueError(answer[1])
    return answer[0]


def first_word(word: str | None) -> str | None:
    """The word of the lowest rank that has one, with its rank; None where none has. All ranks call it."""
    words = [word]
    if world_size() > 1:
        words = [None] * world_size()
        dist.all_gather_object(words, word)
    return next((f"rank {rank}: {each}" for rank, each in enumerate(words) if each is not None), None)


def save_engine(engine: Any, folder: Path, tag: str) -> str | None:
    """Write this rank's files into folder/tag; what went wrong, in words, else None. All ranks call it.

    DeepSpeed's ranks meet while they write: one that raised, for a full disk say, would leave the others waiting.
    """
    wrong: list[str] = []
    write = engine.checkpoint_engine.save

    def guarded(state_dict: Any, path: str) -> None:
        try:
            write(state_dict, path)
        except (OSError, RuntimeError) as error:
            wrong.append(first_line(error))

    engine.checkpoint_engine.save = guarded
    try:
        engine.save_checkpoint(str(folder), tag=tag, save_latest=False)
    finally:
        engine.checkpoint_engine.save = write
    return wrong[0] if wrong else None


def total(values: Tensor) -> Tensor:
    """Sum over all ranks, in place, for a tensor of any shape [..]."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_first(values: Tensor) -> Tensor:
    """Tensors [b, …] of one shape on every rank, joined in the order of ranks: [world * b, …] on every rank."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def share_buffers(module: nn.Module) -> None:
    """Give every rank the first rank's buffers: BatchNorm's running statistics are rank 0's, as in torch's DDP."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def plain_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU in the usual memory format, which files want."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def whole_state(engine: Any) -> dict[str, Tensor]:
    """The model's state on the CPU, whole at every ZeRO stage, in copies of our own. All ranks call it."""
    module = engine.module
    if engine.zero_optimization_stage() < 3:
        return {name: plain_copy(tensor) for name, tensor in module.state_dict().items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(module.parameters()), modifier_rank=None):
        return {name: plain_copy(tensor) for name, tensor in module.state_dict().items()}
