"""From the indices of a shard to its batches: in the data workers, where there are any."""

import random
import traceback
from bdb import BdbQuit
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from launcher.data.arrays import ArrayDataset
from launcher.data.draws import SampleDraws
from launcher.data.randomness import LOADING, Numbers, SampleRandom, seed_batch
from launcher.data.sampler import ShardIndices, ShardSampler
from launcher.data.workers import handed_over
from launcher.errors import DataError, LauncherError, RecipeError, SampleFailed
from launcher.model.losses import labels_left_out
from launcher.recipe.base import Recipe
from launcher.run.record import users_frames

T = TypeVar("T")


class Shard(NamedTuple):
    """One rank's part of one global batch, in memory."""

    size: int  # samples in the global batch
    own: int  # samples in this shard that count; 0: a ghost, to be weighted 0
    micro_batches: list[Any]  # what the dataset gave, collated
    left_out: int = 0  # labels that torch leaves out of a mean where nothing else is said


class Failed(NamedTuple):
    """Why there is no shard: an exception that a data worker raises loses all but its text."""

    error: LauncherError


class SizedData(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Fetcher(Dataset[Shard | Failed]):
    """Turns indices into a shard.

    Every sample of an ordinary dataset is loaded with generators seeded from (seed, epoch,
    sample), so that random transforms are the same for every world size and number of workers.
    """

    def __init__(
        self,
        dataset: SizedData,
        sampler: ShardSampler,
        recipe: Recipe,
        device: torch.device,
        *,
        test: bool,
        debugged: bool = False,
    ) -> None:
        self.dataset, self.recipe = dataset, recipe
        self.device = device  # where batches of arrays are made
        self.arrays = dataset if in_memory(dataset) else None
        self.test, self.rank = test, sampler.rank
        cut = sampler.micro_batch_size < sampler.batch_size
        self.in_parts = cut or sampler.num_replicas > 1  # no fetcher sees a whole batch
        self.checked = False
        self.draws = SampleDraws(recipe.seed, once=debugged)  # a breakpoint is met once
        self.counts_left_out = recipe.counts_samples(test=test)
        if self.arrays is not None:  # looked at once, so that no step has to
            found = labels_left_out(self.arrays.arrays)
            self.counts_left_out = self.counts_left_out and bool(found)

    def __reduce__(self) -> tuple[Any, ...]:
        return handed_over(self, self.recipe)

    def __getitem__(self, indices: ShardIndices) -> Shard | Failed:
        """Return a shard, or why there is none: for data workers."""
        try:
            return self.get(indices)
        except LauncherError as error:
            return Failed(error)

    def get(self, indices: ShardIndices) -> Shard:
        """Return a shard; raises LauncherError where there is none."""
        make = self._samples if self.arrays is None else self._rows
        batches = [make(indices.epoch, micro) for micro in indices.micro_batches]
        left_out = sum(map(labels_left_out, batches)) if self.counts_left_out else 0
        return Shard(indices.size, indices.own, batches, left_out)

    def _rows(self, epoch: int, indices: Numbers) -> Any:
        """Return a batch of arrays."""
        assert self.arrays is not None
        numbers = SampleRandom(self.recipe.seed, epoch, indices, self.device)
        make = partial(self.arrays.batch, indices, numbers)
        try:
            if self.checked:
                return make()
            self.checked = True
            batch, drew = _watched(make, self.device)
        except (LauncherError, torch.OutOfMemoryError, BdbQuit):
            raise
        except Exception as error:
            raise self._failed(_listed(indices), epoch, error) from error
        if drew:
            raise DataError(
                "`transform` or `augment` draws from global generators: one set of numbers for a "
                "whole batch, and another one for every number of processes",
                hint="draw from the SampleRandom that `augment` gets, or return an ordinary "
                "dataset, where each sample is seeded",
            )
        return batch

    def _samples(self, epoch: int, indices: Numbers) -> Any:
        """Return a batch of an ordinary dataset."""
        try:
            samples = self.draws.load(epoch, indices, self.dataset.__getitem__)
            return self._joined(samples, epoch, indices)
        except (LauncherError, torch.OutOfMemoryError, BdbQuit):
            raise
        except Exception as error:
            at, LOADING.index = LOADING.index, None
            which = f"the batch of {_listed(indices)}" if at is None else f"sample {at}"
            raise self._failed(which, epoch, error) from error

    def _joined(self, samples: Sequence[Any], epoch: int, indices: Numbers) -> Any:
        """Join samples into a batch; looks at what a recipe's own method does, the first time."""
        recipe, name = self.recipe, "test_collate" if self.test else "collate"
        join = partial(getattr(recipe, name), samples)
        if _is_base(recipe, name):
            return join()
        seed_batch(recipe.seed, epoch, int(indices[0]))
        if self.checked:
            return join()
        self.checked = True
        if not self.test and _is_base(recipe, "test_collate"):
            plain = _plainly(samples)
            batch, drew = _watched(join, self.device)
            if _structure(plain) != _structure(batch):
                raise _unasked("makes other batches than")
        else:
            batch, drew = _watched(join, self.device)
        if drew and self.in_parts:
            raise RecipeError(
                f"`{name}` draws random numbers: it sees the samples of one process and "
                "micro-batch only, so that every number of processes would train another mix",
                hint="use one process and no micro_batch_size, or draw in `__getitem__`, where "
                "each sample is seeded",
            )
        return batch

    def _failed(self, which: str, epoch: int, error: Exception) -> SampleFailed:
        kind = "test" if self.test else "train"
        return SampleFailed(
            f"{which} of `{kind}_data` could not be loaded (epoch {epoch}, rank {self.rank}): "
            f"{type(error).__name__}: {error}",
            frames=users_frames(error),
            trace="".join(traceback.format_exception(error)),
        )


def in_memory(dataset: SizedData) -> TypeGuard[ArrayDataset]:
    """Whether batches are fetched whole: an ArrayDataset whose subclass has left fetching as it is.

    Every other dataset is an ordinary one: it is asked for one sample after the other.
    """
    names = ("__getitem__", "__getitems__")
    return isinstance(dataset, ArrayDataset) and all(
        getattr(type(dataset), name) is getattr(ArrayDataset, name) for name in names
    )


def _is_base(recipe: Recipe, method: str) -> bool:
    return getattr(type(recipe), method) is getattr(Recipe, method)


def _listed(indices: Numbers) -> str:
    shown = ", ".join(map(str, indices[:8].tolist()))
    return f"samples {shown}" + (", …" if len(indices) > 8 else "")


def _watched(make: Callable[[], T], device: torch.device) -> tuple[T, bool]:
    """Return what `make` makes, and whether it drew from a generator that is not a sample's."""
    before = _generators(device)
    made = make()
    return made, before != _generators(device)


def _generators(device: torch.device) -> list[Any]:
    on_gpu = [torch.cuda.get_rng_state(device).tolist()] if device.type == "cuda" else []
    _, words, *rest = np.random.get_state()
    numpys = [np.asarray(words).tolist(), *rest]
    return [torch.get_rng_state().tolist(), random.getstate(), numpys, *on_gpu]


def _plainly(samples: Sequence[Any]) -> Any:
    """Join samples as tests do it; raises RecipeError where that cannot be."""
    try:
        return default_collate(list(samples))
    except Exception as error:
        raise _unasked("joins what cannot be joined by") from error


def _unasked(what: str) -> RecipeError:
    return RecipeError(
        f"`collate` {what} torch's default, and tests use it only where they are told to",
        hint="say how test samples are joined: `test_collate = collate` in the recipe, where "
        "tests may use it, or a method of its own",
    )


def _structure(batch: Any) -> Any:
    """Return which containers a batch is made of, without what is in them."""
    if isinstance(batch, Mapping):
        return {key: _structure(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return [_structure(value) for value in batch]
    return None
