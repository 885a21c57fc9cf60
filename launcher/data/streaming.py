"""From a Stream's lanes to the batches of one rank: read here, or each lane by one data worker."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Sampler

from launcher.data.device import CPU
from launcher.data.draws import SampleDraws
from launcher.data.fetching import Failed, Fetcher, Shard
from launcher.data.randomness import Numbers
from launcher.data.sampler import Part, ShardIndices
from launcher.data.streams import Lanes, LaneSampler
from launcher.data.workers import loaded_by_workers
from launcher.recipe.base import Recipe

_AT_ONCE = 1000  # samples that are read and dropped together


class StreamFetcher(Fetcher):
    """Turns the names of a shard's samples into a shard; says how far its lanes are then."""

    def __init__(
        self,
        sampler: LaneSampler,
        recipe: Recipe,
        device: torch.device,
        *,
        test: bool,
        for_another: bool = False,
    ) -> None:
        """Where it reads `for_another` process, that one joins the samples."""
        self.lanes = Lanes(sampler.stream)
        super().__init__(self.lanes, sampler, recipe, device, test=test)
        self.draws = SampleDraws(recipe.seed, once=True)  # what is read cannot be read again
        self.world, self.for_another = sampler.num_replicas, for_another

    def get(self, indices: ShardIndices) -> Shard:
        """Return a shard; raises LauncherError where there is none."""
        self.lanes.begin(indices.epoch, indices.begin)
        if not indices.own:
            return self._shard(indices, partial(self._read, get=self.lanes.ghost))
        names = np.concatenate(indices.micro_batches)
        missing = self.lanes.missing(names)
        for first in range(0, len(missing), _AT_ONCE):
            dropped = Part(indices.epoch, indices.step, missing[first : first + _AT_ONCE], None)
            self.told(self._read, dropped)
        shard = self._shard(indices, self._read)
        return shard._replace(reached=self.lanes.positions(names))

    def joined(self, indices: ShardIndices, shares: Sequence[Shard | Failed]) -> Shard:
        """Return a shard of what several data workers have read of it."""
        samples: dict[int, Any] = {}
        reached: dict[int, Any] = {}
        for number, share in enumerate(shares):
            if isinstance(share, Failed):
                raise share.error
            for names, batch in zip(
                self.read_by(number, len(shares), indices), share.micro_batches, strict=True
            ):
                samples |= dict(zip(names.tolist(), unpacked(batch), strict=True))
            reached |= share.reached
        shard = self._shard(indices, lambda part: [samples[n] for n in part.names.tolist()])
        return shard._replace(reached=reached)

    def listed(self, names: Numbers) -> list[str]:
        """Return samples as people find them."""
        lanes = self.lanes.stream.lanes
        return [f"{name // lanes} of lane {name % lanes}" for name in names.tolist()]

    def read_by(self, number: int, count: int, indices: ShardIndices) -> list[Numbers]:
        """Return what of each micro-batch one of `count` data workers reads."""
        return [
            names[names % self.lanes.stream.lanes // self.world % count == number]
            for names in indices.micro_batches
        ]

    def _shard(self, indices: ShardIndices, read: Callable[[Part], list[Any]]) -> Shard:
        def make(part: Part) -> Any:
            samples = read(part)
            return packed(samples) if self.for_another else self.joiner.join(samples, part)

        return self.shard(indices, make)._replace(owners=indices.owners)

    def _read(self, part: Part, get: Callable[[int], Any] | None = None) -> list[Any]:
        return self.draws.load(part.epoch, part.names, get or self.lanes.__getitem__)


def streamed(
    home: StreamFetcher, sampler: LaneSampler, workers: int
) -> Callable[[], Iterator[Shard | Failed]]:
    """Return what gives the shards of an epoch, whose samples `home` joins.

    Of `workers` data workers each reads some of the rank's lanes.
    """
    if not workers:
        return lambda: map(home.get, sampler)
    sources = []
    for number in range(workers):
        reader = StreamFetcher(sampler, home.recipe, CPU, test=home.test, for_another=True)
        share = _Share(reader, sampler, number, workers)
        sources.append(loaded_by_workers(reader, share, 1, home.recipe, pinned=False))

    def epoch() -> Iterator[Shard | Failed]:
        shares = [source() for source in sources]
        for indices, *told in zip(sampler, *shares, strict=True):
            yield home.joined(indices, told)

    return epoch


class _Share(Sampler[ShardIndices]):
    """What one of `count` data workers reads of each shard."""

    def __init__(
        self, reader: StreamFetcher, sampler: LaneSampler, number: int, count: int
    ) -> None:
        self._cut = partial(reader.read_by, number, count)
        self._sampler, self.rank = sampler, sampler.rank

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[ShardIndices]:
        for indices in self._sampler:
            yield indices._replace(micro_batches=self._cut(indices))


class _Columns(NamedTuple):
    """Samples of one kind: what each consists of, and each such part of all of them."""

    form: pytree.TreeSpec
    columns: list[Any]  # a tensor (samples, …), or a list


def packed(samples: list[Any]) -> Any:
    """Return samples for another process: as few tensors as can be, for each is a file to open."""
    if not samples:
        return samples
    leaves, forms = zip(*map(pytree.tree_flatten, samples), strict=True)
    if any(form != forms[0] for form in forms):
        return samples
    return _Columns(forms[0], [_column(list(parts)) for parts in zip(*leaves, strict=True)])


def _column(parts: list[Any]) -> Any:
    kinds = {(p.shape, p.dtype, p.layout) if isinstance(p, Tensor) else type(p) for p in parts}
    stacks = len(kinds) == 1 and isinstance(parts[0], Tensor) and parts[0].layout == torch.strided
    return torch.stack(parts) if stacks else parts


def unpacked(batch: Any) -> list[Any]:
    """Return the samples that `packed` had."""
    if not isinstance(batch, _Columns):
        return list(batch)
    columns = [c.unbind() if isinstance(c, Tensor) else c for c in batch.columns]
    return [
        pytree.tree_unflatten(list(leaves), batch.form) for leaves in zip(*columns, strict=True)
    ]
