"""A recipe that is all training: nothing to test on, and a step that calls no loss."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher import ArrayDataset, Recipe, StepSums, main


@dataclass(frozen=True)
class Untested(Recipe):
    """Find the mean of some numbers."""

    epochs: int = 3
    batch_size: int = 5
    learning_rate: float = 0.1

    def model(self) -> nn.Module:
        return nn.Linear(3, 1).double()

    def train_data(self) -> ArrayDataset:
        x = torch.arange(23, dtype=torch.float64).unsqueeze(1) / 23
        return ArrayDataset(torch.cat([x, x**2, x**3], 1), x.squeeze(1))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        return StepSums(((model(x).squeeze(1) - y) ** 2).sum(), len(x))


if __name__ == "__main__":
    main(Untested)
