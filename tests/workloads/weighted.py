"""Few samples of one class: they are drawn more often, and each time other noise is added."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe, SampleRandom, StepSums, Totals, main

CLASSES = 3


@dataclass(frozen=True)
class Weighted(Recipe):
    """Points of three classes, the last of which is rare."""

    epochs: int = 3
    batch_size: int = 12
    test_batch_size: int = 10
    learning_rate: float = 0.1
    log_every: int = 3
    samples: int = 80
    test_samples: int = 47

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, CLASSES))

    def train_data(self) -> ArrayDataset:
        return points(self.samples, seed=0, augment=jitter)

    def test_data(self) -> ArrayDataset:
        return points(self.test_samples, seed=1)

    def order(self, epoch: int, generator: torch.Generator) -> Tensor:
        labels = self.train_data().arrays[1]
        weights = 1 / torch.bincount(labels, minlength=CLASSES)[labels]
        return torch.multinomial(weights, self.samples + 3, replacement=True, generator=generator)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        scores = model(x)  # (batch, classes)
        right = scores.argmax(1) == y
        seen = torch.bincount(y, minlength=CLASSES)
        found = torch.bincount(y[right], minlength=CLASSES)
        sums = {"seen": seen, "found": found}
        return StepSums(loss_fn(scores, y), len(y), right.sum(), scale=len(y), sums=sums)

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        recall = totals["found"] / totals["seen"].clamp(min=1)  # (classes,)
        return {"balanced": recall.mean(), "rare": totals["seen"][-1] / totals.count}


def points(count: int, seed: int, **options: Any) -> ArrayDataset:
    """Return points around the corners of a triangle, a tenth of them around the last one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.5, 0.4, 0.1]), count, True, generator=generator)
    corners = torch.tensor([[0.0, 0], [2, 0], [1, 2]])
    x = corners[labels] + 0.5 * torch.randn(count, 2, generator=generator)
    return ArrayDataset(x, labels, **options)


def jitter(x: Tensor, random: SampleRandom) -> Tensor:
    """Move each point (batch, 2) by numbers of its own."""
    return x + 0.2 * (random.uniform(2).to(x.dtype) - 0.5)


if __name__ == "__main__":
    main(Weighted)
