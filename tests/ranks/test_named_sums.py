"""Sums that a recipe names: added up in float64, of the shapes of the first batch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from launcher.errors import LauncherError, RecipeError, TrainingFailed
from launcher.ranks.context import Context
from launcher.ranks.named_sums import NamedSums

CPU = torch.device("cpu")


def summed(*batches: dict[str, Any]) -> dict[str, Tensor]:
    sums = NamedSums(CPU)
    for batch in batches:
        sums.add(batch)
    return sums.reduced(Context(cpu=True))


def test_any_shape_is_summed_as_float64() -> None:
    matrix, part = torch.tensor([[1, 2], [3, 4]]), torch.tensor([0.5, 0.25], dtype=torch.bfloat16)
    found = summed(
        {"matrix": matrix, "flag": torch.tensor(True), "part": part},
        {"part": part, "flag": torch.tensor(True), "matrix": matrix},
    )
    assert found["matrix"].tolist() == [[2, 4], [6, 8]]
    assert int(found["flag"]) == 2
    assert found["part"].tolist() == [1, 0.5]
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert summed({"n": torch.tensor(2**24)}, *[{"n": torch.tensor(1.0)}] * 3)["n"] == 2**24 + 3


def test_no_graph_is_kept_and_looking_changes_nothing() -> None:
    sums, context = NamedSums(CPU), Context(cpu=True)
    sums.add({"w": torch.ones(2, requires_grad=True) * 3})
    for _ in range(2):
        found = sums.reduced(context)
        assert found["w"].tolist() == [3, 3]
        assert not found["w"].requires_grad
    sums.reset()
    assert sums.reduced(context)["w"].tolist() == [0, 0]


def test_a_recipe_without_sums_has_none() -> None:
    sums = NamedSums(CPU)
    sums.add({})
    sums.add({})
    assert not sums.there
    assert sums.reduced(Context(cpu=True)) == {}


def test_restored_sums_go_on_on_one_rank_and_all_know_the_names() -> None:
    whole = {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    for mine, expected in ((True, [2.0, 3.0]), (False, [1.0, 1.0])):
        sums = NamedSums(CPU)
        sums.restore(whole, mine=mine)
        assert sums.there
        sums.add({"a": torch.ones(2)})
        assert sums.reduced(Context(cpu=True))["a"].tolist() == expected


ONE, TWO = torch.ones(()), torch.ones(2)


@pytest.mark.parametrize(
    ("batches", "kind", "words"),
    [
        ([{"a": ONE}, {"b": ONE}], TrainingFailed, r"were `a` \(\) and are `b` \(\)"),
        ([{"a": ONE}, {"a": TWO}], TrainingFailed, r"were `a` \(\) and are `a` \(2,\)"),
        ([{"a": ONE}, {}], TrainingFailed, r"were `a` \(\) and are none"),
        ([{}, {"a": ONE}], TrainingFailed, r"were none and are `a` \(\)"),
        ([{"a": 3}], RecipeError, "the sum `a` is int"),
        ([{"a": ONE.to(torch.complex64)}], RecipeError, "the sum `a` is torch.complex64"),
        ([{3: ONE}], RecipeError, "`3` is no text"),
    ],
)
def test_other_sums_than_in_the_first_batch_are_an_error_in_words(
    batches: list[Any], kind: type[LauncherError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        summed(*batches)
