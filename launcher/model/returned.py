"""What a recipe's steps return: sums over a batch."""

from typing import Any

from launcher.errors import RecipeError
from launcher.model.pieces import in_pieces
from launcher.recipe.base import StepSums


def expect_sums(made: Any, method: str) -> StepSums:
    """Return what a method of the recipe made; raises RecipeError where it is something else."""
    if not isinstance(made, StepSums):
        raise RecipeError(
            f"`{method}` returned {type(made).__name__}, not StepSums",
            hint="return StepSums(loss, count, correct): sums over the batch, not means; one that "
            "yields turns needs a dict of optimizers",
        )
    if in_pieces(made.loss):
        raise RecipeError(
            f"`{method}` makes the loss of weights themselves, and with `shard` each process has a "
            "piece of them",
            hint="compute it in the `forward` of the model, which has them whole",
        )
    return made
