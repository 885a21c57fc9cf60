"""From the indices of a shard to its batches: in the data workers, where there are any."""

import traceback
from bdb import BdbQuit
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar

import numpy as np
import torch
from torch.utils.data import Dataset

from launcher.data.arrays import ArrayDataset
from launcher.data.draws import SampleDraws
from launcher.data.joining import Joiner, watched
from launcher.data.randomness import LOADING, Numbers, SampleRandom, indices_of
from launcher.data.sampler import Part, ShardIndices, ShardSampler
from launcher.data.workers import handed_over
from launcher.errors import DataError, LauncherError, SampleFailed
from launcher.model.losses import labels_left_out
from launcher.recipe.base import Recipe
from launcher.run.record import users_frames

T = TypeVar("T")

_TOLD = 8  # samples of a batch that an error names


class Shard(NamedTuple):
    """One rank's part of one global batch, in memory."""

    size: int  # samples in the global batch
    own: int  # samples in this shard that count; 0: a ghost, to be weighted 0
    micro_batches: list[Any]  # what the dataset gave, collated
    left_out: int = 0  # labels that torch leaves out of a mean where nothing else is said
    owners: Numbers | None = None  # (samples of the global batch,): ranks; None: each in turn
    reached: Mapping[int, Any] = {}  # of a Stream's lanes: how far they are read now


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
        self.repeats = sampler.given is not None  # samples may come again within an epoch
        cut = sampler.micro_batch_size < sampler.batch_size
        self.in_parts = cut or sampler.num_replicas > 1  # no fetcher sees a whole batch
        self.checked = False
        self.joiner = Joiner(recipe, device, test=test, in_parts=self.in_parts)
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
        return self.shard(indices, self._samples if self.arrays is None else self._rows)

    def shard(self, indices: ShardIndices, make: Callable[[Part], Any]) -> Shard:
        """Return a shard of what `make` makes of its parts."""
        batches = [self.told(make, part) for part in indices.parts()]
        left_out = sum(map(labels_left_out, batches)) if self.counts_left_out else 0
        return Shard(indices.size, indices.own, batches, left_out)

    def told(self, make: Callable[[Part], T], part: Part) -> T:
        """Return what `make` makes; what a dataset raises is told with its sample."""
        try:
            return make(part)
        except (LauncherError, torch.OutOfMemoryError, BdbQuit):
            raise
        except Exception as error:
            at, LOADING.name = LOADING.name, None
            listed = f"samples {', '.join(self.listed(part.names[:_TOLD]))}"
            listed += ", …" if len(part.names) > _TOLD else ""
            [one] = self.listed(np.array([at])) if at is not None else [""]
            which = f"sample {one}" if one else f"the batch of {listed}"
            which = which if self.arrays is None else listed
            raise self._failed(which, part.epoch, error, one) from error

    def listed(self, names: Numbers) -> list[str]:
        """Return samples as people find them."""
        return [str(index) for index in indices_of(names).tolist()]

    def _rows(self, part: Part) -> Any:
        """Return a batch of arrays."""
        assert self.arrays is not None
        names, others = part.names, part.partners
        if others is not None:
            names = np.concatenate([names, others])
        numbers = SampleRandom(self.recipe.seed, part.epoch, names, self.device)
        indices = indices_of(names) if self.repeats else names
        make = partial(self.arrays.batch, indices, numbers)
        if self.checked:
            batch, drew = make(), False
        else:
            self.checked = True
            batch, drew = watched(make, self.device)
        if drew:
            raise DataError(
                "`transform` or `augment` draws from global generators: one set of numbers for a "
                "whole batch, and another one for every number of processes",
                hint="draw from the SampleRandom that `augment` gets, or return an ordinary "
                "dataset, where each sample is seeded",
            )
        if others is None and not self.joiner.takes_random:
            return batch
        rows = list(zip(*(array.unbind() for array in batch), strict=True))
        if others is None:
            return self.joiner.join(rows, part)
        own = len(part.names)
        return self.joiner.join(list(zip(rows[:own], rows[own:], strict=True)), part)

    def _samples(self, part: Part) -> Any:
        """Return a batch of an ordinary dataset."""
        load = partial(self.draws.load, part.epoch, get=self.dataset.__getitem__)
        if part.partners is None:
            return self.joiner.join(load(part.names), part)
        # Most partners are of the same micro-batch, where that is a whole batch: each is loaded
        # once, and one that comes twice is copied, so that it may be written to.
        names, places = np.unique(np.concatenate([part.names, part.partners]), return_inverse=True)
        loaded, (own, others) = load(names), np.split(places.reshape(-1), 2)
        seen = set(own.tolist())
        partners = [deepcopy(loaded[at]) if at in seen else loaded[at] for at in others.tolist()]
        return self.joiner.join([*zip([loaded[at] for at in own], partners, strict=True)], part)

    def _failed(self, which: str, epoch: int, error: Exception, sample: str = "") -> SampleFailed:
        kind = "test" if self.test else "train"
        return SampleFailed(
            f"{which} of `{kind}_data` could not be loaded (epoch {epoch}, rank {self.rank}): "
            f"{type(error).__name__}: {error}",
            frames=users_frames(error),
            trace="".join(traceback.format_exception(error)),
            sample=sample,
        )


def in_memory(dataset: Any) -> TypeGuard[ArrayDataset]:
    """Whether batches are fetched whole: an ArrayDataset whose subclass has left fetching as it is.

    Every other dataset is an ordinary one: it is asked for one sample after the other.
    """
    names = ("__getitem__", "__getitems__")
    return isinstance(dataset, ArrayDataset) and all(
        getattr(type(dataset), name) is getattr(ArrayDataset, name) for name in names
    )
