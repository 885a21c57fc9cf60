"""Hyperparameters that a test of a checkpoint changes: those that concern nothing but data."""

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from functools import wraps
from typing import Any

from launcher.errors import RecipeError
from launcher.recipe.base import Recipe

# Of those that all recipes have.
_OF_ALL = {"test_batch_size", "num_workers", "worker_start", "data_on_device", "shard"}
# What makes or uses the model: a hyperparameter that one of these reads is no matter of data.
_METHODS = {
    *("model", "shards", "loss", "optimizer", "scheduler", "train_step", "test_step"),
    *("metrics", "test_metrics", "after_test"),
}
_inside: ContextVar[str | None] = ContextVar("inside", default=None)


def refuse_others(names: Iterable[str], own: Iterable[str]) -> None:
    """Raise RecipeError for a change that is none of data; `own` are those of the recipe itself."""
    for name in names:
        if name not in _OF_ALL and name not in own:
            raise RecipeError(
                f"a test cannot change `{name}`",
                hint=f"it may change what concerns data: {', '.join(sorted(_OF_ALL))}, and those "
                "of the recipe's own that no method but its data's read",
            )


def watched(recipe: Recipe, changed: Iterable[str]) -> Recipe:
    """Return a recipe that raises RecipeError where more than its data depends on what was changed.

    That is where one of the methods that make or use the model reads it.
    """
    kind, names = type(recipe), frozenset(changed)
    if not names:
        return recipe

    class Watched(kind):  # type: ignore[misc, valid-type]  # the user's class
        def __getattribute__(self, name: str) -> Any:
            if name in names and (method := _inside.get()):
                raise RecipeError(
                    f"a test cannot change `{name}`: `{method}` reads it, so it is no matter of "
                    "data alone",
                    hint="train a run with it",
                )
            found = super().__getattribute__(name)
            return _entered(name, found) if name in _METHODS else found

        def __reduce__(self) -> tuple[Any, ...]:  # for data workers
            return _plain, (kind, vars(self))

    Watched.__module__, Watched.__qualname__ = kind.__module__, kind.__qualname__
    made: Recipe = object.__new__(Watched)
    made.__dict__.update(vars(recipe))
    return made


def _entered(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(*given: Any, **named: Any) -> Any:
        token = _inside.set(name)
        try:
            return method(*given, **named)
        finally:
            _inside.reset(token)

    return call


def _plain(kind: type[Recipe], values: dict[str, Any]) -> Recipe:
    made = object.__new__(kind)
    made.__dict__.update(values)
    return made
