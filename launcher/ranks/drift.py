"""Whether all ranks still have the same weights: a checksum of each, compared at every exchange.

DDP gives all ranks the same gradients, so their weights stay alike by themselves. What goes past
it changes the weights of one rank only, and no error tells: a forward pass through the inner model,
a submodule called by itself, a second optimizer, a parameter that is unfrozen later.
"""

from collections.abc import Iterator, Sequence
from math import sqrt
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from launcher.errors import RecipeError, TrainingFailed
from launcher.model.pieces import in_pieces
from launcher.ranks.context import Context, unwrapped

_MOST = 1 << 22  # numbers of one parameter that are looked at; the next ones another time
_MODULUS = (1 << 53) - 1  # checksums are summed as float64, each beside zeros: exactly
_ROUNDING = 8  # times the precision of a number: what other processors may round differently
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes

# In the order of their first step; the process's own, whoever made them.
_stepped: WeakKeyDictionary[Optimizer, None] = WeakKeyDictionary()
register_optimizer_step_post_hook(lambda optimizer, *_: _stepped.setdefault(optimizer))


class Drift:
    """The weights of this rank, to be compared with those of the others.

    Looked at are the parameters of model and loss, frozen ones too, and those of every optimizer
    that has made a step. Buffers are not: those of batch norm are a rank's own. Nor are weights of
    which each rank holds a piece: nobody has another copy.
    """

    def __init__(self, context: Context, model: nn.Module, loss_fn: nn.Module) -> None:
        self._context = context
        self._model, self._loss_fn = unwrapped(model), loss_fn
        self._alike: int | None = None  # after so many steps all ranks had the same weights
        self._rounded_until = 0  # steps before which no difference is looked into

    def own(self, step: int) -> Tensor:
        """Return a slot for each rank, float64 (world,): the checksum of this one, and zeros.

        Summed over ranks they are the checksums of all. Nothing waits for the device.
        """
        context = self._context
        if context.world_size == 1:
            return torch.zeros(0, dtype=torch.float64, device=context.device)
        slots = torch.zeros(context.world_size, dtype=torch.float64, device=context.device)
        sums = [_bits(p, step).to(context.device) for _, p in self._parameters()]
        if sums:
            slots[context.rank] = torch.stack(sums).sum() % _MODULUS  # int64, which wraps
        return slots

    def check(self, checksums: Sequence[float], step: int) -> None:
        """Raise an error, the same on all ranks, where weights differ by more than rounding.

        `checksums` are those of all ranks after `step` steps. Collective only where they differ.
        """
        if len(set(checksums)) <= 1:
            self._alike = step
        elif step >= self._rounded_until:
            names = self._differing(step)
            if names:
                raise self._error(names, step)
            # Nodes of several kinds round differently; that is looked into again, but not often.
            self._rounded_until = 2 * step

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        seen = set()
        for name, parameter in self._named():
            if id(parameter) not in seen and parameter.numel() and not in_pieces(parameter):
                seen.add(id(parameter))
                yield name, parameter.detach()

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        yield from self._model.named_parameters()
        for name, parameter in self._loss_fn.named_parameters():
            yield f"{name} of the loss", parameter
        for optimizer in _stepped:
            for group in optimizer.param_groups:
                for number, parameter in enumerate(group["params"]):
                    yield f"parameter {number} of {type(optimizer).__name__}", parameter

    def _differing(self, step: int) -> list[str]:
        """Return the parameters that are not the same on all ranks; collective."""
        found = {f"{name} {tuple(p.shape)}": p for name, p in self._parameters()}
        everyones = self._context.gather(set(found))
        if odd := set[str]().union(*everyones) - everyones[0].intersection(*everyones):
            return sorted(odd)
        flags = torch.stack([self._differs(found[name], step) for name in sorted(found)])
        counts = dict(zip(sorted(found), self._context.reduce(flags).tolist(), strict=True))
        return [name for name in found if counts[name]]

    def _differs(self, parameter: Tensor, step: int) -> Tensor:
        """Return 1 where a parameter is not that of rank 0, (); collective."""
        exact = not (parameter.is_floating_point() or parameter.is_complex())
        precision = 0.0 if exact else torch.finfo(parameter.dtype).eps
        mine = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        mine = mine.to(self._context.device, torch.promote_types(mine.dtype, torch.float32))
        own = mine.clone() if self._context.rank == 0 else torch.zeros_like(mine)
        first = self._context.reduce(own)
        apart = torch.where(mine.isnan() & first.isnan() | (mine == first), 0, (mine - first).abs())
        # Rounding adds up like a random walk: with the square root of the steps.
        allowed = _ROUNDING * precision * sqrt(step) * first.abs().max()
        return (~(apart <= allowed)).any().double()  # not a number is no rounding

    def _error(self, names: list[str], step: int) -> TrainingFailed | RecipeError:
        since = "the last start" if self._alike is None else f"step {self._alike}"
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
        kind = RecipeError if step == 1 else TrainingFailed
        return kind(
            f"ranks have drifted apart between {since} and step {step}: they differ in {listed}",
            hint="gradients are averaged over ranks only for what `model(…)` is called for: has "
            "`train_step` called `unwrapped(model)` or a part of the model by itself, stepped a "
            "second optimizer, unfrozen parameters, or changed weights by hand? Where steps leave "
            "some weights out, give find_unused_parameters=true",
        )


def _bits(parameter: Tensor, step: int) -> Tensor:
    """Return the sum of a parameter's bits taken for integers, int64 (); of a large one, a part.

    Weights that differ anywhere give another sum, and the order of summation changes nothing.
    """
    flat = parameter.flatten()  # (numbers,), a view where it can be
    if len(flat) > _MOST:
        start = step * _MOST % len(flat)
        flat = flat[start : start + _MOST]
    size = flat.element_size()
    wide = flat.nbytes % 8 == 0 and flat.storage_offset() * size % 8 == 0  # several times as fast
    return flat.view(torch.int64 if wide else _INTEGERS[size]).sum()
