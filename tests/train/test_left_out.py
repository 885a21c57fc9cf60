"""A recipe may leave out its test data, and a loss that its step does not call."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from training import Run, launcher, many_runs

from launcher import ArrayDataset, StepSums
from launcher.errors import RecipeError
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.recipe.base import Recipe
from launcher.train.prepare import prepare

pytestmark = pytest.mark.warm


@pytest.mark.slow
def test_a_run_without_tests_is_the_same_for_any_number_of_processes(tmp_path: Path) -> None:
    for world in (1, 2, 3):
        (folder := tmp_path / str(world)).mkdir()
        many_runs(folder, world, [{"name": "r", "recipe": "untested"}])
        run = Run(folder / "r")
        assert run.farthest(Run(tmp_path / "1" / "r")) < 1e-12
        assert [row["split"] for row in run.rows] == ["train"] * 3
        assert (run.result["state"], run.result["epoch"]) == ("completed", 3)
        assert run.result["test_loss"] is None
        assert len(list((run.path / "checkpoints").glob("step-*"))) == 3
    done = launcher("test", run.path, "--nproc", 1, cwd=tmp_path)
    assert done.returncode == 2
    assert "the recipe has no `test_data`" in done.stderr


class Model(Recipe):
    def model(self) -> nn.Module:
        return nn.Linear(2, 1)

    def train_data(self) -> ArrayDataset:
        return ArrayDataset(torch.ones(4, 2), torch.ones(4, 1))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        return StepSums(loss_fn(model(batch[0]), batch[1]), 4)


@pytest.mark.parametrize("asked", [{"best_by": "-loss"}, {"patience": 2}])
def test_what_is_about_tests_needs_something_to_test_on(asked: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"`{next(iter(asked))}` is about tests"):
        prepare(Model(**asked), Context(cpu=True), StopRequest())


def test_a_loss_that_is_not_there_says_so_when_it_is_called() -> None:
    training = prepare(Model(), Context(cpu=True), StopRequest())
    assert training.test_loader is None
    [batch] = next(iter(training.train_loader)).micro_batches
    with pytest.raises(RecipeError, match="no `loss`, and a step calls it"):
        Model().train_step(training.model, batch, training.loss_fn)
