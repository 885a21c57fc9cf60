"""Layers large enough for threads: torch sums each in as many parts as it has of them."""

from dataclasses import dataclass

import torch
from torch import nn

from launcher import ArrayDataset, Recipe


@dataclass(frozen=True)
class Wide(Recipe):
    """Its bytes depend on the number of threads."""

    epochs: int = 2
    learning_rate: float = 0.1

    def model(self) -> nn.Module:
        convolution = [nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*convolution, nn.Linear(16 * 26 * 26, 256), nn.LayerNorm(256))

    def train_data(self) -> ArrayDataset:
        numbers = torch.Generator().manual_seed(1)
        images = torch.randn(128, 28, 28, generator=numbers)
        return ArrayDataset(images, torch.randint(0, 10, (128,), generator=numbers))

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)
