"""The metrics of a recipe: what it makes of sums over all ranks, checked."""

from collections.abc import Mapping
from typing import Any

from launcher.errors import RecipeError, TrainingFailed
from launcher.recipe.base import Recipe
from launcher.recipe.totals import Totals
from launcher.run.rows import RESERVED
from launcher.train.training import Training


def metrics_of(run: Training, totals: Totals) -> dict[str, float]:
    """Return the recipe's metrics of some totals, the same on all ranks.

    Raises RecipeError for what are no metrics, TrainingFailed where training is under way.
    """
    if type(run.recipe).metrics is Recipe.metrics:
        return {}
    return numbers(run.recipe.metrics(totals), "metrics", begun=run.progress.step > 1)


def numbers(made: Any, method: str, *, begun: bool) -> dict[str, float]:
    """Return what a method of a recipe has made as numbers by name; raises as `metrics_of` does."""
    kind = TrainingFailed if begun else RecipeError
    if not isinstance(made, Mapping):
        raise kind(
            f"`{method}` returned {type(made).__name__}, not a dict of numbers",
            hint='end it in `return {"name": number}`',
        )
    found = {}
    for name, value in made.items():
        if not isinstance(name, str) or not (name and name.isprintable() and name[0] not in " -"):
            raise kind(f"`{method}` names a metric {name!r}", hint="call it by a word")
        if name in RESERVED:
            raise kind(
                f"`{method}` returned `{name}`, and each report has one of its own",
                hint=f"call it something else, like `own_{name}`",
            )
        try:
            found[name] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise kind(
                f"the metric `{name}` of `{method}` is no number: {error}",
                hint="give a float, or a tensor of one number",
            ) from error
    return found
