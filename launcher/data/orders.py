"""What a recipe says of the order of samples, and of who stands beside whom: checked."""

from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch

from launcher.data.computed import Blocks, Mixed, Mixture
from launcher.data.fetching import SizedData
from launcher.data.randomness import (
    Numbers,
    named,
    partners_random,
    seed_order,
    undisturbed,
)
from launcher.data.sampler import Names, Order, Partners, ShardSampler, shuffled
from launcher.data.streams import LaneSampler, Stream
from launcher.errors import DataError, RecipeError
from launcher.recipe.base import Recipe, is_base


class _Orders:
    """The orders of a recipe's epochs, as names: the last one is kept."""

    def __init__(self, recipe: Recipe, size: int) -> None:
        """Look at the first two; raises RecipeError for what is no order."""
        self._recipe, self._size = recipe, size
        self._length: int | None = None  # of each epoch; None: they need not be alike
        if recipe.steps is None:
            self._length = len(self._made(0))
            if recipe.epochs > 1:
                self._made(1)
        self._last: tuple[int, Names] = 0, self._made(0)

    def __call__(self, epoch: int) -> Names:
        """Return the names of an epoch's samples; raises RecipeError for what is no order."""
        if epoch != self._last[0]:
            self._last = epoch, self._made(epoch)
        return self._last[1]

    def _made(self, epoch: int) -> Names:
        recipe, indices = self._recipe, _order(self._recipe, self._size, epoch)
        if indices is None:
            names = shuffled(self._size, recipe.seed, epoch, recipe.torch_order_up_to)
        else:
            names = named(indices)
        if self._length not in (None, len(names)):
            raise RecipeError(
                f"`order` has {len(names)} samples for epoch {epoch} and {self._length} for epoch "
                "0: nobody could tell how long the run is",
                hint="return as many in each epoch, or give `steps`, the length of the run",
            )
        return names


def sampler_for(
    data: SizedData | Stream, recipe: Recipe, rank: int, world_size: int, *, test: bool
) -> ShardSampler:
    """Return what tells a rank its samples; raises RecipeError or DataError where it cannot be."""
    options: dict[str, Any] = {
        "batch_size": recipe.test_batch_size if test else recipe.batch_size,
        "rank": rank,
        "world_size": world_size,
        "micro_batch_size": recipe.most_at_once,
        "seed": recipe.seed,
        "shuffle": not test,
        "drop_last": recipe.drop_last and not test,
    }
    if isinstance(data, Stream):
        return LaneSampler(data, length=_length(data, recipe, test=test), **options)
    return ShardSampler(
        len(data),
        torch_order_up_to=recipe.torch_order_up_to,
        order=None if test else order_of(recipe, data),
        partners=None if test else partners_of(recipe),
        **options,
    )


def _length(stream: Stream, recipe: Recipe, *, test: bool) -> int:
    """Return the samples in an epoch of a Stream."""
    asked = [method for method in ("order", "partners") if not is_base(recipe, method)]
    asked += ["shuffle_block"] if recipe.shuffle_block else []
    if asked and not test:
        raise RecipeError(
            f"`{asked[0]}` needs samples that can be loaded by their index, and `train_data` "
            "returned a Stream",
            hint=f"return a map-style dataset, or leave `{asked[0]}` out",
        )
    if stream.size is not None:
        return stream.size
    if test:
        raise DataError(
            "`test_data` returned a Stream without sizes: a test takes every sample once",
            hint="give `sizes`, the number of samples in each lane",
        )
    if recipe.steps is None:
        raise RecipeError(
            "`train_data` returned a Stream without sizes: nobody knows how long an epoch is",
            hint="give `steps`, the length of the run, or `sizes`, the samples in each lane",
        )
    return recipe.steps * recipe.batch_size


def order_of(recipe: Recipe, data: SizedData) -> Order | None:
    """Return the order of the training samples, None for torch's.

    Raises RecipeError for what is none, and where two are asked for.
    """
    size, seed = len(data), recipe.seed
    given = {
        "`order`": None if is_base(recipe, "order") else _Orders(recipe, size),
        "`shuffle_block`": recipe.shuffle_block
        and partial(Blocks, size, recipe.shuffle_block, seed),
        "a Mixture": partial(Mixed, data, seed) if isinstance(data, Mixture) else None,
    }
    asked = {what: order for what, order in given.items() if order is not None}
    if len(asked) > 1 and _order(recipe, size, 0) is None:  # a hyperparameter may decide it
        asked.pop("`order`", None)
    if len(asked) > 1:
        raise RecipeError(
            f"both {' and '.join(asked)} say in which order samples come", hint="leave one out"
        )
    order: Any = next(iter(asked.values()), None)
    return order and lru_cache(maxsize=2)(order)


def partners_of(recipe: Recipe) -> Partners | None:
    """Return the partners that a recipe gives the places of a global batch, None without any.

    Whether it gives some is asked once: a hyperparameter may decide it.
    """
    if is_base(recipe, "partners"):
        return None
    asked = recipe.partners(recipe.batch_size, partners_random(recipe.seed, 0, 0))
    return None if asked is None else partial(_partners, recipe)


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
