"""What a recipe's methods make: data, model and loss, and whether they are what they should be."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from threading import Timer
from typing import Any, NamedTuple

import torch
from torch import nn

from launcher.data.fetching import SizedData
from launcher.data.loader import sized
from launcher.data.randomness import seed_init
from launcher.data.streams import Stream
from launcher.errors import RecipeError
from launcher.model.losses import NoLoss, refuse_other_means
from launcher.recipe.base import Recipe, is_base

_SAY_AFTER_S = 5.0


class Parts(NamedTuple):
    """What is trained, and on what."""

    train_data: SizedData | Stream
    test_data: SizedData | Stream | None  # None: nothing is tested
    model: nn.Module | None  # None: it is sharded, and built otherwise
    loss_fn: nn.Module


def parts_of(recipe: Recipe, *, say: bool) -> Parts:
    """Return data, model and loss, which may be downloaded or computed; say so if it takes long.

    Raises RecipeError and DataError for what cannot be trained.
    """
    with _telling() if say else nullcontext():
        train_data = sized(_seeded(recipe, recipe.train_data), "train_data")
        test_data = _test_data(recipe)
        model = None if recipe.shard else model_of(recipe, say=say)
        loss_fn = loss_of(recipe)
        if recipe.counts_samples():
            refuse_other_means(loss_fn)
    return Parts(train_data, test_data, model, loss_fn)


@contextmanager
def _telling() -> Iterator[None]:
    """Say that something takes long, while it does, and in the end how long it took."""
    others = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    first = ", first in one process of each machine" if others else ""
    told = Timer(_SAY_AFTER_S, print, [f"preparing data and model{first}"], {"flush": True})
    told.daemon = True
    told.start()
    began = time.monotonic()
    try:
        yield
    finally:
        told.cancel()
    took = time.monotonic() - began
    if others and took > _SAY_AFTER_S:
        print(f"prepared in {took:.0f} s; now the other processes do", flush=True)


def _test_data(recipe: Recipe) -> SizedData | Stream | None:
    """Return the test data, None where a recipe has left them out, and all that needs them."""
    if not is_base(recipe, "test_data"):
        return sized(_seeded(recipe, recipe.test_data), "test_data")
    for name in ("best_by", "patience", "test_every"):
        if getattr(recipe, name, None) is not None:
            raise RecipeError(
                f"`{name}` is about tests, and the recipe has no `test_data`",
                hint="write the method `test_data`, or leave it out",
            )
    return None


def loss_of(recipe: Recipe) -> nn.Module:
    """Return the loss; where it is left out, what says so when it is called."""
    if is_base(recipe, "loss"):
        return NoLoss()
    loss: nn.Module = _expect(_seeded(recipe, recipe.loss), nn.Module, "loss")
    return loss


def model_of(recipe: Recipe, *, say: bool = False) -> nn.Module:
    """Return the model, in the mode to train it in; raises RecipeError where it is none."""
    model: nn.Module = _expect(_seeded(recipe, recipe.model), nn.Module, "model")
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # inputs follow in the first convolution
    if recipe.compile:
        model.compile()  # in place: it stays the user's own module, with its own names
    # What a recipe has put in eval mode by itself stays so; a whole model is only as it was loaded.
    frozen = {n: m for n, m in model.named_modules() if not m.training} if model.training else {}
    model.train()
    for module in frozen.values():
        module.eval()
    if say and frozen:
        print(f"in eval mode while training, as `model` left them: {', '.join(frozen)}", flush=True)
    return model


def _expect(made: Any, kind: type, method: str) -> Any:
    if not isinstance(made, kind):
        raise RecipeError(
            f"`{method}` returned {type(made).__name__}, not a {kind.__module__}.{kind.__name__}",
            hint=f"does the method `{method}` of the recipe end in `return`?",
        )
    return made


def _seeded(recipe: Recipe, make: Callable[[], Any]) -> Any:
    """Call a method of the recipe with all generators seeded, the same on every rank."""
    seed_init(recipe.seed)
    return make()
