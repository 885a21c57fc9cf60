"""Which modules are gathered one at a time, and what cannot be sharded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from launcher import Recipe
from launcher.errors import RecipeError
from launcher.sharding.groups import members, refuse_unshardable


class Bare(nn.Module):
    """A container without a forward of its own."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)


class Model(nn.Module):
    """Lists in lists, a container, a sequence, and what shares a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(5, 3)
        inner = nn.ModuleList([nn.Linear(3, 3), nn.ModuleList([nn.Linear(3, 3)])])
        self.blocks = nn.ModuleList([nn.Linear(3, 3), inner, Bare(nn.Linear(3, 3)), nn.ReLU()])
        self.later = nn.Sequential(nn.Linear(3, 3), nn.ModuleList([nn.Linear(3, 3)]))
        self.tied = nn.ModuleList([nn.Linear(3, 5, bias=False), nn.Linear(3, 5)])
        self.tied[0].weight = self.token.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@dataclass(frozen=True)
class Given(Recipe):
    """Names its shards."""

    def shards(self, model: Any) -> Any:
        return SHARDS[self.seed](model)


SHARDS: list[Callable[[Any], Any]] = [
    lambda model: [model.blocks[0], model.later, model.later[0]],
    lambda model: [model],
    lambda model: [model.blocks],
    lambda _: [nn.Linear(2, 2)],
    lambda model: [model.token.weight],
]


def test_members_of_outermost_lists_are_gathered_one_at_a_time_but_not_what_is_tied() -> None:
    names = ["blocks.0", "blocks.1.0", "blocks.1.1.0", "blocks.2.parts.0", "later.1.0", "tied.1"]
    assert [*members(Recipe(), Model())] == names


def test_a_recipe_names_others_inside_of_which_there_may_be_some() -> None:
    assert [*members(Given(seed=0), Model())] == ["blocks.0", "later", "later.0"]
    assert not members(Given(seed=1), Model())  # the model itself always is one


@pytest.mark.parametrize("number", [2, 3, 4])
def test_what_is_no_module_that_is_called_is_refused(number: int) -> None:
    with pytest.raises(RecipeError, match="`shards` returned"):
        members(Given(seed=number), Model())


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].eval()
    return model


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())


UNSHARDABLE: list[tuple[dict[str, Any], Callable[[], nn.Module], str]] = [
    ({}, lambda: nn.Sequential(nn.BatchNorm2d(3)), "BatchNorm2d"),
    ({}, lambda: nn.Sequential(nn.SyncBatchNorm(3)), "SyncBatchNorm"),
    ({}, lambda: nn.InstanceNorm1d(3, track_running_stats=True), "InstanceNorm1d"),
    ({}, lambda: nn.Embedding(3, 2, sparse=True), "sparse"),
    ({}, lambda: nn.Linear(2, 2, dtype=torch.complex64), "complex"),
    ({}, mixed, "float64"),
    ({"compile": True}, lambda: nn.Linear(2, 2), "`compile` and `shard`"),
    ({"channels_last": True}, lambda: nn.Linear(2, 2), "`channels_last` and `shard`"),
    ({"cuda_graphs": True}, lambda: nn.Linear(2, 2), "`cuda_graphs` and `shard`"),
    ({"find_unused_parameters": True}, lambda: nn.Linear(2, 2), "find_unused_parameters"),
]


@pytest.mark.parametrize(("given", "make", "words"), UNSHARDABLE, ids=[c[2] for c in UNSHARDABLE])
def test_what_cannot_be_sharded_is_refused_in_words(
    given: dict[str, Any], make: Callable[[], nn.Module], words: str
) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        refuse_unshardable(Recipe(**given), make())
    assert caught.value.hint


@pytest.mark.parametrize("make", [frozen, lambda: nn.InstanceNorm1d(3), lambda: nn.LayerNorm(3)])
def test_norms_that_keep_no_statistics_or_frozen_ones_are_none_of_it(
    make: Callable[[], nn.Module],
) -> None:
    refuse_unshardable(Recipe(), make())
