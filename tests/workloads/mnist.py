"""PyTorch's own MNIST example: a convolutional network whose rate falls after each epoch."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import StepLR

from launcher import ArrayDataset, Recipe, Schedule, load_digits, main


@dataclass(frozen=True)
class Mnist(Recipe):
    """Handwritten digits, Adadelta, and StepLR once an epoch."""

    epochs: int = 2
    batch_size: int = 32
    test_batch_size: int = 50
    learning_rate: float = 1.0
    log_every: int = 3
    samples: int = 211
    test_samples: int = 97
    gamma: float = 0.7  # the rate of an epoch as a share of that of the one before

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * 3 * 3, 10),
            nn.LogSoftmax(dim=1),
        )

    def train_data(self) -> ArrayDataset:
        return digits(self.samples, train=True)

    def test_data(self) -> ArrayDataset:
        return digits(self.test_samples, train=False)

    def loss(self) -> nn.Module:
        return nn.NLLLoss()

    def optimizer(self, model: nn.Module) -> Optimizer:
        return torch.optim.Adadelta(model.parameters(), lr=self.learning_rate)

    def scheduler(self, optimizer: Optimizer, steps: int) -> Schedule:
        return Schedule(StepLR(optimizer, 1, gamma=self.gamma), every="epoch")


def digits(count: int, *, train: bool) -> ArrayDataset:
    images, labels = load_digits(train=train).arrays
    return ArrayDataset(images[:count], labels[:count], transform=scaled)


def scaled(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 (batch, 8, 8) as float (batch, 1, 8, 8) of mean 0, about."""
    return images[:, None].float() / 8 - 1


if __name__ == "__main__":
    main(Mnist)
