"""Handwritten digits: a small network on the 8x8 images that ship with the package."""

from dataclasses import dataclass

import torch
from torch import nn

from launcher import ArrayDataset, Recipe, load_digits, main


@dataclass(frozen=True)
class Digits(Recipe):
    """Handwritten digits, 8x8 pixels: 97% in seconds, and no download."""

    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9  # share of the last step that SGD keeps
    hidden: int = 128  # width of the hidden layer

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(8 * 8, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 10),
        )

    def train_data(self) -> ArrayDataset:
        return load_digits(train=True, transform=to_float)

    def test_data(self) -> ArrayDataset:
        return load_digits(train=False, transform=to_float)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=self.momentum)


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Scale a batch of images, uint8 (batch, 8, 8), to 0 … 1."""
    return images.float() / 16


if __name__ == "__main__":
    main(Digits)
