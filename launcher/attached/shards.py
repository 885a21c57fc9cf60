"""Exact shards of global batches for a training loop of one's own, with what weighs them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from launcher.attached import place
from launcher.attached.place import Place
from launcher.attached.steps import whole
from launcher.data.fetching import Shard
from launcher.data.loader import Loader, sized
from launcher.data.randomness import undisturbed
from launcher.data.sampler import ShardSampler
from launcher.data.streams import Stream
from launcher.errors import BadInput, DataError, SampleFailed
from launcher.ranks.gathering import HERE
from launcher.recipe.base import Recipe


class Share(NamedTuple):
    """One rank's part of one global batch.

    DDP averages gradients over ranks, whatever the sizes of their parts. So the mean loss over
    `batch` times `weight`, which is own samples x processes / size, gives the gradient of the mean
    over the global batch. A rank without samples of its own (a batch smaller than the world) has
    one of somebody else's, with weight 0: it takes part like the others.
    """

    batch: Any  # what the dataset gave, joined
    weight: float  # for the mean loss over the batch
    size: int  # samples in the global batch
    own: int  # samples of this rank that count: all in `batch`, or 0
    epoch: int
    step: int  # of the epoch


def shards(
    dataset: Any,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    drop_last: bool = False,
    epoch: int = 0,
    start: int = 0,
    num_workers: int = 0,
    collate: Callable[[Sequence[Any]], Any] | None = None,
    device: torch.device | str = "cpu",
    rank: int | None = None,
    world_size: int | None = None,
) -> "Shards":
    """Return this rank's shards of all global batches of `batch_size` samples over all processes.

    `dataset` is a map-style one, or an ArrayDataset; the order of an epoch follows from `seed` and
    its number alone, so it is the same for any number of processes, each sample once; what is drawn
    for a sample follows from it, too. Iterating gives `epoch` from step `start` on. The place of
    this process is that of its process group, or of torchrun's variables, unless it is given.
    `collate` joins a list of samples, torch's way unless given; `num_workers` are processes.

    Not collective. Raises DataError for what is no such dataset, BadInput for other arguments.
    """
    here = _place(rank, world_size)
    size = len(_checked(dataset))
    batch_size, seed = whole(batch_size, "batch_size", 1), whole(seed, "seed", 0)
    num_workers = whole(num_workers, "num_workers", 0)
    sampler = ShardSampler(
        size,
        batch_size,
        rank=here.rank,
        world_size=here.world_size,
        seed=seed,
        shuffle=shuffle,
        drop_last=drop_last,
    )
    options = _Options(
        batch_size=batch_size, seed=seed, num_workers=num_workers, data_on_device=False
    )
    if collate:
        options = _Joined(**vars(options), join=collate)
    loader = Loader(dataset, sampler, options, torch.device(device))
    return Shards(loader, here, whole(epoch, "epoch", 0), whole(start, "start", 0))


class Shards:
    """The shards of one rank: `for share in shards`, `shards.epoch(number)`, or `shards[step]`."""

    def __init__(self, loader: Loader, here: Place, epoch: int, start: int) -> None:
        self._loader, self._here = loader, here
        self._sampler = loader.sampler
        self._first = epoch, start
        self._turn = 0  # which epoch is under way
        self._ahead: Iterator[Share] | None = None  # of `self[step]`
        self._next = 0  # the step of the run that it gives next

    def __len__(self) -> int:
        """Return the steps of a whole epoch."""
        return self._sampler.steps

    def __iter__(self) -> Iterator[Share]:
        return self.epoch(*self._first)

    def epoch(self, number: int, start: int = 0) -> Iterator[Share]:
        """Give the shards of an epoch, from a step of it on; one epoch is under way at a time."""
        number, start = whole(number, "the epoch", 0), whole(start, "start", 0)
        if start > len(self):
            raise BadInput(f"`start` is {start}, and an epoch has {len(self)} steps")
        return self._shares(number, start)

    def _shares(self, epoch: int, start: int) -> Iterator[Share]:
        self._turn = turn = self._turn + 1
        self._sampler.seek(epoch, start)
        HERE.context, HERE.micro_batch_size = self._here, None
        loaded = iter(self._loader)
        for step in range(start, len(self)):
            if self._turn != turn:
                raise BadInput(
                    f"epoch {epoch} of these shards was left for another one",
                    hint="take the shards of one epoch at a time, or make two `launcher.shards`",
                )
            HERE.shard = shard = _next(loaded)  # for `launcher.gather`
            yield _share(shard, self._here.world_size, epoch, step)
        HERE.shard = None

    def __getitem__(self, step: int) -> Share:
        """Return the shard of a step of the run, counted from 0 over all epochs.

        Steps in order are loaded in one go; any other begins anew there, like a run that goes on.
        """
        epoch, within = divmod(whole(step, "the step", 0), len(self))
        if self._ahead is None or step != self._next or within == 0:
            self._ahead = self.epoch(epoch, within)
        self._next = step + 1
        return next(self._ahead)


def _next(loaded: Iterator[Shard]) -> Shard:
    """Return the next shard; generators that loading seeds are the script's own, and put back."""
    before = torch.get_rng_state()
    try:
        with undisturbed():
            return next(loaded)
    except SampleFailed as error:
        told = error.message.replace("`train_data`", "the dataset")
        raise SampleFailed(told, frames=error.frames, trace=error.trace) from error
    finally:
        torch.set_rng_state(before)


@dataclass(frozen=True)
class _Options(Recipe):
    """How the loader is to load: the hyperparameters of recipes, at their defaults."""


@dataclass(frozen=True)
class _Joined(_Options):
    join: Callable[[Sequence[Any]], Any] = list

    def collate(self, samples: list[Any], *_: Any, **__: Any) -> Any:
        return self.join(samples)

    test_collate = collate  # nothing is tested: so it is not compared with torch's


def _share(shard: Shard, world_size: int, epoch: int, step: int) -> Share:
    [batch] = shard.micro_batches
    weight = shard.own * world_size / shard.size
    return Share(batch, weight, shard.size, shard.own, epoch, step)


def _checked(dataset: Any) -> Any:
    """Return a dataset; raises DataError for one without indices."""
    try:
        if not isinstance(sized(dataset, "launcher.shards"), Stream):
            return dataset
    except DataError as error:
        if "empty" in error.message:
            raise DataError("`launcher.shards` got an empty dataset") from error
    raise DataError(
        f"`launcher.shards` got {type(dataset).__name__}, which is not a map-style dataset",
        hint="give an object with __len__ and __getitem__, or an ArrayDataset: any sample must be "
        "there by its index, so that each counts once for any number of processes",
    )


def _place(rank: int | None, world_size: int | None) -> Place:
    if (rank is None) != (world_size is None):
        raise BadInput("give both `rank` and `world_size`, or none of them")
    if rank is None or world_size is None:
        return place.find()
    if not 0 <= rank < world_size:
        raise BadInput(f"`rank` {rank} is not one of 0 to {world_size - 1}")
    return Place(rank, world_size)
