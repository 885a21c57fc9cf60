"""The model while it is tested and after: modes that were chosen stay, draws are the same."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from launcher import ArrayDataset, Recipe, StepSums
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.train.loops import train_loop
from launcher.train.prepare import prepare
from launcher.train.testing import test_loop as run_test
from launcher.train.training import Training


class Thawing(nn.BatchNorm1d):
    """Batch norm that freezes itself whenever its model is sent to train, as many do."""

    def train(self, mode: bool = True) -> "Thawing":  # torch's own
        super().train(mode)
        self.training = False
        return self


class Counting(nn.Linear):
    """A layer that does something when its mode changes: LoRA merges its weights then."""

    merged = False

    def train(self, mode: bool = True) -> "Counting":  # torch's own
        super().train(mode)
        self.merged = not mode
        return self


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Counting(4, 4), nn.BatchNorm1d(4), nn.BatchNorm1d(4))
        self.frozen = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
        self.thawing = Thawing(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.layers[0].merged or not self.training
        out: torch.Tensor = self.head(self.thawing(self.frozen(self.layers(x))))
        return out


@dataclass(frozen=True)
class Example(Recipe):
    batch_size: int = 8
    test_batch_size: int = 5
    whole: bool = True  # the model is in train mode when it is made

    def model(self) -> nn.Module:
        return Network() if self.whole else Network().eval()

    def train_data(self) -> ArrayDataset:
        x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)) + 3
        return ArrayDataset(x, torch.arange(32) % 2)

    test_data = train_data

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1)


class Drawing(Example):
    """Draws in its test step."""

    def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        noise = torch.rand(x.shape) + float(np.random.rand()) + random.random()
        return self.train_step(model, (x + noise, y), loss_fn)


def made(recipe: Recipe) -> Training:
    return prepare(recipe, Context(cpu=True), StopRequest())


def test_what_a_recipe_has_frozen_stays_frozen() -> None:
    training = made(Example(epochs=2))
    network = training.model
    assert isinstance(network, Network)
    modes = [module.training for module in network.modules()]
    for _ in range(2):
        train_loop(training, None)  # and a test at its end
        assert [module.training for module in network.modules()] == modes
    for norm in (network.frozen[1], network.thawing):
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert torch.equal(norm.running_mean, torch.zeros(4))
    moved = network.layers[1]
    assert isinstance(moved, nn.BatchNorm1d)
    assert moved.running_mean is not None
    assert float(moved.running_mean.abs().max()) > 0
    assert not network.layers[0].merged


def test_what_a_step_freezes_stays_so_over_a_test() -> None:
    training = made(Example())
    network = training.model
    assert isinstance(network, Network)
    train_loop(training, None)
    network.layers[2].eval()
    network.frozen[1].train()
    run_test(training, None)
    assert not network.layers[2].training
    assert network.layers[1].training
    assert network.frozen[1].training
    assert not network.frozen[0].training


def test_a_whole_model_in_eval_mode_was_only_loaded_so() -> None:
    network = made(Example(whole=False)).model
    assert isinstance(network, Network)
    assert all(m.training for m in network.modules() if not isinstance(m, Thawing))


def test_draws_of_a_test_step_are_the_same_in_every_test_and_no_others() -> None:
    training = made(Drawing())
    first = run_test(training, None)
    state = random.getstate()
    before: Any = np.random.get_state()
    torch.rand(7)
    assert run_test(training, None) == first
    assert random.getstate() == state
    after: Any = np.random.get_state()
    assert np.array_equal(after[1], before[1])
    assert run_test(made(Example()), None) != first  # they count


@pytest.mark.parametrize("draw", [torch.rand, np.random.rand, random.random])
def test_each_test_batch_has_draws_of_its_own(draw: Callable[..., Any]) -> None:
    seen = []

    class Noting(Example):
        def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
            seen.append(float(draw(1) if draw is torch.rand else draw()))
            return self.train_step(model, batch, loss_fn)

    run_test(made(Noting()), None)
    assert len(set(seen)) == 7
