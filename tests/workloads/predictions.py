"""Scores of all test samples in a file, and a metric that is no sum: the area under the ROC."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe, StepSums, Totals, main


@dataclass(frozen=True)
class Predictions(Recipe):
    """Two classes of points; `launcher test RUN --keep FILE` writes what is told of each."""

    epochs: int = 3
    batch_size: int = 14
    test_batch_size: int = 9
    learning_rate: float = 0.3
    log_every: int = 2
    best_by: str | None = "auroc"
    samples: int = 75
    test_samples: int = 31

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def train_data(self) -> ArrayDataset:
        return points(self.samples, seed=0)

    def test_data(self) -> ArrayDataset:
        return points(self.test_samples, seed=1)

    def loss(self) -> nn.Module:
        return nn.BCEWithLogitsLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)

    def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        scores = model(x)  # (batch, 1)
        loss = loss_fn(scores, y)
        right = ((scores > 0) == (y > 0)).sum()
        kept = {"score": scores[:, 0], "label": y[:, 0]}
        return StepSums(loss, len(y), right, scale=len(y), kept=kept)

    def test_metrics(self, totals: Totals, kept: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"auroc": auroc(kept["score"], kept["label"] > 0)}


def auroc(scores: Tensor, true: Tensor) -> float:
    """Return how often a true one is scored higher than a false one, (n,) and (n,)."""
    pairs = scores[true][:, None] > scores[~true]
    return float(pairs.double().mean())


def points(count: int, seed: int) -> ArrayDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator)
    noise = 0.5 * torch.randn(count, generator=generator)
    return ArrayDataset(x, (x[:, 0] + x[:, 1] ** 2 - 1 + noise > 0).float()[:, None])


if __name__ == "__main__":
    main(Predictions)
