"""Batches on their way to a GPU: copies that nobody waits for, one batch ahead."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")
CPU = torch.device("cpu")


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
