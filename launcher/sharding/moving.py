"""Tensors in pieces on their way: whole on rank 0 to all ranks, and from all ranks to rank 0."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils import _pytree as pytree

from launcher.data.device import on_host
from launcher.model.pieces import in_pieces, own, rows_each
from launcher.ranks.context import Context


def scattered(whole: Tensor, like: Tensor, context: Context) -> Tensor:
    """Return this rank's piece, on the device, of what is `whole` on rank 0; collective."""
    mine, bytes_of_it = _padded(like, context.device)
    if mine.numel():
        parts = _parts(whole.to(context.device), mine) if context.rank == 0 else None
        dist.scatter(bytes_of_it, parts, src=0)
    piece = mine[: len(own(like))]
    return piece if len(piece) == len(mine) else piece.clone()


def gathered(tree: Any, context: Context) -> Any:
    """Return a copy of a tree on rank 0, its tensors whole and in host memory; collective.

    Tensor by tensor: no more than one is whole on the device. Other ranks get nothing of it.
    """

    def copied(leaf: Any) -> Any:
        if in_pieces(leaf):
            return _collected(leaf, context)
        return on_host(leaf) if context.rank == 0 else None

    return pytree.tree_map(copied, tree)


def _collected(tensor: Tensor, context: Context) -> Tensor | None:
    mine, bytes_of_it = _padded(tensor, context.device)
    mine[: len(own(tensor))] = own(tensor).detach()
    first = context.rank == 0
    theirs = [torch.empty_like(bytes_of_it) for _ in range(context.world_size)] if first else None
    if mine.numel():
        dist.gather(bytes_of_it, theirs)
    if theirs is None:
        return None
    rows = [part.cpu().view(tensor.dtype).view_as(mine) for part in theirs]
    return torch.cat(rows)[: len(tensor)].clone()


def _padded(like: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return memory for the largest of the pieces, (rows, …), and the same as bytes.

    Bytes: there are types of numbers that are not sent.
    """
    shape = rows_each(like), *like.shape[1:]
    memory = torch.zeros(shape, dtype=like.dtype, device=device)
    return memory, memory.view(-1).view(torch.uint8)


def _parts(whole: Tensor, mine: Tensor) -> list[Tensor]:
    """Return the pieces of a whole tensor as bytes, each padded to the size of the largest."""
    padded = mine.new_zeros((dist.get_world_size() * len(mine), *mine.shape[1:]))
    padded[: len(whole)] = whole
    return [part.view(-1).view(torch.uint8) for part in torch.split(padded, len(mine))]
