"""Whatever a dataset draws from, its samples are those of generators seeded for each of them."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from launcher.data.draws import SampleDraws, _seed_torch
from launcher.data.randomness import mix


def seeded(get: Callable[[int], Any], indices: list[int], epoch: int) -> list[Any]:
    """What is promised, the slow way."""
    made = []
    for index in indices:
        key = mix(2, 5, epoch, index)
        random.seed(key)
        np.random.seed(key & 0xFFFFFFFF)
        torch.manual_seed(key)
        made.append(get(index))
    return made


def python(index: int) -> float:
    return random.gauss(0, 1)


def numpy(index: int) -> float:
    return float(np.random.rand())


def torchs(index: int) -> list[float]:
    return torch.randn(2).tolist()


def two(index: int) -> tuple[Any, ...]:
    return torch.rand(1).item(), random.random()


def seldom(index: int) -> tuple[int, float]:
    return index, np.random.rand() + random.random() if index % 17 == 16 else 0.0


def one_after_the_other(index: int) -> float:
    return (python, numpy, torchs)[index * 3 // 100](index)  # type: ignore[return-value]


def puts_back(index: int) -> float:
    state = random.getstate()
    drawn = random.random()
    random.setstate(state)
    return drawn


def forks(index: int) -> float:
    with torch.random.fork_rng():
        return torch.rand(()).item()


def reads_its_seed(index: int) -> int:
    return torch.initial_seed()


def may_fail(index: int) -> int:
    if index > 20 and np.random.rand() > 0.9:
        raise KeyError(index)
    return index


KINDS = [python, numpy, torchs, two, seldom, one_after_the_other, puts_back, forks, reads_its_seed]


@pytest.mark.slow
@pytest.mark.parametrize("get", KINDS)
def test_each_sample_draws_what_belongs_to_it(get: Callable[[int], Any]) -> None:
    order = np.random.RandomState(0).permutation(100)
    order[:20] = np.sort(order[:20])
    for size in (100, 7, 1):
        draws = SampleDraws(5)
        for epoch in (0, 3):
            for start in range(0, 100, size):
                indices = order[start : start + size]
                random.random(), np.random.rand(), torch.rand(1)  # the model, in between
                assert draws.load(epoch, indices, get) == seeded(get, indices.tolist(), epoch)


def test_an_error_that_comes_of_a_draw_is_that_of_the_sample() -> None:
    draws, failing = SampleDraws(5), []
    for index in range(100):
        try:
            seeded(may_fail, [index], 0)
        except KeyError:
            failing.append(index)
    assert failing
    for index in range(100):
        if index in failing:
            with pytest.raises(KeyError, match=str(index)):
                draws.load(0, np.array([index]), may_fail)
        else:
            assert draws.load(0, np.array([index]), may_fail) == [index]


def test_only_what_is_drawn_from_is_seeded_and_a_quiet_dataset_is_asked_once() -> None:
    asked: list[int] = []

    def quiet(index: int) -> Any:
        asked.append(index)
        return {"image": torch.full((2,), index), "array": np.arange(index), "name": "a"}

    draws = SampleDraws(5)
    for start in range(0, 100, 10):
        draws.load(0, np.arange(start, start + 10), quiet)
    assert sorted(asked) == sorted([*range(100), *range(8), *range(8)])  # the first ones are tried
    assert draws._seeded == []
    draws.load(0, np.arange(10), torchs)
    assert [generator.seed for generator in draws._seeded] == [_seed_torch]
