"""A regression on a table: no accuracy, but the mean absolute error and R squared."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher import ArrayDataset, Recipe, StepSums, Totals, main


@dataclass(frozen=True)
class Tabular(Recipe):
    """A perceptron on columns of numbers."""

    epochs: int = 4
    batch_size: int = 16
    test_batch_size: int = 25
    learning_rate: float = 3e-3
    log_every: int = 4
    best_by: str | None = "-mae"
    patience: int | None = 2
    rows: int = 103
    test_rows: int = 37
    width: int = 16  # of the hidden layer

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(5, self.width), nn.ReLU(), nn.Linear(self.width, 1))

    def train_data(self) -> ArrayDataset:
        return houses(self.rows, seed=0)

    def test_data(self) -> ArrayDataset:
        return houses(self.test_rows, seed=1)

    def loss(self) -> nn.Module:
        return nn.MSELoss(reduction="sum")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.learning_rate)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        told = model(x)  # (rows, 1)
        sums = {"error": (told - y).abs().sum(), "y": y.sum(), "yy": (y**2).sum()}
        return StepSums(loss_fn(told, y), len(y), sums=sums)

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        spread = totals["yy"] / totals.count - (totals["y"] / totals.count) ** 2
        return {"mae": totals["error"] / totals.count, "r2": 1 - totals.loss / spread}


def houses(rows: int, seed: int) -> ArrayDataset:
    """Return five columns of numbers, and a price that follows from them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator)
    noise = 0.1 * torch.randn(rows, generator=generator)
    return ArrayDataset(x, (2 * x[:, 0] - x[:, 1] * x[:, 2] + x[:, 3].abs() + noise)[:, None])


if __name__ == "__main__":
    main(Tabular)
