"""Which samples belong to which step and rank. Plain integers: no data, no processes."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DistributedSampler


class ShardIndices(NamedTuple):
    """The samples of one step that one rank handles, cut into micro-batches.

    A rank without a sample of its own (a batch smaller than the world) gets one sample of
    somebody else's as a ghost, `own` = 0: it takes part in the step's collectives with weight 0.
    """

    epoch: int
    size: int  # samples in the global batch
    own: int  # samples in this shard that count: all, or 0 for a ghost
    micro_batches: list[list[int]]


class ShardSampler(DistributedSampler[ShardIndices]):
    """Torch's DistributedSampler by global batches: never pads, never drops.

    The order is torch's: `randperm` from seed + epoch. Step k takes samples [k·B, (k+1)·B) of it,
    and rank r of W takes every W-th of those, from the r-th. So the set of samples of a step is
    the same for every world size; shards differ by at most one sample; and where B and the
    dataset divide evenly, each rank gets just the indices that DistributedSampler gives it.
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
    ) -> None:
        # The base class needs nothing of a dataset but its length.
        super().__init__(range(size), world_size, rank, shuffle, seed)  # type: ignore[arg-type]
        self.size = size
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size or batch_size
        self.first_step = 0
        self.total_size = size  # the base class rounds it up to a multiple of the world size
        full, rest = divmod(size, batch_size)
        self.num_samples = full * len(range(rank, batch_size, world_size))
        self.num_samples += len(range(rank, rest, world_size))

    @property
    def steps(self) -> int:
        """Steps in a whole epoch."""
        return -(-self.size // self.batch_size)

    def seek(self, epoch: int, step: int = 0) -> None:
        """Go to a step of an epoch; the next iteration starts there."""
        self.set_epoch(epoch)
        self.first_step = step

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[ShardIndices]:
        order = self._order()
        for step in range(self.first_step, self.steps):
            yield self._shard(order[step * self.batch_size : (step + 1) * self.batch_size])

    def _order(self) -> torch.Tensor:
        """Return the order of the samples in this epoch, shape (size,)."""
        if not self.shuffle:
            return torch.arange(self.size)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.size, generator=generator)

    def _shard(self, batch: torch.Tensor) -> ShardIndices:
        own = batch[self.rank :: self.num_replicas].tolist()
        indices = own or batch[:1].tolist()
        cuts = range(0, len(indices), self.micro_batch_size)
        micro_batches = [indices[cut : cut + self.micro_batch_size] for cut in cuts]
        return ShardIndices(self.epoch, len(batch), len(own), micro_batches)
