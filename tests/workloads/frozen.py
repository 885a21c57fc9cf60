"""A backbone that is frozen, a new head, and a rate that falls when tests no longer get better."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from launcher import ArrayDataset, Recipe, Schedule, load_digits, main


@dataclass(frozen=True)
class Frozen(Recipe):
    """A linear head on features that nobody trains."""

    epochs: int = 6
    batch_size: int = 40
    test_batch_size: int = 60
    learning_rate: float = 3.0
    log_every: int = 3
    samples: int = 151
    test_samples: int = 83

    def model(self) -> nn.Module:
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.Tanh())
        backbone.requires_grad_(False).eval()
        return nn.Sequential(backbone, nn.Linear(48, 10))

    def train_data(self) -> ArrayDataset:
        return digits(self.samples, train=True)

    def test_data(self) -> ArrayDataset:
        return digits(self.test_samples, train=False)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> Optimizer:
        head = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.SGD(head, lr=self.learning_rate)

    def scheduler(self, optimizer: Optimizer, steps: int) -> Schedule:
        return Schedule(ReduceLROnPlateau(optimizer, mode="max", patience=0), every="test")


def digits(count: int, *, train: bool) -> ArrayDataset:
    images, labels = load_digits(train=train).arrays
    return ArrayDataset(images[:count], labels[:count], transform=lambda x: x.float() / 16)


if __name__ == "__main__":
    main(Frozen)
