"""Which samples belong to which step and rank. Plain integers: no data, no processes."""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DistributedSampler

from launcher.data.randomness import Numbers, Permutation
from launcher.errors import RecipeError


class Names(Protocol):
    """The names of an epoch's samples (see randomness.named), or what computes them."""

    def __len__(self) -> int: ...
    def __getitem__(self, places: Numbers, /) -> Numbers: ...


Order = Callable[[int], Names]  # of an epoch
Partners = Callable[[int, int, int], Numbers]  # of (epoch, step, size): a place for each place

_CHECKED = 100_000  # names that tell one order from another
_AHEAD = 1 << 15  # samples of a rank that are looked up at once, for what an array call costs


class Part(NamedTuple):
    """A micro-batch: the names of its samples, and of those that stand beside them."""

    epoch: int
    step: int  # of the epoch
    names: Numbers
    partners: Numbers | None


class ShardIndices(NamedTuple):
    """The samples of one step that one rank handles, cut into micro-batches.

    A rank without a sample of its own (a batch smaller than the world) gets one sample of
    somebody else's as a ghost, `own` = 0: it takes part in the step's collectives with weight 0.
    """

    epoch: int
    size: int  # samples in the global batch
    own: int  # samples in this shard that count: all, or 0 for a ghost
    micro_batches: list[Numbers]
    step: int = 0  # of the epoch
    partners: list[Numbers] | None = None  # a sample beside each of the micro-batches' samples
    owners: Numbers | None = None  # (size,): the rank of each sample; None: each in turn
    begin: Mapping[int, Any] = {}  # of a Stream's lanes: where they go on from

    def parts(self) -> list[Part]:
        """Return the micro-batches."""
        where = self.epoch, self.step
        if self.partners is None:
            return [Part(*where, names, None) for names in self.micro_batches]
        pairs = zip(self.micro_batches, self.partners, strict=True)
        return [Part(*where, names, partners) for names, partners in pairs]


def shuffled(size: int, seed: int, epoch: int, torch_up_to: int) -> Names:
    """Return torch's order of an epoch; of more samples than that one that is computed."""
    if size > torch_up_to:
        return Permutation(size, seed, epoch)
    generator = torch.Generator().manual_seed(seed + epoch)
    order: Numbers = torch.randperm(size, generator=generator).numpy()
    return order


class ShardSampler(DistributedSampler[ShardIndices]):
    """Torch's DistributedSampler by global batches: never pads, and drops only what it is told to.

    The order is torch's: `randperm` from seed + epoch, a list in memory. Where more than
    `torch_order_up_to` samples would make it long it is a Permutation, so that an epoch starts
    anywhere at once and with next to no memory. Step k takes samples [k·B, (k+1)·B) of the order,
    and rank r of W takes every W-th of those, from the r-th. So the set of samples of a step is
    the same for every world size; shards differ by at most one sample; and where B and the
    dataset divide evenly, each rank gets just the indices that DistributedSampler gives it.

    `order` gives another order, and may repeat samples or leave them out; `partners` a second
    sample to each.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch_size: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        torch_order_up_to: int = 2_000_000,
        order: Order | None = None,
        partners: Partners | None = None,
        drop_last: bool = False,
    ) -> None:
        # The base class needs nothing of a dataset but its length.
        super().__init__(range(size), world_size, rank, shuffle, seed)  # type: ignore[arg-type]
        self.given, self.partners = order, partners
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size or batch_size
        self.torch_order_up_to = torch_order_up_to
        self.first_step = 0
        self.drop_last = drop_last  # the ragged last batch of each epoch is left out
        self._resize(len(order(0)) if order else size)

    def _resize(self, size: int) -> None:
        """Have epochs of so many samples from now on; raises RecipeError where no batch is left."""
        self.size = self.total_size = size  # the base class rounds it up to multiples of the world
        if not self.steps:
            raise RecipeError(
                f"`drop_last` leaves nothing to train on: {size} samples are less than one batch "
                f"of {self.batch_size}",
                hint="give a smaller batch_size, or leave drop_last out",
            )
        full = size // self.batch_size
        self.num_samples = full * len(range(self.rank, self.batch_size, self.num_replicas))
        self.num_samples += len(range(self.rank, self.rest(), self.num_replicas))

    @property
    def steps(self) -> int:
        """Steps in a whole epoch."""
        return self.size // self.batch_size + bool(self.rest())

    def rest(self, batch_size: int | None = None) -> int:
        """Return the samples of the ragged last batch, 0 where there is none."""
        return 0 if self.drop_last else self.size % (batch_size or self.batch_size)

    def order(self, epoch: int | None = None) -> dict[str, Any]:
        """Return what the order of an epoch, and its steps, depend on: no number of ranks.

        Of an `epoch` that has begun also what the recipe makes of it.
        """
        told = {
            "samples": self.size,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "shuffled by torch": self.size <= self.torch_order_up_to,
        }
        if self.given and epoch is not None:
            names = self.given(epoch)
            some = np.linspace(0, len(names) - 1, min(len(names), _CHECKED)).astype(np.int64)
            told["the checksum of its order"] = crc32(names[some].tobytes())
        return told

    def smallest_part(self, batch_size: int | None = None) -> int:
        """Return the fewest samples that a forward pass of any rank gets, ghosts included.

        Of batches of another size, where that is given.
        """
        batch = batch_size or self.batch_size
        most = batch if self.micro_batch_size == self.batch_size else self.micro_batch_size
        batches = {min(batch, self.size), self.rest(batch) or batch}
        worlds = self.num_replicas
        shards = {max(1, n) for size in batches for n in (size // worlds, -(-size // worlds))}
        return min(shard if shard <= most else shard % most or most for shard in shards)

    def alike(self) -> bool:
        """Whether all ranks have samples in every step, and as many micro-batches."""
        least = min(self.batch_size, self.rest() or self.batch_size)
        whole = self.micro_batch_size * self.num_replicas >= self.batch_size
        return whole and least >= self.num_replicas

    def seek(self, epoch: int, step: int = 0) -> None:
        """Go to a step of an epoch; the next iteration starts there."""
        self.set_epoch(epoch)
        self.first_step = step
        if self.given:
            self._resize(len(self.given(epoch)))

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[ShardIndices]:
        order = self._order()
        ahead = max(1, _AHEAD * self.num_replicas // self.batch_size)  # steps
        for first in range(self.first_step, self.steps, ahead):
            steps = range(first, min(first + ahead, self.steps))
            places = [self.places(step) for step in steps]
            indices = order(np.concatenate(places))
            cuts = accumulate(map(len, places), initial=0)
            for step, (start, stop) in zip(steps, pairwise(cuts), strict=True):
                yield self._shard(step, indices[start:stop])

    def _order(self) -> Callable[[Numbers], Numbers]:
        """Return what tells which samples stand at which places of this epoch's order."""
        if self.given:
            return self.given(self.epoch).__getitem__
        if not self.shuffle:
            return lambda places: places
        return shuffled(self.size, self.seed, self.epoch, self.torch_order_up_to).__getitem__

    def places(self, step: int) -> Numbers:
        """Return where in the order this rank's samples of a step stand; a ghost's is the first.

        Behind them those of their partners.
        """
        start, stop = self._bounds(step)
        own = range(start + self.rank, stop, self.num_replicas) or range(start, start + 1)
        places = np.arange(own.start, own.stop, own.step)
        if self.partners is None:
            return places
        others = self.partners(self.epoch, step, stop - start)
        return np.concatenate([places, start + others[places - start]])

    def _bounds(self, step: int) -> tuple[int, int]:
        return step * self.batch_size, min((step + 1) * self.batch_size, self.size)

    def _shard(self, step: int, indices: Numbers) -> ShardIndices:
        start, stop = self._bounds(step)
        partners = None
        if self.partners is not None:
            indices, others = np.split(indices, 2)
            partners = self._cut(others)
        own = len(indices) if start + self.rank < stop else 0
        return ShardIndices(self.epoch, stop - start, own, self._cut(indices), step, partners)

    def _cut(self, indices: Numbers) -> list[Numbers]:
        cuts = range(0, len(indices), self.micro_batch_size)
        return [indices[cut : cut + self.micro_batch_size] for cut in cuts]
