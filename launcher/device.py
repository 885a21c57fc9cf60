"""How a GPU computes, and what goes there and back: copies that nobody waits for."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")
CPU = torch.device("cpu")

_PAUSES = 4  # times as long as pinning takes: what training loses by it meanwhile is a fifth


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
    """
    waits: set[torch.device] = set()

    def copied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
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
    if device.type != "cuda" or tensor.is_cuda:
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


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
        for tensor in pytree.tree_leaves(batch):
            if isinstance(tensor, Tensor):
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
