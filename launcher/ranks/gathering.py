"""The rows of all ranks in one tensor, with gradient, for losses that compare samples."""

from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from launcher.data.fetching import Shard
from launcher.errors import RecipeError


class Among(Protocol):
    """This process among others: a Context, or what a script has in its place."""

    @property
    def rank(self) -> int:
        """From 0."""

    @property
    def world_size(self) -> int:
        """How many there are."""


class _Here:
    """The step that this process is in: whose rows there are to gather."""

    context: Among | None = None
    micro_batch_size: int | None = None
    may_be_cut = False  # where it is found by trying
    shard: Shard | None = None
    used = False


HERE = _Here()


class _Layout(NamedTuple):
    """Where the rows of a global batch come from."""

    most: int  # rows that a rank sends
    places: Tensor  # (samples,), of each sample in all that is sent
    mine: Tensor  # (own samples,), in the global batch; a ghost's is the first


def gather(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the global batch's rows from all ranks, and which of them are this rank's; collective.

    `z` has a row for each sample of the shard, (samples, …); the rows, (global batch, …), stand in
    the order of the samples, whatever the number of processes. For `train_step` and `test_step`,
    and for a script that has a shard of `launcher.shards`: the loss is that of the rows `mine`,
    (samples,), summed (of a shard: their mean, times its weight), and gradients come back to z from
    the losses of all ranks. Backward, too, is collective. A rank without samples of its own gets
    for `mine` the row that its ghost stands for, and is weighted 0.

    Raises RecipeError where no step is being made, and with micro-batches.
    """
    shard, context = HERE.shard, HERE.context
    if shard is None or context is None:
        raise RecipeError(
            "`launcher.gather` was called where no step is being made",
            hint="it is for `train_step` and `test_step` of a recipe, and for a script that has a "
            "shard of `launcher.shards`",
        )
    HERE.used = True
    if HERE.may_be_cut:
        raise RecipeError(
            "`launcher.gather` needs the rows of the whole global batch at once, and "
            "`micro_batch_size=auto` may have them come in parts",
            hint="leave micro_batch_size out; a smaller batch_size, or more processes, need less "
            "memory each",
        )
    if HERE.micro_batch_size and HERE.micro_batch_size < shard.size:
        raise RecipeError(
            "`launcher.gather` needs the rows of the whole global batch at once, and "
            f"`micro_batch_size={HERE.micro_batch_size}` has {shard.size} samples come in parts",
            hint="leave micro_batch_size out; a smaller batch_size, or more processes, need less "
            "memory each",
        )
    here = max(shard.own, 1)
    if z.dim() == 0 or len(z) != here:
        raise RecipeError(
            f"`launcher.gather` got shape {tuple(z.shape)} for a shard of {here} samples",
            hint="give a row for each sample; several views of it have one of their own, or a "
            "dimension behind the first",
        )
    owners = None if shard.owners is None else tuple(shard.owners.tolist())
    layout = _layout(shard.size, context.world_size, context.rank, owners, z.device)
    if context.world_size == 1:
        return z, layout.mine
    rows: Tensor = _Gather.apply(z, layout, context.world_size, shard.own)
    return rows, layout.mine


@lru_cache(maxsize=64)
def _layout(
    size: int, world: int, rank: int, owners: tuple[int, ...] | None, device: torch.device
) -> _Layout:
    ranks = np.arange(size) % world if owners is None else np.array(owners)
    counts = np.bincount(ranks, minlength=world)
    most = max(int(counts.max()), 1)
    order = np.argsort(ranks, kind="stable")  # as the ranks have them
    places = np.empty(size, np.int64)
    places[order] = np.concatenate([owner * most + np.arange(n) for owner, n in enumerate(counts)])
    mine = np.flatnonzero(ranks == rank) if counts[rank] else np.zeros(1, np.int64)
    return _Layout(most, *(torch.from_numpy(index).to(device) for index in (places, mine)))


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward sums what all ranks' losses want of each."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, layout: _Layout, world: int, own: int) -> Tensor:
        ctx.mine, ctx.own = layout.mine, own
        sent = z.new_zeros((layout.most, *z.shape[1:]))
        sent[: len(z)] = z
        everyones = [torch.empty_like(sent) for _ in range(world)]
        dist.all_gather(everyones, sent)
        return torch.cat(everyones).index_select(0, layout.places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        half = gradient.dtype in (torch.float16, torch.bfloat16)
        total = gradient.float() if half else gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        mine = total.to(gradient.dtype).index_select(0, ctx.mine)
        return (mine if ctx.own else torch.zeros_like(mine)), None, None, None
