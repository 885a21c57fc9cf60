"""Gradients that DDP does not know of, averaged over ranks as it does it."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from launcher.ranks.context import Context


def average_gradients(parameters: Sequence[nn.Parameter], context: Context) -> None:
    """Have the mean of each gradient over all ranks in its place; collective.

    A rank without a gradient counts as zeros; where no rank has one there is none.
    """
    if context.world_size == 1:
        return
    kinds: defaultdict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        kinds[parameter.dtype].append(parameter)
    for several in kinds.values():
        sizes = [p.numel() for p in several]
        there = [p.grad is not None for p in several]
        own = [_dense(p).reshape(-1) / context.world_size for p in several]  # before the sum: DDP
        flags = torch.tensor(there, dtype=several[0].dtype).to(context.device)
        summed = context.reduce(torch.cat([*own, flags]))
        *means, flags = torch.split(summed, [*sizes, len(several)])
        # Who has them all need not wait for the device to know.
        had = there if all(there) else (flags > 0).tolist()
        for parameter, mean, taken in zip(several, means, had, strict=True):
            parameter.grad = mean.view_as(parameter) if taken else None


def _dense(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    return gradient.to_dense() if gradient.is_sparse else gradient
