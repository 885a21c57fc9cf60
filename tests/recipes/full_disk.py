"""A run whose ranks all see one full disk."""

from dataclasses import dataclass

import torch
from torch import nn

from launcher import ArrayDataset, Recipe, main
from launcher.recipe.totals import Totals
from launcher.train import worker
from launcher.train.checkpoint import Saver
from launcher.train.training import Training


@dataclass(frozen=True)
class FullDisk(Recipe):
    """A linear model, and saves that fail."""

    failures: int = 2  # that each rank has seen in a row
    log_every: int = 1

    def model(self) -> nn.Module:
        seen = self.failures

        class Full(Saver):
            def save(self, training: Training, window: Totals) -> None:
                super().save(training, window)
                self.wait(training.marker)
                self.failures = seen

        worker.Saver = Full  # type: ignore[attr-defined]
        return nn.Linear(4, 3)

    def train_data(self) -> ArrayDataset:
        images = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
        return ArrayDataset(images, (images.sum(1) * 0.75).long().clamp(0, 2))

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


if __name__ == "__main__":
    main(FullDisk)
