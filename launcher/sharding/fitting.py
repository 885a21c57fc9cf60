"""`micro_batch_size=auto`: the most samples in one forward pass that memory holds."""

from collections.abc import Mapping
from typing import Any

from launcher.errors import RecipeError, TooLarge
from launcher.ranks.context import Context
from launcher.recipe.base import Recipe

_EARLY = 20  # steps of a session in which it shows


def take_what_fits(recipe: Recipe, told: Mapping[str, Any]) -> None:
    """Have a recipe use the size that config.json is `told`, where it is to be found by trying.

    Raises RecipeError where nobody could start all processes again at once.
    """
    if recipe.micro_batch_size != "auto":
        return
    if told.get("nodes", 1) > 1:
        raise RecipeError(
            "`micro_batch_size=auto` is found on one machine, and there are several",
            hint="run a few steps on one of them: its config.json has the size that was found",
        )
    object.__setattr__(recipe, "_fits", told.get("micro_batch_size"))


def refuse_size(
    recipe: Recipe, samples: int, context: Context, steps: int, error: Exception
) -> None:
    """Raise TooLarge where processes are to be started again with smaller micro-batches.

    None of them can go on: a step cannot be repeated, for others are in the middle of it. `samples`
    are those of an epoch, `steps` those of this session so far.
    """
    shard = -(-min(recipe.batch_size, samples) // context.world_size)
    size = min(recipe.most_at_once or shard, shard)
    if recipe.micro_batch_size == "auto" and steps < _EARLY and size > 1:
        what = f"out of memory with {size} samples in a forward pass"
        raise TooLarge(what, size // 2) from error
