"""What a recipe says of the order of samples, and of who stands beside whom: checked."""

from functools import partial
from typing import Any

import numpy as np
import torch

from launcher.data.joining import is_base
from launcher.data.randomness import (
    Numbers,
    named,
    partners_random,
    seed_order,
    undisturbed,
)
from launcher.data.sampler import Order, Partners
from launcher.errors import RecipeError
from launcher.recipe.base import Recipe


class _Orders:
    """The orders of a recipe's epochs, as names: the last one is kept."""

    def __init__(self, recipe: Recipe, size: int, first: Numbers) -> None:
        self._recipe, self._size = recipe, size
        self._length = len(first)
        self._epoch, self._names = 0, named(first)

    def __call__(self, epoch: int) -> Numbers:
        """Return the names of an epoch's samples; raises RecipeError for what is no order."""
        if epoch != self._epoch:
            indices = _order(self._recipe, self._size, epoch)
            if indices is None:
                raise RecipeError(
                    f"`order` returned nothing for epoch {epoch}, and an order for others",
                    hint="return indices for each epoch, or None for each",
                )
            self._refuse_other_length(len(indices), epoch)
            self._epoch, self._names = epoch, named(indices)
        return self._names

    def _refuse_other_length(self, length: int, epoch: int) -> None:
        if length != self._length and getattr(self._recipe, "steps", None) is None:
            raise RecipeError(
                f"`order` returned {length} samples for epoch {epoch} and {self._length} for epoch "
                "0: nobody could tell how long the run is",
                hint="return as many in each epoch, or give `steps`, the length of the run",
            )


def order_of(recipe: Recipe, size: int) -> Order | None:
    """Return the order that a recipe gives its `size` training samples, None where it gives none.

    Raises RecipeError for what is none.
    """
    if is_base(recipe, "order"):
        return None
    first = _order(recipe, size, 0)
    return None if first is None else _Orders(recipe, size, first)


def partners_of(recipe: Recipe) -> Partners | None:
    """Return the partners that a recipe gives the places of a global batch, None without any."""
    return None if is_base(recipe, "partners") else partial(_partners, recipe)


def _order(recipe: Recipe, size: int, epoch: int) -> Numbers | None:
    with undisturbed():  # ranks agree on an order that is drawn from other generators, too
        made = recipe.order(epoch, seed_order(recipe.seed, epoch))
    if made is None:
        return None
    indices = _numbers(made, f"`order` returned, for epoch {epoch},", "indices into `train_data`")
    if len(indices) == 0 or indices.min() < 0 or indices.max() >= size:
        what = f"indices from {indices.min()} to {indices.max()}" if len(indices) else "no index"
        raise RecipeError(
            f"`order` returned {what} for epoch {epoch}: `train_data` has {size} samples",
            hint=f"return whole numbers from 0 to {size - 1}, as often as you like",
        )
    return indices


def _partners(recipe: Recipe, epoch: int, step: int, size: int) -> Numbers:
    made = recipe.partners(size, partners_random(recipe.seed, epoch, step))
    partners = _numbers(made, "`partners` returned", "a permutation")
    if not np.array_equal(np.sort(partners), np.arange(size)):
        raise RecipeError(
            f"`partners` returned no permutation of the {size} places of a batch",
            hint="each place from 0 on must come once, like `random.permutation(size)`",
        )
    return partners


def _numbers(made: Any, who: str, what: str) -> Numbers:
    if isinstance(made, torch.Tensor):
        made = made.numpy(force=True)
    try:
        found = np.asarray(made)
    except ValueError:  # ragged lists
        found = np.empty(())
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        given = f"{found.dtype} of shape {found.shape}"
        raise RecipeError(
            f"{who} {given if found.ndim else type(made).__name__}, not {what}",
            hint="return a list, an array or a tensor of whole numbers; a mask has `.nonzero()`",
        )
    return found.astype(np.int64)
