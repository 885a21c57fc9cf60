"""Batch norm and shards of one sample: told in the first forward pass, with the way out."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from launcher.data.sampler import ShardSampler
from launcher.errors import RecipeError
from launcher.ranks.batch_norm import refuse_lone_samples

small = st.integers(1, 12)


@settings(deadline=None)  # a busy machine
@given(st.integers(1, 60), small, small, st.none() | small)
def test_the_smallest_part_is_that_of_all_that_a_sampler_gives(
    size: int, batch: int, world: int, micro: int | None
) -> None:
    samplers = [
        ShardSampler(size, batch, rank=rank, world_size=world, micro_batch_size=micro)
        for rank in range(world)
    ]
    parts = [len(m) for one in samplers for shard in one for m in shard.micro_batches]
    assert samplers[0].smallest_part() == min(parts)


def first_pass(
    layer: nn.Module, x: Tensor, sizes: tuple[int, int, int], *, test: Any = None, **values: Any
) -> None:
    """Run what a rank of a world runs first: (samples, batch size, processes)."""
    size, batch, world = sizes
    sampler = ShardSampler(size, batch, world_size=world, **values)
    model = nn.Sequential(nn.Identity(), layer)
    refuse_lone_samples(model, sampler, test or ShardSampler(8, 8, shuffle=False))
    model(x)
    model(x)


FLAT, ROW, PIXELS = torch.randn(4, 3), torch.randn(4, 3, 5), torch.randn(4, 3, 2, 2)
POINT, VOXEL = torch.randn(4, 3, 1, 1), torch.randn(4, 3, 1, 1, 1)


@pytest.mark.parametrize(
    ("sizes", "values"),
    [
        ((9, 4, 1), {}),  # the last batch has one sample
        ((10, 4, 2), {}),  # one for each process
        ((12, 4, 3), {}),  # one process has one in each step
        ((8, 2, 3), {}),  # a ghost
        ((8, 4, 1), {"micro_batch_size": 3}),  # one is left over
    ],
)
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.BatchNorm1d(3), FLAT),
        (nn.BatchNorm2d(3), POINT),
        (nn.BatchNorm3d(3), VOXEL),
        (nn.LazyBatchNorm1d(), FLAT),
        (nn.BatchNorm1d(3, track_running_stats=False), FLAT),
    ],
    ids=lambda part: type(part).__name__ if isinstance(part, nn.Module) else "",
)
def test_a_sample_alone_is_told_before_the_first_step(
    layer: nn.Module, x: Tensor, sizes: tuple[int, int, int], values: Any
) -> None:
    with pytest.raises(RecipeError, match="`1` is batch norm, and a process would get") as caught:
        first_pass(layer.train(), x, sizes, **values)
    words = str(caught.value.hint).split(",")[0]
    assert words.startswith("give batch_size=")
    found = int(words.removeprefix("give batch_size="))
    first_pass(nn.BatchNorm1d(3), FLAT, (sizes[0], found, sizes[2]), **values)  # it helps


@pytest.mark.parametrize(
    ("layer", "x", "sizes"),
    [
        (nn.BatchNorm1d(3), ROW, (9, 4, 1)),  # more values than samples
        (nn.BatchNorm2d(3), PIXELS, (9, 4, 1)),
        (nn.BatchNorm1d(3).eval(), FLAT, (9, 4, 1)),  # frozen
        (nn.GroupNorm(3, 3), FLAT, (9, 4, 1)),
        (nn.BatchNorm1d(3), FLAT, (8, 4, 2)),
    ],
)
def test_what_works_is_left_alone(layer: nn.Module, x: Tensor, sizes: Any) -> None:
    first_pass(layer, x, sizes)


def test_statistics_that_are_never_kept_need_two_samples_in_tests_too() -> None:
    one = ShardSampler(9, 4, shuffle=False)
    unkept = nn.BatchNorm1d(3, track_running_stats=False)
    with pytest.raises(RecipeError, match="9 samples in batches of 4, the last one of 1") as caught:
        first_pass(unkept, FLAT, (8, 4, 1), test=one)
    assert "test_batch_size=" in str(caught.value.hint)
    first_pass(nn.BatchNorm1d(3), FLAT, (8, 4, 1), test=one)


@pytest.mark.parametrize(
    ("sizes", "values"), [((9, 4, 2), {}), ((8, 2, 3), {}), ((8, 4, 2), {"micro_batch_size": 1})]
)
def test_shared_statistics_need_samples_in_every_process(
    sizes: tuple[int, int, int], values: Any
) -> None:
    with pytest.raises(RecipeError, match="shares its statistics"):
        first_pass(nn.SyncBatchNorm(3), FLAT, sizes, **values)


def test_shared_statistics_are_left_alone_where_all_have_samples() -> None:
    sampler = ShardSampler(11, 4, world_size=3, shuffle=False)
    refuse_lone_samples(nn.SyncBatchNorm(3), sampler, sampler)
