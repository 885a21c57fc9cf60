"""Sums of losses and right answers: exact, step by step, whatever is put aside in between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from launcher.ranks.metrics import Sums
from launcher.recipe.base import StepSums
from launcher.recipe.totals import Totals

CPU = torch.device("cpu")


def totals(sums: Sums) -> Totals:
    return sums.totals(sums.vector().tolist())


@settings(deadline=None)  # a busy machine
@given(st.lists(st.lists(st.integers(0, 64), min_size=1, max_size=4), min_size=1, max_size=30))
def test_losses_are_summed_step_by_step_and_answers_over_all(steps: list[list[int]]) -> None:
    sums = Sums(len(steps), CPU)
    for step in steps:
        for right in step:
            sums.add(StepSums(torch.tensor(0.5), 64, torch.tensor(right), scale=64))
        sums.end_step(64 * len(step))
    found = totals(sums)
    assert found.losses == [32.0 * len(step) for step in steps]
    assert found.correct == sum(map(sum, steps))
    assert (found.count, found.samples) == (64 * sum(map(len, steps)),) * 2


def test_what_is_put_aside_for_long_is_added_up_too() -> None:
    sums = Sums(1, CPU)
    for _ in range(2500):
        sums.add(StepSums(torch.tensor(1.0), 1, torch.tensor(1)))
    sums.end_step(2500)
    assert totals(sums) == totals(sums)  # looking changes nothing
    assert totals(sums) == Totals([2500.0], 2500, 2500, 2500)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_answers_are_counted_exactly_in_any_type(dtype: torch.dtype) -> None:
    sums = Sums(1, CPU)
    sums.add(StepSums(torch.tensor(1.0), 1, torch.tensor(2**24, dtype=dtype)))
    for _ in range(3):
        sums.add(StepSums(torch.tensor(1.0), 1, torch.tensor(1, dtype=dtype)))
    assert totals(sums).correct == 2**24 + 3


def test_no_graph_is_kept() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    sums = Sums(1, CPU)
    sums.add(StepSums(weight * 1, 1, weight * 3))
    vector: Tensor = sums.vector()
    assert not vector.requires_grad
    assert totals(sums).correct == 6


def test_restored_sums_go_on() -> None:
    sums = Sums(2, CPU)
    sums.add(StepSums(torch.tensor(5.0), 5, torch.tensor(1)))  # forgotten
    sums.restore(Totals([1.0, 2.0], 10, 4, 10), rank=0, world_size=1)
    sums.add(StepSums(torch.tensor(3.0), 5, torch.tensor(2)))
    sums.end_step(5)
    assert totals(sums) == Totals([1.0, 2.0, 3.0], 15, 6, 15)
