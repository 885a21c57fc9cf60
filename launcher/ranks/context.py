"""Who this process is among the processes of the run, and how they talk to each other."""

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from launcher.data.device import claim_gpu, usable_gpus
from launcher.errors import ANOTHER_WAS_NOT, BadInput, PeerFailed, TrainingFailed
from launcher.gpus import shared
from launcher.model.state import expanded, fill
from launcher.processes import STORE, allow_open_files
from launcher.ranks.buckets import settle_buckets
from launcher.ranks.interface import choose_interface
from launcher.run.mark import Marker

T = TypeVar("T")

WATCHED_S = 24 * 3600.0  # what a collective may take where the launcher judges what hangs
# What gloo and NCCL both broadcast by itself, and so DDP does.
_SENT = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.complex128, torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool),
}


class Apart:
    """Ranks that may call the model each by itself: nothing has to be said before it."""

    def __call__(self, what: int = 0) -> None:
        """Tell the others what this rank does next."""

    def leave_unused(self) -> None:
        """Have no gradient of a weight that no rank has used in a step."""

    def blaming(self) -> AbstractContextManager[None]:
        """Explain what fails because a part of the model was used otherwise than by calling it."""
        return nullcontext()


class Context:
    """Rank, world size and device of this process, and the collectives the run needs.

    Every method that says "collective" must be called by all ranks in the same order.
    """

    def __init__(
        self,
        *,
        cpu: bool = False,
        mixed_precision: str = "no",
        find_unused_parameters: bool = False,
        expected_world: int | None = None,
        patience_s: float = WATCHED_S,
    ) -> None:
        """Join the process group; collective.

        `patience_s` is how long a rank waits for the others in a collective before it fails.
        Raises BadInput where `accelerate launch` was told to train in a way that is none of ours,
        where there are GPUs that torch cannot use, or not one for each process; TrainingFailed
        where ranks are missing.
        """
        started = int(os.environ.get("WORLD_SIZE", "1"))
        on_cpu = cpu or not usable_gpus()
        allow_open_files()
        choose_interface()
        _refuse_other_ways_to_train()
        if not on_cpu:
            claim_gpu()
        ddp = DistributedDataParallelKwargs(
            gradient_as_bucket_view=True, find_unused_parameters=find_unused_parameters
        )
        self.accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=mixed_precision,
            dynamo_backend="no",
            kwargs_handlers=[ddp, _group(patience_s, started, on_cpu=on_cpu)],
        )
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.local_rank: int = self.accelerator.local_process_index
        self.device: torch.device = self.accelerator.device
        self.patience_s = patience_s
        self.marker = Marker(None)  # for who watches this process, if anybody
        self.together = Apart()
        expected = expected_world or started
        if self.world_size != expected:
            raise TrainingFailed(
                f"{expected} processes were asked for, but this one is in a world of "
                f"{self.world_size}",
                hint="`launcher run --nproc N` passes Accelerate what it needs",
            )

    @property
    def where(self) -> str:
        """What the run is computed on, for people."""
        count = f"{self.world_size} process" + "es" * (self.world_size > 1)
        if self.device.type != "cuda":
            threads = torch.get_num_threads()
            return f"{count} on the CPU, {threads} thread{'s' * (threads > 1)} each"
        how = "sharing GPUs over gloo, for tests" if shared() else "a GPU each"
        return f"{count}, {how}: {torch.cuda.get_device_name(self.device)}"

    @staticmethod
    def close() -> None:
        """Leave the process group; a process that just exits often aborts in gloo's threads.

        So it does where a DDP that nobody needs any more still holds the group.
        """
        if dist.is_initialized():
            gc.collect()
            dist.destroy_process_group()

    def reduce(self, values: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place; collective."""
        if dist.is_initialized():
            self.together()
            dist.all_reduce(values)
        return values

    def agree(self, value: bool) -> bool:
        """Return whether any rank says so; collective, and so a barrier too.

        Ranks may come to it at very different times, for reasons that the launcher's watch knows.
        """
        with self.marker.waiting():
            return bool(self.reduce(torch.tensor([float(value)], device=self.device)).item())

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank; collective, for start-up only."""
        values: list[T | None] = [None] * self.world_size
        if not dist.is_initialized():
            return [value]
        with self.marker.waiting():
            self.together()
            dist.all_gather_object(values, value)
        return cast("list[T]", values)

    def local_first(self, make: Callable[[], T]) -> T:
        """Call `make` on the first rank of each node, then on the others; collective.

        Where one fails all fail: it with its own error, the others with PeerFailed.
        """
        turns = [self.turn(make, mine=mine) for mine in (self.local_rank == 0, self.local_rank > 0)]
        return cast("T", turns[self.local_rank > 0])

    def turn(self, make: Callable[[], T], *, mine: bool) -> T | None:
        """Call `make` where it is this rank's turn, while the others wait; collective.

        Where one fails all fail, as above. Returns None to those that only waited.
        """
        error: Exception | None = None
        made: T | None = None
        if mine:
            try:
                made = make()
            except Exception as caught:  # noqa: BLE001  # raised below, after the others know
                error = caught
        failed = self.agree(error is not None)
        if error:
            raise error
        if failed:
            words = "another rank could not get ready, or end"
            raise PeerFailed(ANOTHER_WAS_NOT if mine else words)
        return made

    def from_first(self, make: Callable[[], T], what: str) -> T:
        """Return on all ranks what `make` makes on rank 0, while the others wait; collective.

        Where it fails all fail: rank 0 with its own error, the others with PeerFailed, which says
        `what` failed and why.
        """
        made: T | None = None
        error: Exception | None = None
        if self.rank == 0:
            try:
                with self.marker.beating():
                    made = make()
            except Exception as caught:  # noqa: BLE001  # raised below, after the others know
                error = caught
        words = f"{type(error).__name__}: {error}" if error else ""
        told, failed = self.gather((made, words))[0]
        if error:
            raise error
        if failed:
            raise PeerFailed(f"{what} failed on rank 0: {failed}")
        return cast("T", told)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, with autocast as asked, and wrap it in DDP; collective."""
        self.together = Apart()
        if dist.is_initialized():
            _leave_out_odd_buffers(model)
        wrapped = cast("nn.Module", self.accelerator.prepare_model(model))
        if wrapped is model and dist.is_initialized() and _trains(model):
            wrapped = self._in_ddp(model)
        if isinstance(wrapped, DistributedDataParallel):
            settle_buckets(wrapped)
        return wrapped

    def _in_ddp(self, model: nn.Module) -> nn.Module:
        """Wrap as Accelerate does, but for a world of one, which it leaves alone on a GPU."""
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, devices, **self.accelerator.ddp_handler.to_kwargs())

    def gradients(self, model: nn.Module, *, synchronise: bool) -> AbstractContextManager[None]:
        """Forward and backward of a micro-batch; only the last of a step synchronises ranks."""
        if synchronise or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the buffers of rank 0 (batch norm statistics); collective."""
        if dist.is_initialized():
            self.together()
            for buffer in model.buffers():
                _share(buffer)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP: forward passes that do not wait for other ranks."""
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    return cast("nn.Module", inner)


def _trains(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def _leave_out_odd_buffers(model: nn.Module) -> None:
    """Have DDP leave alone the buffers that it cannot broadcast, and would fail of."""
    odd = [
        name
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if buffer.layout != torch.strided or buffer.dtype not in _SENT or expanded(buffer)
    ]
    odd += getattr(model, "_ddp_params_and_buffers_to_ignore", [])
    ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
    ignore(model, odd)


def _share(buffer: Tensor) -> None:
    """Give all ranks a buffer of rank 0; collective."""
    if buffer.layout != torch.strided:
        told = [buffer.detach().cpu()]
        dist.broadcast_object_list(told, src=0)
        buffer.copy_(told[0])
        return
    whole = buffer.contiguous()  # NCCL takes nothing else
    dist.broadcast(whole.reshape(-1).view(torch.uint8), src=0)  # bytes: not all types are sent
    if whole is not buffer:
        fill(buffer, whole)


def _refuse_other_ways_to_train() -> None:
    """Raise BadInput where an option or the configuration of `accelerate launch` asks for them."""
    for way in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if os.environ.get(f"ACCELERATE_USE_{way}", "false").lower() == "true":
            raise BadInput(
                f"Accelerate was told to use {way}, which a recipe is not trained with",
                hint="leave it out of the options and the configuration of `accelerate launch`",
            )


def _group(patience_s: float, processes: int, *, on_cpu: bool) -> InitProcessGroupKwargs:
    """Return what the process group is made with."""
    group = InitProcessGroupKwargs(
        timeout=timedelta(seconds=patience_s), **_place_to_meet(on_cpu=on_cpu)
    )
    if not on_cpu and shared() and processes > 1:
        group.backend = "gloo"  # NCCL: a GPU a rank
        os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"  # it takes ranks for devices
    return group


def _place_to_meet(*, on_cpu: bool) -> dict[str, Any]:
    """Return what the process group is made with: the file that the agent made for its workers.

    Of where this process stands Accelerate tells torch by itself on the CPU.
    """
    if STORE not in os.environ:  # several machines, or no agent of ours
        return {}
    query = f"?rank={os.environ['RANK']}&world_size={os.environ['WORLD_SIZE']}"
    return {"init_method": f"file://{os.environ[STORE]}" + ("" if on_cpu else query)}
