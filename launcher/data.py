"""Loaders that hand each rank its shard of every global batch, on its device."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeGuard, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from launcher.arrays import ArrayDataset
from launcher.errors import DataError
from launcher.processes import cores, die_with_parent
from launcher.randomness import SampleRandom, seed_sample
from launcher.recipe import Recipe
from launcher.sampler import ShardIndices, ShardSampler

_MOST_WORKERS = 8  # that a training process starts by itself


class Shard(NamedTuple):
    """One rank's part of one global batch, in memory."""

    size: int  # samples in the global batch
    own: int  # samples in this shard that count; 0: a ghost, to be weighted 0
    micro_batches: list[Any]  # what the dataset gave, collated


class SizedData(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class _Fetcher(Dataset[Shard]):
    """Turns indices into a shard; runs in the data workers, where there are any.

    Every sample of an ordinary dataset is loaded with generators seeded from (seed, epoch,
    sample), so that random transforms are the same for every world size and number of workers.
    """

    def __init__(self, dataset: SizedData, recipe: Recipe) -> None:
        self.dataset = dataset
        self.arrays = dataset if in_memory(dataset) else None
        self.recipe = recipe

    def __getitem__(self, indices: ShardIndices) -> Shard:
        batches = [self._batch(indices.epoch, micro) for micro in indices.micro_batches]
        return Shard(indices.size, indices.own, batches)

    def _batch(self, epoch: int, indices: list[int]) -> Any:
        seed = self.recipe.seed
        if self.arrays is not None:
            return self.arrays.batch(indices, SampleRandom(seed, epoch, indices))
        samples = []
        for index in indices:
            seed_sample(seed, epoch, index)
            samples.append(self.dataset[index])
        return self.recipe.collate(samples)


def in_memory(dataset: SizedData) -> TypeGuard[ArrayDataset]:
    """Whether batches are fetched whole: an ArrayDataset whose subclass has left fetching as it is.

    Every other dataset is an ordinary one: it is asked for one sample after the other.
    """
    names = ("__getitem__", "__getitems__")
    return isinstance(dataset, ArrayDataset) and all(
        getattr(type(dataset), name) is getattr(ArrayDataset, name) for name in names
    )


def worker_count(asked: int | None, own_cores: int, *, arrays: bool) -> int:
    """Return how many data workers a training process gets that has so many cores to itself.

    What is asked for; else none for arrays in memory, and for an ordinary dataset all cores but
    the one that trains.
    """
    if asked is not None:
        return asked
    return 0 if arrays else min(max(own_cores - 1, 0), _MOST_WORKERS)


class Loader:
    """The shards of one rank, on its device, one for each global batch in order."""

    def __init__(
        self, dataset: SizedData, sampler: ShardSampler, recipe: Recipe, device: torch.device
    ) -> None:
        self.sampler = sampler
        self.device = device
        own_cores = cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = worker_count(recipe.num_workers, own_cores, arrays=in_memory(dataset))
        fetcher = _Fetcher(dataset, recipe)
        self._source: Callable[[], Iterator[Shard]] = lambda: map(fetcher.__getitem__, sampler)
        if workers or device.type == "cuda":
            loader: DataLoader[Shard] = DataLoader(
                fetcher,
                batch_size=None,  # the sampler already speaks in batches
                sampler=sampler,
                collate_fn=_as_it_is,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=workers > 0,
                worker_init_fn=_start_data_worker if workers else None,
                multiprocessing_context="fork" if workers else None,
            )
            self._source = lambda: iter(loader)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Shard]:
        for shard in self._source():
            if self.device.type == "cpu":
                yield shard
            else:
                yield shard._replace(micro_batches=self._to_device(shard.micro_batches))

    def _to_device(self, batches: list[Any]) -> Any:
        return pytree.tree_map_only(
            Tensor, lambda tensor: tensor.to(self.device, non_blocking=True), batches
        )


def _as_it_is(shard: Any) -> Any:
    """Collate nothing: the fetcher has done it."""
    return shard


def _start_data_worker(_worker: int) -> None:
    """Leave stop requests to the training process, which ends its data workers by SIGTERM."""
    parent = multiprocessing.parent_process()
    if parent and parent.pid:
        die_with_parent(parent.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def sized(dataset: Any, what: str) -> SizedData:
    """Return a dataset as it is; raises DataError where it is empty or no map-style dataset."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"`{what}` returned {type(dataset).__name__}, which is not a map-style dataset",
            hint="return an object with __len__ and __getitem__, or an ArrayDataset",
        )
    if len(dataset) == 0:
        raise DataError(f"`{what}` returned an empty dataset")
    return cast("SizedData", dataset)
