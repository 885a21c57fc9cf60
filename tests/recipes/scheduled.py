"""The digits with one linear layer, and schedules made from hyperparameters: to be changed."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from launcher import ArrayDataset, Recipe, Schedule, Steps, load_digits


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Scale pixels, (batch, 8, 8), to [0, 1]."""
    return images / 16


@dataclass(frozen=True)
class Scheduled(Recipe):
    """One linear layer with a schedule or none."""

    epochs: int = 2
    batch_size: int = 300  # 5 steps an epoch
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimizer_name: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["none", "cosine", "lambda", "nested"] = "none"

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def train_data(self) -> ArrayDataset:
        return load_digits(train=True, transform=to_float)

    def test_data(self) -> ArrayDataset:
        return load_digits(train=False, transform=to_float)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        lr, decay, momentum = self.learning_rate, self.weight_decay, self.momentum
        if self.optimizer_name == "adamw":
            return torch.optim.AdamW(
                model.parameters(), lr, betas=(momentum, 0.99), weight_decay=decay
            )
        return torch.optim.SGD(model.parameters(), lr, momentum, weight_decay=decay)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: Steps) -> Schedule | None:
        made = self.torchs(optimizer, steps)
        return Schedule(made, every="step") if made else None

    def torchs(
        self, optimizer: torch.optim.Optimizer, steps: Steps
    ) -> schedules.LRScheduler | None:
        """One of torch's schedulers."""
        if self.schedule == "cosine":
            return schedules.CosineAnnealingLR(optimizer, T_max=steps)
        if self.schedule == "lambda":
            return schedules.LambdaLR(optimizer, lambda step: 1 - step / (2 * steps))
        if self.schedule == "nested":
            warm_up = schedules.LinearLR(optimizer, total_iters=2)
            rest = schedules.CosineAnnealingLR(optimizer, T_max=steps - 2)
            return schedules.SequentialLR(optimizer, [warm_up, rest], milestones=[2])
        return None
