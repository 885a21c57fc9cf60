"""Orders that are computed: every sample as often as it should come, anywhere, for any size."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from launcher import Mixture, Recipe
from launcher.data.computed import Blocks, Mixed
from launcher.data.orders import sampler_for
from launcher.data.randomness import indices_of
from launcher.errors import LauncherError


class Numbers(Dataset[int]):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


@dataclass(frozen=True)
class Base(Recipe):
    batch_size: int = 7


@pytest.mark.slow
@settings(deadline=None)  # a busy machine
@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 5), st.integers(0, 2**40))
def test_blocks_have_every_sample_once(size: int, block: int, epoch: int, seed: int) -> None:
    order = Blocks(size, block, seed, epoch, least=1)
    whole = order[np.arange(size)]
    assert sorted(whole.tolist()) == list(range(size))
    assert order[np.arange(size)[::3]].tolist() == whole[::3].tolist()


def test_neighbours_are_read_at_about_the_same_time() -> None:
    size, block = 10_007, 10
    whole = Blocks(size, block, 0, 0, least=1)[np.arange(size)]
    for start in range(0, size, 160):
        assert len(np.unique(whole[start : start + 160] // block)) <= 33  # two windows
    assert abs(np.corrcoef(np.arange(size), whole)[0, 1]) < 0.1
    assert abs(np.corrcoef(whole[:-1], whole[1:])[0, 1]) < 0.2
    assert (whole != Blocks(size, block, 0, 1)[np.arange(size)]).mean() > 0.99
    wide = Blocks(size, block, 0, 0)[np.arange(size)]
    assert 50 < len(np.unique(wide[:160] // block)) <= 160  # of 4,096 samples


@pytest.mark.slow
@settings(deadline=None)  # a busy machine
@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 5)), min_size=1, max_size=4),
    st.integers(1, 90),
)
def test_a_mixture_has_its_shares_and_comes_round_before_it_repeats(
    parts: list[tuple[int, float]], samples: int
) -> None:
    sizes, weights = zip(*parts, strict=True)
    mixture = Mixture([Numbers(size) for size in sizes], weights, samples)
    exact = np.array(weights) / sum(weights) * samples
    assert mixture.parts.sum() == samples
    assert (abs(mixture.parts - exact) < 1).all()
    seen: Counter[int] = Counter()
    for epoch in range(4):
        names = Mixed(mixture, 3, epoch)[np.arange(samples)]
        assert len(set(names.tolist())) == samples
        assert names[::2].tolist() == Mixed(mixture, 3, epoch)[np.arange(0, samples, 2)].tolist()
        indices = indices_of(names)
        which = np.searchsorted(np.cumsum(sizes), indices, side="right")
        assert np.bincount(which, minlength=len(sizes)).tolist() == mixture.parts.tolist()
        seen.update(indices.tolist())
    start = 0
    for size in sizes:
        times = [seen[index] for index in range(start, start + size)]
        assert max(times) - min(times) <= 1
        start += size


def steps(data: Any, recipe: Recipe, world: int, epoch: int, start: int = 0) -> list[list[int]]:
    samplers = [sampler_for(data, recipe, rank, world, test=False) for rank in range(world)]
    for sampler in samplers:
        sampler.seek(epoch, start)
    return [
        sorted(int(i) for s in shards if s.own for micro in s.micro_batches for i in micro)
        for shards in zip(*samplers, strict=True)
    ]


@pytest.mark.parametrize(
    ("data", "recipe"),
    [
        (Mixture([Numbers(20), Numbers(5)], [1, 1], 31), Base()),
        (Numbers(101), Base(shuffle_block=4)),
    ],
    ids=["mixture", "blocks"],
)
def test_steps_are_the_same_for_any_number_of_processes(data: Any, recipe: Recipe) -> None:
    one = steps(data, recipe, 1, 3)
    assert sum(map(len, one)) == (31 if isinstance(data, Mixture) else 101)
    for world in (2, 3, 9):
        assert steps(data, recipe, world, 3) == one
    assert steps(data, recipe, 2, 3, start=2) == one[2:]
    assert steps(data, recipe, 1, 4) != one


def test_a_test_takes_each_sample_of_a_mixture_once() -> None:
    sampler = sampler_for(Mixture([Numbers(20), Numbers(5)], [1, 9]), Base(), 0, 1, test=True)
    assert sampler.size == 25
    assert [int(i) for s in sampler for i in s.micro_batches[0]] == list(range(25))


class Ordered(Base):
    def order(self, epoch: int, generator: Any) -> list[int]:
        return [0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mixture([Numbers(2)], [1, 2]), "1 datasets got the weights [1, 2]"),
        (lambda: Mixture([Numbers(2), Numbers(1)], [1, 0]), "a positive number for each"),
        (lambda: Mixture([Numbers(2), Numbers(0)], [1, 1]), "empty dataset"),
        (
            lambda: sampler_for(Numbers(9), Ordered(shuffle_block=2), 0, 1, test=False),
            "both `order` and `shuffle_block`",
        ),
        (
            lambda: sampler_for(Mixture([Numbers(9)], [1]), Ordered(), 0, 1, test=False),
            "both `order` and a Mixture",
        ),
        (lambda: Base(shuffle_block=0), "`shuffle_block` must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, words: str) -> None:
    with pytest.raises(LauncherError) as caught:
        make()
    assert words in f"{caught.value} {caught.value.hint}"
