"""The passes of a step, of which all ranks have as many: ghosts where there are no more samples."""

from typing import Any

import numpy as np
from torch.utils import _pytree as pytree

from launcher.data.fetching import Shard
from launcher.data.sampler import ShardSampler

Pass = tuple[Any, bool]  # a micro-batch, and whether it counts


def passes_of(shard: Shard, sampler: ShardSampler, *, alike: bool) -> list[Pass]:
    """Return the micro-batches of a shard, and whether they count.

    Where ranks have to be `alike`, the last one comes again, to be weighted 0, until there are as
    many as on any rank.
    """
    passes = [(batch, shard.own > 0) for batch in shard.micro_batches]
    if alike:
        most = -(-_most_samples(shard, sampler.num_replicas) // sampler.micro_batch_size)
        last = shard.micro_batches[-1]
        # In other containers: a step may take its own apart.
        passes += [(pytree.tree_map(_same, last), False) for _ in range(most - len(passes))]
    return passes


def _same(leaf: Any) -> Any:
    return leaf


def _most_samples(shard: Shard, ranks: int) -> int:
    """Return the most samples that any rank has of the global batch."""
    if shard.owners is None:  # each in turn
        return -(-shard.size // ranks)
    return int(np.bincount(shard.owners, minlength=ranks).max())
