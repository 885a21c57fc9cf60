"""Sums that a recipe names: tensors of any shape, added up on the device, reduced at reports."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from launcher.errors import RecipeError, TrainingFailed
from launcher.ranks.context import Context

Shapes = dict[str, tuple[int, ...]]


class NamedSums:
    """What one rank has summed under each name since the last report: float64, on the device.

    Names and shapes are those of the first batch. A rank that has had none yet learns them, once,
    when sums are first reduced.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._shapes: Shapes | None = None  # None: no batch so far
        self._sums: dict[str, Tensor] = {}
        self._known_to_all = False

    @property
    def there(self) -> bool:
        """Whether this rank has any."""
        return bool(self._shapes)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add those of a micro-batch; raises TrainingFailed where they are others than before.

        What they can be at all is looked at in the first batch: RecipeError.
        """
        if not sums and self._shapes == {}:
            return  # most recipes have none
        before = self._shapes
        if before is None:
            before = self._begin({name: _shape(name, value) for name, value in sums.items()})
        shapes = {name: tuple(value.shape) for name, value in sums.items()}
        if shapes != before:
            raise TrainingFailed(
                f"`sums` of a step were {_listed(before)} and are {_listed(shapes)}",
                hint="each batch sums the same names, of the same shapes; zeros where it has none",
            )
        for name, value in sums.items():
            self._sums[name].add_(value.detach().to(self._device, non_blocking=True))

    def _begin(self, shapes: Shapes) -> Shapes:
        self._shapes = dict(sorted(shapes.items()))  # the same order on all ranks
        self._sums = {
            name: torch.zeros(shape, dtype=torch.float64, device=self._device)
            for name, shape in self._shapes.items()
        }
        return self._shapes

    def reset(self) -> None:
        """Forget the numbers, but not the names."""
        for total in self._sums.values():
            total.zero_()

    def restore(self, sums: Mapping[str, Tensor], *, mine: bool) -> None:
        """Go on from sums over all ranks; one rank takes them as its own, the others none."""
        if sums:
            self._begin({name: tuple(value.shape) for name, value in sums.items()})
            self._known_to_all = True
            for name, value in sums.items() if mine else ():
                self._sums[name].copy_(value)

    def flat(self) -> Tensor:
        """Return this rank's, (numbers of all names,), float64."""
        own = [total.reshape(-1) for total in self._sums.values()]
        return torch.cat([torch.zeros(0, dtype=torch.float64, device=self._device), *own])

    def fill(self, flat: Tensor) -> None:
        """Take what `flat` has returned once, of the names that there are."""
        parts = torch.split(flat, [total.numel() for total in self._sums.values()])
        for total, part in zip(self._sums.values(), parts, strict=True):
            total.copy_(part.reshape(total.shape))

    def reduced(self, context: Context) -> dict[str, Tensor]:
        """Return the sums over all ranks, on the host; collective, and this rank's stay.

        Raises TrainingFailed on all ranks where they sum different things.
        """
        if not self._known_to_all:
            self._tell(context)
        if not self._shapes:
            return {}
        whole = context.reduce(self.flat()).cpu()
        parts = torch.split(whole, [total.numel() for total in self._sums.values()])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self._shapes.items(), parts, strict=True)
        }

    def _tell(self, context: Context) -> None:
        """Tell all ranks names and shapes; collective."""
        everyones = context.gather(self._shapes)
        known = [(rank, shapes) for rank, shapes in enumerate(everyones) if shapes is not None]
        for rank, shapes in known[1:]:
            if shapes != known[0][1]:
                raise TrainingFailed(
                    f"`sums` are {_listed(known[0][1])} on rank {known[0][0]} and "
                    f"{_listed(shapes)} on rank {rank}",
                    hint="each batch sums the same names, of the same shapes",
                )
        if known and self._shapes is None:
            self._begin(known[0][1])
        self._known_to_all = bool(known)


def _shape(name: Any, value: Any) -> tuple[int, ...]:
    """Return the shape of a sum; raises RecipeError for what cannot be summed."""
    if not isinstance(name, str):
        raise RecipeError(f"`sums` are named by text, and `{name}` is no text")
    if not isinstance(value, Tensor) or value.is_complex():
        kind = f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise RecipeError(
            f"the sum `{name}` is {kind}", hint="give a tensor of numbers, of any shape"
        )
    return tuple(value.shape)


def _listed(shapes: Shapes) -> str:
    return ", ".join(f"`{name}` {shape}" for name, shape in sorted(shapes.items())) or "none"
