"""Rows of all ranks: where each stands. What training with them gives, test_exactness sees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import launcher
from launcher.data.device import CPU
from launcher.data.fetching import Shard
from launcher.errors import RecipeError
from launcher.ranks.context import Context
from launcher.ranks.gathering import HERE, _layout


@settings(deadline=None)  # a busy machine
@given(st.integers(1, 40), st.integers(1, 9), st.data())
def test_each_sample_s_row_stands_at_its_place(size: int, world: int, data: st.DataObject) -> None:
    drawn = data.draw(st.none() | st.lists(st.integers(0, world - 1), min_size=size, max_size=size))
    ranks = [place % world for place in range(size)] if drawn is None else drawn
    owners = None if drawn is None else tuple(drawn)
    layouts = [_layout(size, world, rank, owners, CPU) for rank in range(world)]
    sent: list[int] = []
    for rank, layout in enumerate(layouts):
        own = [place for place in range(size) if ranks[place] == rank]
        assert layout.mine.tolist() == (own or [0])
        assert len(own) <= layout.most
        sent += own + [-1] * (layout.most - len(own))
    for layout in layouts:
        assert [sent[place] for place in layout.places.tolist()] == list(range(size))


@pytest.fixture
def context() -> Context:
    HERE.context, HERE.micro_batch_size, HERE.shard = Context(cpu=True), None, Shard(3, 3, [])
    return HERE.context


def test_one_process_gathers_its_own(context: Context) -> None:
    z = torch.rand(3, 2, requires_grad=True)
    rows, mine = launcher.gather(z)
    (gradient,) = torch.autograd.grad(rows[mine].sum(), z)
    assert torch.equal(rows, z)
    assert mine.tolist() == [0, 1, 2]
    assert torch.equal(gradient, torch.ones(3, 2))


@pytest.mark.parametrize(
    ("micro", "shape", "words"),
    [
        (2, (2, 8), "`micro_batch_size=2` has 3 samples come in parts"),
        (None, (6, 8), r"got shape \(6, 8\) for a shard of 3 samples"),
        (None, (), r"got shape \(\)"),
    ],
)
def test_rows_that_are_not_the_shard_s_are_refused(
    context: Context, micro: int | None, shape: tuple[int, ...], words: str
) -> None:
    HERE.micro_batch_size = micro
    with pytest.raises(RecipeError, match=words) as caught:
        launcher.gather(torch.zeros(shape))
    assert caught.value.hint


def test_where_no_step_is_made_there_is_nothing_to_gather(context: Context) -> None:
    HERE.shard = None
    with pytest.raises(RecipeError, match="where no step is being made"):
        launcher.gather(torch.zeros(3))
