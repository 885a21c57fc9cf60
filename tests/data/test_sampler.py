"""The sampler: every sample once, torch's order, for every size, batch, world and micro-batch."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from launcher.data.randomness import Permutation
from launcher.data.sampler import ShardIndices, ShardSampler
from launcher.errors import RecipeError

SIZES = st.integers(1, 200)
BATCHES = st.integers(1, 40)
WORLDS = st.integers(1, 9)
MICRO = st.none() | st.integers(1, 12)


def shards(size: int, batch: int, world: int, micro: int | None = None) -> list[list[ShardIndices]]:
    """Every rank's shards, by rank and step."""
    return [
        list(ShardSampler(size, batch, rank=r, world_size=world, micro_batch_size=micro, seed=3))
        for r in range(world)
    ]


def plain(shard: ShardIndices) -> tuple[Any, ...]:
    """What can be compared: arrays cannot."""
    return (*shard[:3], [micro.tolist() for micro in shard.micro_batches])


def own(shard: ShardIndices) -> list[int]:
    return [int(i) for micro in shard.micro_batches for i in micro] if shard.own else []


@given(SIZES, BATCHES, WORLDS, MICRO)
def test_every_sample_is_seen_exactly_once(
    size: int, batch: int, world: int, micro: int | None
) -> None:
    seen = [i for rank in shards(size, batch, world, micro) for shard in rank for i in own(shard)]
    assert sorted(seen) == list(range(size))


@given(SIZES, BATCHES, WORLDS, MICRO)
def test_a_step_has_the_samples_it_has_in_one_process(
    size: int, batch: int, world: int, micro: int | None
) -> None:
    alone = shards(size, batch, 1)[0]
    together = list(zip(*shards(size, batch, world, micro), strict=True))
    assert len(together) == len(alone)
    for step, expected in zip(together, alone, strict=True):
        assert sorted(i for shard in step for i in own(shard)) == sorted(own(expected))
        assert {shard.size for shard in step} == {expected.own}


@given(SIZES, BATCHES, WORLDS, MICRO)
def test_shards_differ_by_at_most_one_and_micro_batches_are_bounded(
    size: int, batch: int, world: int, micro: int | None
) -> None:
    for step in zip(*shards(size, batch, world, micro), strict=True):
        owned = [shard.own for shard in step]
        assert max(owned) - min(owned) <= 1
        assert owned[0] >= 1  # rank 0, whose buffers everybody gets, always has samples
        for shard in step:
            assert all(1 <= len(m) <= (micro or batch) for m in shard.micro_batches)
            assert sum(map(len, shard.micro_batches)) == max(shard.own, 1)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("size", "batch", "world"), [(96, 12, 3), (64, 8, 4), (60, 6, 1), (10, 10, 2)]
)
def test_where_it_divides_evenly_each_rank_gets_torch_s_indices(
    size: int, batch: int, world: int, shuffle: bool
) -> None:
    for rank in range(world):
        mine = ShardSampler(size, batch, rank=rank, world_size=world, seed=7, shuffle=shuffle)
        theirs: DistributedSampler[int] = DistributedSampler(
            range(size),  # type: ignore[arg-type]  # it needs a length only
            num_replicas=world,
            rank=rank,
            seed=7,
            shuffle=shuffle,
        )
        for epoch in range(3):
            mine.seek(epoch)
            theirs.set_epoch(epoch)
            assert [i for shard in mine for i in own(shard)] == list(theirs)


@given(SIZES, BATCHES, WORLDS, st.data())
def test_seeking_gives_the_rest_of_the_epoch(
    size: int, batch: int, world: int, data: st.DataObject
) -> None:
    sampler = ShardSampler(size, batch, rank=world - 1, world_size=world)
    sampler.seek(5)
    whole = [plain(shard) for shard in sampler]
    start = data.draw(st.integers(0, sampler.steps))
    sampler.seek(5, start)
    assert [plain(shard) for shard in sampler] == whole[start:]
    assert len(sampler) == len(whole) - start


@given(SIZES, BATCHES, WORLDS)
def test_num_samples_is_what_the_rank_gets(size: int, batch: int, world: int) -> None:
    for rank in range(world):
        sampler = ShardSampler(size, batch, rank=rank, world_size=world)
        assert sampler.num_samples == sum(shard.own for shard in sampler)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(epoch: int, seed: int) -> list[int]:
        sampler = ShardSampler(100, 10, seed=seed)
        sampler.seek(epoch)
        return [i for shard in sampler for i in own(shard)]

    assert order(0, 0) != order(1, 0)
    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)


def test_a_batch_smaller_than_the_world_gives_ghosts() -> None:
    last = [rank[-1] for rank in shards(11, 5, 4)]
    assert [shard.own for shard in last] == [1, 0, 0, 0]
    assert all(plain(shard)[3] == plain(last[0])[3] for shard in last)


def test_it_is_a_distributed_sampler() -> None:
    assert isinstance(ShardSampler(10, 5), DistributedSampler)
    assert torch.utils.data.DataLoader(range(10), sampler=ShardSampler(10, 5))  # type: ignore[arg-type]


@given(SIZES, BATCHES, st.sampled_from([1, 2, 3]), st.integers(0, 2**40), st.integers(0, 1000))
def test_a_computed_order_has_every_sample_exactly_once(
    size: int, batch: int, world: int, seed: int, epoch: int
) -> None:
    seen: list[int] = []
    for rank in range(world):
        sampler = ShardSampler(
            size, batch, rank=rank, world_size=world, seed=seed, torch_order_up_to=0
        )
        sampler.seek(epoch)
        seen += [i for shard in sampler for i in own(shard)]
    assert sorted(seen) == list(range(size))


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 2**16, 2**16 + 1, 100_003])
def test_a_computed_order_is_a_permutation_of_any_size(size: int) -> None:
    order = Permutation(size, seed=1, epoch=2)(np.arange(size))
    assert np.array_equal(np.sort(order), np.arange(size))


def test_a_computed_order_differs_by_epoch_and_by_seed() -> None:
    places = np.arange(100_003)
    first = Permutation(len(places), 0, 0)(places)
    assert np.array_equal(first, Permutation(len(places), 0, 0)(places))
    for seed, epoch in ((0, 1), (1, 0)):
        other = Permutation(len(places), seed, epoch)(places)
        assert (first == other).sum() < 12  # one in a set of any size, were they independent


@pytest.mark.parametrize("size", [50_000, 65_536, 100_003])
def test_a_computed_order_is_shuffled(size: int) -> None:
    """Figures of a random permutation, within five standard deviations of what they should be."""
    places = np.arange(size)
    for epoch in range(10):
        order = Permutation(size, 7, epoch)(places)
        for lag in (1, 2, 64, 1024):  # serial correlation
            correlation = np.corrcoef(order[:-lag], order[lag:])[0, 1]
            assert abs(correlation) < 5 / np.sqrt(size)
        assert abs(np.corrcoef(places, order)[0, 1]) < 5 / np.sqrt(size)
        counts = np.histogram2d(places, order, bins=20)[0]  # where samples go, by where they stood
        expected = np.outer(counts.sum(1), counts.sum(0)) / size
        chi_square = ((counts - expected) ** 2 / expected).sum()
        freedom = 19 * 19
        assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_an_epoch_of_a_thousand_million_samples_starts_anywhere_at_once() -> None:
    size, batch = 10**9, 64
    for step in (0, size // batch // 2, size // batch - 1):
        sampler = ShardSampler(size, batch, rank=2, world_size=3)
        sampler.seek(1, step)
        tracemalloc.start()
        first = next(iter(sampler))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 50e6
        order = Permutation(size, 0, 1)(np.arange(step * batch, (step + 1) * batch))
        assert own(first) == order[2::3].tolist()


def test_a_set_that_is_not_shuffled_is_not_listed_either() -> None:
    sampler = ShardSampler(10**9, 10, shuffle=False)
    sampler.seek(0, 10**8 - 1)
    [found] = next(iter(sampler)).micro_batches
    assert found.tolist() == list(range(10**9 - 10, 10**9))


@given(SIZES, BATCHES, st.sampled_from([1, 2, 3]))
def test_the_last_batch_that_is_not_full_is_left_out_where_asked_for(
    size: int, batch: int, world: int
) -> None:
    if size < batch:
        with pytest.raises(RecipeError, match="`drop_last` leaves nothing to train on"):
            ShardSampler(size, batch, drop_last=True)
        return
    samplers = [
        ShardSampler(size, batch, rank=rank, world_size=world, drop_last=True)
        for rank in range(world)
    ]
    shards = [list(sampler) for sampler in samplers]
    assert {len(ranks) for ranks in shards} == {samplers[0].steps} == {size // batch}
    assert all(shard.size == batch for ranks in shards for shard in ranks)
    for sampler, ranks in zip(samplers, shards, strict=True):
        assert sampler.num_samples == sum(shard.own for shard in ranks)
    assert sum(sampler.num_samples for sampler in samplers) == size // batch * batch
