"""Loaders that hand each rank its shard of every global batch, on its device."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import Dataset, IterableDataset

from launcher.data.arrays import ArrayDataset
from launcher.data.device import CPU, prefetched, to_device
from launcher.data.fetching import Failed, Fetcher, Shard, SizedData, in_memory
from launcher.data.sampler import ShardSampler
from launcher.data.streaming import StreamFetcher, streamed
from launcher.data.streams import LaneSampler, Positions, Stream
from launcher.data.workers import loaded_by_workers
from launcher.errors import DataError, RecipeError
from launcher.processes import cores
from launcher.recipe.base import Recipe

T = TypeVar("T")

_SMALL = 0.05  # share of a GPU's free memory that data may take unasked
_MOST_WORKERS = 8  # that a training process starts by itself


def worker_count(asked: int | None, own_cores: int, *, arrays: bool) -> int:
    """Return how many data workers a training process gets that has so many cores to itself.

    What is asked for; else none for arrays in memory, and for an ordinary dataset all cores but
    the one that trains.
    """
    if asked is not None:
        return asked
    return 0 if arrays else min(max(own_cores - 1, 0), _MOST_WORKERS)


class Loader:
    """The shards of one rank, on its device, one for each global batch in order.

    There are no data workers but those that are asked for where it is `alone`. Raises RecipeError
    where `data_on_device` is asked for and cannot be had.
    """

    def __init__(
        self,
        dataset: SizedData | Stream,
        sampler: ShardSampler,
        recipe: Recipe,
        device: torch.device,
        *,
        alone: bool = False,
        test: bool = False,
    ) -> None:
        self.sampler = sampler
        self.device = device
        own_cores = 1 if alone else cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = worker_count(recipe.num_workers, own_cores, arrays=in_memory(dataset))
        wanted = recipe.data_on_device
        if wanted or (wanted is None and not workers and _is_small(dataset, device)):
            dataset = _on_device(dataset, device, workers)
        where = CPU if workers else device
        self.lanes: dict[int, Any] | None = None  # of a Stream: how far they are trained on
        self._source: Callable[[], Iterator[Shard | Failed]]
        if isinstance(sampler, LaneSampler):
            self.lanes = {}
            home = StreamFetcher(sampler, recipe, where, test=test)
            self.fetcher: Fetcher = home
            self._source = streamed(home, sampler, min(workers, sampler.own_lanes))
        else:
            indexed = cast("SizedData", dataset)
            fetcher = Fetcher(indexed, sampler, recipe, where, test=test, debugged=alone)
            self.fetcher = fetcher
            self._source = partial(map, fetcher.get, sampler)
            if workers:
                self._source = loaded_by_workers(
                    fetcher, sampler, workers, recipe, pinned=device.type == "cuda"
                )
        self._stream: torch.cuda.Stream | None = None  # one for good: each has memory of its own
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Shard]:
        shards: Iterator[Shard] = map(_made, self._source())
        if self._stream:
            shards = prefetched(map(self._moved, shards), self._stream)
        return shards if self.lanes is None else self._noted(shards, self.lanes)

    def resume(self, epoch: int, step: int, lanes: Positions) -> None:
        """Have lanes go on, from that step of an epoch on, where they were on all ranks."""
        if self.lanes is not None and isinstance(self.sampler, LaneSampler):
            mine = {lane: at for lane, at in lanes.items() if self.sampler.owns(lane)}
            self.lanes = dict(mine)
            self.sampler.resume(epoch, step, mine)

    def _noted(self, shards: Iterator[Shard], lanes: dict[int, Any]) -> Iterator[Shard]:
        """Give shards, and note how far their lanes are: what was fetched ahead does not count."""
        if self.sampler.first_step == 0:
            lanes.clear()
        for shard in shards:
            lanes |= shard.reached
            yield shard

    def _moved(self, shard: Shard) -> Shard:
        return shard._replace(micro_batches=to_device(shard.micro_batches, self.device))


def _is_small(dataset: SizedData | Stream, device: torch.device) -> bool:
    """Whether a dataset is arrays that take next to nothing of a GPU's free memory."""
    if device.type != "cuda" or not in_memory(dataset):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(array.nbytes for array in dataset.arrays) < _SMALL * free


def _on_device(dataset: SizedData | Stream, device: torch.device, workers: int) -> ArrayDataset:
    if not in_memory(dataset):
        raise RecipeError(
            f"`data_on_device` needs data in arrays, and {type(dataset).__name__} is no such data",
            hint="return an ArrayDataset from `train_data` and `test_data`, or leave it out",
        )
    if workers:
        raise RecipeError(
            "`data_on_device` leaves nothing to load for data workers",
            hint="leave out either `data_on_device` or `num_workers`",
        )
    try:
        return dataset.on(device)
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            f"the data do not fit into the memory of {device}", hint="leave out `data_on_device`"
        ) from error


def _made(shard: Shard | Failed) -> Shard:
    if isinstance(shard, Failed):
        raise shard.error
    return shard


def sized(dataset: Any, what: str) -> SizedData | Stream:
    """Return data as they are; raises DataError for neither a map-style dataset nor a Stream."""
    if isinstance(dataset, Stream):
        return dataset
    # Torch's base class has a __getitem__ that only says that there is none.
    get = getattr(type(dataset), "__getitem__", Dataset.__getitem__)
    stream = isinstance(dataset, IterableDataset) or get is Dataset.__getitem__
    try:
        size = None if stream else len(dataset)
    except (TypeError, NotImplementedError):
        size = None
    if size is None:
        raise DataError(
            f"`{what}` returned {type(dataset).__name__}, which is not a map-style dataset",
            hint="return an object with __len__ and __getitem__, or an ArrayDataset: any sample "
            "must be there by its index, so that each counts once for any number of processes. "
            "Data that can only be read one after the other are a `launcher.Stream(open, lanes)`: "
            "`open(lane, lanes)` returns an iterator of every lanes-th file",
        )
    if size == 0:
        raise DataError(f"`{what}` returned an empty dataset")
    return cast("SizedData", dataset)
