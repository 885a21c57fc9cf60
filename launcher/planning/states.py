"""How many bytes the tensors of a model take in a process, and what its optimizer adds to them."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from launcher.model.optimizers import asked_for
from launcher.recipe.base import Recipe

Form = tuple[tuple[int, ...], torch.dtype]  # shape and type of a tensor


def forms(tensors: Iterable[Tensor]) -> list[Form]:
    """Return what tensors are like."""
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]


def size_of(several: Iterable[Form], ranks: int = 1) -> int:
    """Return the bytes of tensors; of those that are cut over `ranks`, what rank 0 has of them."""
    return sum(_share(shape, ranks) * dtype.itemsize for shape, dtype in several)


def _share(shape: tuple[int, ...], ranks: int) -> int:
    rows = (-(-shape[0] // ranks), *shape[1:]) if shape else ()
    return torch.Size(rows).numel()


def of_optimizer(recipe: Recipe, model: nn.Module, loss_fn: nn.Module) -> list[Form]:
    """Return what the optimizers keep after a step; the model has no values, and loses its weights.

    They make a step with weights of two numbers a dimension, for some look at the numbers.
    """
    whole: dict[int, tuple[Tensor, nn.Parameter]] = {}
    for module in (*model.modules(), *loss_fn.modules()):
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                small = whole.setdefault(id(weight), (weight, _small(weight)))[1]
                module._parameters[name] = small
    shapes = {id(small): tuple(weight.shape) for weight, small in whole.values()}
    optimizers = asked_for(recipe.optimizer, model, loss_fn)
    if recipe.fused_optimizer:
        optimizers.fuse()
    for _, small in whole.values():
        small.grad = torch.ones_like(small) if small.requires_grad else None
    optimizers.step()
    return [
        (_grown(tuple(value.shape), tuple(weight.shape), shapes[id(weight)]), value.dtype)
        for optimizer in optimizers
        for weight, values in optimizer.state.items()
        for value in values.values()
        if isinstance(value, Tensor)
    ]


def _small(weight: Tensor) -> nn.Parameter:
    shape = [min(size, 2) for size in weight.shape]
    return nn.Parameter(torch.ones(shape, dtype=weight.dtype), weight.requires_grad)


def _grown(
    state: tuple[int, ...], small: tuple[int, ...], whole: tuple[int, ...]
) -> tuple[int, ...]:
    """Return the shape of a state of the whole weight, from that of the small one."""
    if len(state) != len(small):
        return state
    sizes = zip(state, small, whole, strict=True)
    return tuple(full if mine == part else mine for mine, part, full in sizes)
