"""Which GPU is a process's own, how it computes, and copies to and from it nobody waits for."""

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from copy import copy, deepcopy
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from launcher.errors import BadInput
from launcher.gpus import gpus, shared

T = TypeVar("T")
CPU = torch.device("cpu")

_PAUSES = 4  # times as long as pinning takes: what training loses by it meanwhile is a fifth


def usable_gpus() -> int:
    """Return how many GPUs torch can use here; raises BadInput where there are some it cannot."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    if there := gpus():
        raise BadInput(
            f"there are {there} GPUs here, but torch {torch.__version__} cannot use them",
            hint="install the torch that fits this machine's driver; to train on the CPU give "
            "--cpu, or set CUDA_VISIBLE_DEVICES to nothing",
        )
    return 0


def claim_gpu() -> None:
    """Make one GPU this process's own, before anything else touches CUDA.

    Raises BadInput, on all processes of a machine alike, where it has fewer GPUs than processes.
    """
    count, local_rank = usable_gpus(), int(os.environ.get("LOCAL_RANK", "0"))
    local_world = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), local_rank + 1)
    if not count:
        return
    if local_world > count and not shared():
        raise BadInput(
            f"{local_world} processes on a machine that has {count} GPUs",
            hint="start one process a GPU, or give --cpu",
        )
    torch.cuda.set_device(local_rank % count)
    from accelerate.utils import check_cuda_p2p_ib_support  # noqa: PLC0415  # a slow import

    if not check_cuda_p2p_ib_support():  # Accelerate refuses such GPUs unless NCCL is told
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")


def set_arithmetic(*, tf32: bool, deterministic: bool) -> None:
    """Have this process compute float32 as float32, and the same bits each time where asked for.

    Torch leaves convolutions to TF32 unless told otherwise. A recipe whose own lines ask for TF32
    gets it.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as torch demands
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False
    with suppress(RuntimeError):  # the recipe has set precision in torch's newer words
        if tf32:
            torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.get_float32_matmul_precision() != "highest"


def on_host(tree: Any) -> Any:
    """Return a copy of a tree, its tensors in host memory, contiguous; waits once for the device.

    From a GPU it goes to pinned memory, several times as fast; torch keeps that for the next copy.
    Tensors without values (on torch's meta device) stay that.
    """
    waits: set[torch.device] = set()

    def copied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.is_meta:
            return tensor
        if tensor.layout != torch.strided:
            return tensor.to("cpu", copy=True)
        if not tensor.is_cuda:
            return tensor.to("cpu", copy=True).contiguous()
        waits.add(tensor.device)
        return _pinned(tensor).copy_(tensor, non_blocking=True)

    made = pytree.tree_map(
        lambda leaf: (copied if isinstance(leaf, Tensor) else deepcopy)(leaf), tree
    )
    for device in waits:
        torch.cuda.current_stream(device).synchronize()
    return made


def reserve(tree: Any) -> None:
    """Have pinned memory for a copy of a tree of tensors on a GPU, made while nobody waits for it.

    To pin new memory takes half a second for each gigabyte, in which the device takes no orders;
    torch keeps what was pinned once. So a thread does it a tensor at a time, with long pauses.
    """
    there = [t for t in pytree.tree_leaves(tree) if isinstance(t, Tensor) and t.is_cuda]
    alike = [t.detach() for t in there if t.layout == torch.strided]

    def pin() -> None:
        with suppress(RuntimeError):  # a machine without so much memory notices when it saves
            held = []  # all of it at a time: what is given up is used again
            for tensor in alike:
                began = time.perf_counter()
                held.append(_pinned(tensor))
                time.sleep(_PAUSES * (time.perf_counter() - began))

    if alike:
        threading.Thread(target=pin, name="pinned memory", daemon=True).start()


def _pinned(tensor: Tensor) -> Tensor:
    """Return pinned host memory for a tensor, contiguous."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; a copy to a GPU is from pinned memory, not waited for."""
    if device.type in ("cpu", tensor.device.type):
        return tensor
    source = tensor.pin_memory() if device.type == "cuda" else tensor
    return source.to(device, non_blocking=True)


def to_device(batch: Any, device: torch.device) -> Any:
    """Return a batch with all its tensors on a device.

    Taken are containers of torch and Python, dataclasses, and what knows by itself how to go there,
    by a method `to`: batches of tokenizers and graphs, packed sequences.
    """
    if isinstance(batch, Tensor):
        return moved(batch, device)
    if callable(to := getattr(batch, "to", None)) and not isinstance(batch, type):
        return to(device)
    if isinstance(batch, tuple | list):
        parts = [to_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, MutableMapping):
        there: Any = copy(batch)  # of its own kind, with whatever else it holds
        there.update({key: to_device(value, device) for key, value in batch.items()})
        return there
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        there = copy(batch)
        for field in dataclasses.fields(batch):
            # By the base class: a batch may be frozen.
            object.__setattr__(there, field.name, to_device(getattr(batch, field.name), device))
        return there
    return batch


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Give all tensors that a batch refers to, in whatever it is made of."""
    seen: set[int] = set()
    left = [batch]
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, str | bytes | type | ModuleType):
            continue
        seen.add(id(part))
        if isinstance(part, Tensor):
            yield part
        else:
            left += part.values() if isinstance(part, Mapping) else ()
            left += part if isinstance(part, tuple | list | set) else ()
            left += vars(part).values() if hasattr(part, "__dict__") else ()
            left += [getattr(part, name, None) for name in getattr(part, "__slots__", ())]


def prefetched(batches: Iterator[T], side: torch.cuda.Stream) -> Iterator[T]:
    """Give batches on the GPU, each while the next one is made and copied on a stream of its own.

    What makes them must use no memory of the main stream that is not there from the beginning.
    """
    main = torch.cuda.current_stream(side.device)
    side.wait_stream(main)  # arrays in the memory of the GPU came there on it

    def send() -> T | None:
        with torch.cuda.stream(side):
            return next(batches, None)

    def receive(batch: T) -> T:
        main.wait_stream(side)
        for tensor in tensors_in(batch):
            for part in _parts(tensor):
                part.record_stream(main)  # side's memory: not reused before main is done
        return batch

    return one_ahead(iter(send, None), receive)


def _parts(tensor: Tensor) -> list[Tensor]:
    return [tensor._indices(), tensor._values()] if tensor.is_sparse else [tensor]


def one_ahead(sent: Iterator[T], receive: Callable[[T], T]) -> Iterator[T]:
    """Give each item as it is received, after the next one has been sent."""
    coming = next(sent, None)
    while coming is not None:
        item = receive(coming)  # before the next one is sent, so that it waits for no more
        coming = next(sent, None)
        yield item
