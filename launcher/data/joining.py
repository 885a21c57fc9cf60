"""From samples to a batch: by torch, or by a method of the recipe that is looked at once."""

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import default_collate

from launcher.data.randomness import BatchRandom, seed_batch
from launcher.data.sampler import Part
from launcher.errors import RecipeError
from launcher.recipe.base import Recipe, is_base

T = TypeVar("T")


class Joiner:
    """Joins the samples of a micro-batch by `collate`, and in tests by `test_collate`."""

    def __init__(self, recipe: Recipe, device: torch.device, *, test: bool, in_parts: bool) -> None:
        """`in_parts`: nobody here sees a whole global batch."""
        self.recipe, self.device = recipe, device
        self.test, self.in_parts = test, in_parts
        self.name = "test_collate" if test else "collate"
        self.base = is_base(recipe, self.name)
        told = inspect.signature(getattr(recipe, self.name)).parameters
        self.takes_random = not self.base and "random" in told
        self.checked = False

    def join(self, samples: Sequence[Any], part: Part) -> Any:
        """Return a batch of samples, or of (sample, partner) pairs where `part` has partners.

        Raises RecipeError, with the first batch, where it would not be the same for any number of
        processes, or where tests could not use it.
        """
        if self.base:
            return getattr(self.recipe, self.name)(samples)
        seed_batch(self.recipe.seed, part.epoch, int(part.names[0]))
        if self.checked:
            return self._made(samples, part)[0]
        self.checked = True
        plain = self._plainly(samples, part)
        (batch, drawn), drew = watched(lambda: self._made(samples, part), self.device)
        if plain is not None and _structure(plain[0]) != _structure(batch):
            raise _unasked("makes other batches than")
        if drew and self.in_parts:
            raise RecipeError(
                f"`{self.name}` draws random numbers: it sees the samples of one process and "
                "micro-batch only, so that every number of processes would train another mix",
                hint=f"write `{self.name}(self, samples, *, random)` and draw from `random.batch` "
                "(numbers of the whole batch) and `random.samples`; `partners` brings a second "
                "sample to each; or draw in `__getitem__`, where each sample is seeded",
            )
        if drawn is not None and len(samples) > 1:
            self._refuse_by_size(samples[:1], part, drawn)
        return batch

    def _made(self, samples: Sequence[Any], part: Part) -> tuple[Any, Any]:
        """Return a batch, and how its numbers of the whole batch were left."""
        join = partial(getattr(self.recipe, self.name), samples)
        if not self.takes_random:
            return join(), None
        seed, names = self.recipe.seed, part.names[: len(samples)]
        numbers = BatchRandom(seed, part.epoch, part.step, names, self.device)
        return join(random=numbers), numbers.batch.bit_generator.state

    def _refuse_by_size(self, fewer: Sequence[Any], part: Part, drawn: Any) -> None:
        """Raise RecipeError where the numbers of the whole batch depend on a part of it."""
        try:
            _, less = self._made(fewer, part)
        except Exception:  # noqa: BLE001  # not every method takes a single sample
            return
        if less != drawn:
            raise RecipeError(
                f"`{self.name}` draws from `random.batch` by how many samples it gets: these are "
                "of one process and micro-batch only",
                hint="draw from `random.samples`, which has numbers for each sample",
            )

    def _plainly(self, samples: Sequence[Any], part: Part) -> tuple[Any] | None:
        """Return samples joined as tests do it, None where they need not be alike.

        Raises RecipeError where it cannot be done.
        """
        recipe = self.recipe
        mixes = self.takes_random or part.partners is not None
        if self.test or not is_base(recipe, "test_collate"):
            return None
        if mixes and not is_base(recipe, "test_step"):
            return None
        plain = [sample for sample, _ in samples] if part.partners is not None else list(samples)
        try:
            return (default_collate(plain),)
        except Exception as error:
            raise _unasked("joins what cannot be joined by") from error


def watched(make: Callable[[], T], device: torch.device) -> tuple[T, bool]:
    """Return what `make` makes, and whether it drew from a generator that is not a sample's."""
    before = _generators(device)
    made = make()
    return made, before != _generators(device)


def _generators(device: torch.device) -> list[Any]:
    on_gpu = [torch.cuda.get_rng_state(device).tolist()] if device.type == "cuda" else []
    _, words, *rest = np.random.get_state()
    numpys = [np.asarray(words).tolist(), *rest]
    return [torch.get_rng_state().tolist(), random.getstate(), numpys, *on_gpu]


def _unasked(what: str) -> RecipeError:
    return RecipeError(
        f"`collate` {what} torch's default, and tests use it only where they are told to",
        hint="say how test samples are joined: `test_collate = collate` in the recipe, where "
        "tests may use it, or a method of its own; a batch that is mixed may be another one where "
        "`test_step` is written",
    )


def _structure(batch: Any) -> Any:
    """Return which containers a batch is made of, without what is in them."""
    if isinstance(batch, Mapping):
        return {key: _structure(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_structure(value) for value in batch]
    return None
