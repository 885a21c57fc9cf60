"""The base of recipes: what it asks for, what it checks, what a step adds up to."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from launcher.errors import RecipeError
from launcher.recipe.base import Recipe, StepSums, missing_methods


@dataclass(frozen=True)
class Example(Recipe):
    """A recipe with one method."""

    def model(self) -> nn.Module:
        return nn.Linear(2, 3)


class Stepping(Example):
    """A recipe with a step of its own."""

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        return StepSums(model(batch).sum(), 1)


def test_methods_that_are_not_written_are_missing() -> None:
    assert missing_methods(Example) == ["train_data", "loss", "optimizer"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch_size", 0), ("learning_rate", -0.1), ("learning_rate", float("nan"))],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=f"`{name}` must be"):
        Example(**{name: value})


def test_a_step_gives_sums_not_means() -> None:
    recipe, loss_fn = Example(), nn.CrossEntropyLoss()
    torch.manual_seed(0)
    inputs, labels = torch.rand(5, 2), torch.tensor([0, 1, 2, 0, 1])
    model = recipe.model()
    sums = recipe.train_step(model, (inputs, labels), loss_fn)
    assert sums.count == 5
    expected = 5 * loss_fn(model(inputs), labels).item()
    assert sums.loss.item() * sums.scale == pytest.approx(expected)
    assert sums.correct is not None
    assert int(sums.correct) == int((model(inputs).argmax(1) == labels).sum())


def test_a_regression_has_no_accuracy() -> None:
    sums = Example().train_step(nn.Linear(2, 1), (torch.rand(5, 2), torch.rand(5, 1)), nn.MSELoss())
    assert sums.correct is None


def test_only_a_step_of_its_own_makes_ranks_ask_each_other_for_counts() -> None:
    assert Example().counts_samples()
    assert not Stepping().counts_samples()
