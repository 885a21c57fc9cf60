"""Loaders that hand each rank its shard of every global batch, on its device."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from launcher.arrays import ArrayDataset
from launcher.device import CPU, moved, prefetched
from launcher.errors import DataError, RecipeError
from launcher.losses import labels_left_out
from launcher.processes import cores, die_with_parent
from launcher.randomness import Numbers, SampleRandom, seed_sample
from launcher.recipe import Recipe
from launcher.sampler import ShardIndices, ShardSampler

T = TypeVar("T")

_SMALL = 0.05  # share of a GPU's free memory that data may take unasked
_MOST_WORKERS = 8  # that a training process starts by itself


class Shard(NamedTuple):
    """One rank's part of one global batch, in memory."""

    size: int  # samples in the global batch
    own: int  # samples in this shard that count; 0: a ghost, to be weighted 0
    micro_batches: list[Any]  # what the dataset gave, collated
    left_out: int = 0  # labels that torch leaves out of a mean where nothing else is said


class SizedData(Protocol):
    """A map-style dataset."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class _Fetcher(Dataset[Shard]):
    """Turns indices into a shard; runs in the data workers, where there are any.

    Every sample of an ordinary dataset is loaded with generators seeded from (seed, epoch,
    sample), so that random transforms are the same for every world size and number of workers.
    """

    def __init__(
        self, dataset: SizedData, recipe: Recipe, device: torch.device, *, test: bool
    ) -> None:
        self.dataset = dataset
        self.device = device  # where batches of arrays are made
        self.arrays = dataset if in_memory(dataset) else None
        self.recipe = recipe
        self.draws_checked = False
        self.counts_left_out = recipe.counts_samples(test=test)
        if self.arrays is not None:  # looked at once, so that no step has to
            self.counts_left_out = self.counts_left_out and bool(
                labels_left_out(self.arrays.arrays)
            )

    def __getitem__(self, indices: ShardIndices) -> Shard:
        batches = [self._batch(indices.epoch, micro) for micro in indices.micro_batches]
        left_out = sum(map(labels_left_out, batches)) if self.counts_left_out else 0
        return Shard(indices.size, indices.own, batches, left_out)

    def _batch(self, epoch: int, indices: Numbers) -> Any:
        seed = self.recipe.seed
        if self.arrays is not None:
            random = SampleRandom(seed, epoch, indices, self.device)
            if self.draws_checked:
                return self.arrays.batch(indices, random)
            self.draws_checked = True
            return _without_draws(partial(self.arrays.batch, indices, random), self.device)
        samples = []
        for index in indices.tolist():
            seed_sample(seed, epoch, index)
            samples.append(self.dataset[index])
        return self.recipe.collate(samples)


def _without_draws(make: Callable[[], T], device: torch.device) -> T:
    """Return what `make` makes; raises DataError where torch's own generators were used for it.

    One draw for a whole batch would be another one for every world size.
    """
    before = _generators(device)
    made = make()
    if not all(map(torch.equal, before, _generators(device))):
        raise DataError(
            "`transform` or `augment` draws from torch's generators: one set of numbers for a "
            "whole batch, and another one for every number of processes",
            hint="draw from the SampleRandom that `augment` gets, or return an ordinary dataset, "
            "where each sample is seeded",
        )
    return made


def _generators(device: torch.device) -> list[Tensor]:
    on_gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *on_gpu]


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
    """The shards of one rank, on its device, one for each global batch in order.

    There are no data workers but those that are asked for where it is `alone`. Raises RecipeError
    where `data_on_device` is asked for and cannot be had.
    """

    def __init__(
        self,
        dataset: SizedData,
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
        fetcher = _Fetcher(dataset, recipe, CPU if workers else device, test=test)
        self._source: Callable[[], Iterator[Shard]] = lambda: map(fetcher.__getitem__, sampler)
        if workers:
            leaving = multiprocessing.RawValue("b", 0)  # 1 when this process does
            atexit.register(setattr, leaving, "value", 1)  # before multiprocessing ends its own
            loader: DataLoader[Shard] = DataLoader(
                fetcher,
                batch_size=None,  # the sampler already speaks in batches
                sampler=sampler,
                collate_fn=_as_it_is,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                persistent_workers=True,
                worker_init_fn=partial(_start_data_worker, leaving),
                multiprocessing_context="fork",
            )
            self._source = lambda: iter(loader)
        self._stream: torch.cuda.Stream | None = None  # one for good: each has memory of its own
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Shard]:
        shards = self._source()
        return prefetched(map(self._moved, shards), self._stream) if self._stream else shards

    def _moved(self, shard: Shard) -> Shard:
        there = partial(moved, device=self.device)
        return cast("Shard", pytree.tree_map_only(Tensor, there, shard))


def _is_small(dataset: SizedData, device: torch.device) -> bool:
    """Whether a dataset is arrays that take next to nothing of a GPU's free memory."""
    if device.type != "cuda" or not in_memory(dataset):
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(array.nbytes for array in dataset.arrays) < _SMALL * free


def _on_device(dataset: SizedData, device: torch.device, workers: int) -> ArrayDataset:
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


def _as_it_is(shard: Any) -> Any:
    """Collate nothing: the fetcher has done it."""
    return shard


def _end_if_training_does(leaving: Any, _number: int, _frame: FrameType | None) -> None:
    """Tell the training process, which ends its data workers, from others who signal everybody.

    A scheduler does, and an agent that ends the ranks of a run of which another has failed: a rank
    whose data workers go first would be told as the cause.
    """
    if leaving.value:
        os._exit(0)


def _start_data_worker(leaving: Any, _worker: int) -> None:
    """Leave stop requests to the training process, which ends its data workers by SIGTERM."""
    parent = multiprocessing.parent_process()
    if parent and parent.pid:
        die_with_parent(parent.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, partial(_end_if_training_does, leaving))
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
