"""The quickstart's network on made data, so that weights really move: for comparing curves."""

import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from launcher import ArrayDataset, Recipe, SampleRandom, Schedule, Steps, main


class Pause(nn.Module):
    """Passes on what it gets, after a while: time to kill something."""

    def __init__(self, step_s: float, test_s: float) -> None:
        super().__init__()
        self.step_s, self.test_s = step_s, test_s

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x, (batch, …)."""
        time.sleep(self.step_s if self.training else self.test_s)
        return x


class Average(nn.Module):
    """Subtracts a running mean that it keeps in a buffer which is not in the state_dict."""

    mean: torch.Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x less the mean so far, (batch, features)."""
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


@dataclass(frozen=True)
class Curve(Recipe):
    """An MLP on made images that a network can learn."""

    epochs: int = 10
    batch_size: int = 50  # divided by neither 3 nor 4
    test_batch_size: int = 100
    learning_rate: float = 0.1
    momentum: float = 0.9
    log_every: int = 7
    samples: int = 997  # prime: divided by no world size
    test_samples: int = 211
    hidden: int = 64
    dtype: Literal["float32", "float64"] = "float32"
    augment: bool = False  # add noise that belongs to the sample
    dropout: float = 0.0
    optimizer_name: Literal["sgd", "adamw"] = "sgd"
    schedule: bool = False
    norm: bool = False  # batch norm, and a buffer that is not in the state_dict
    convolve: bool = False
    step_s: float = 0.0  # seconds that a training step takes longer
    test_s: float = 0.0  # seconds that a test batch takes longer

    def model(self) -> nn.Module:
        return nn.Sequential(
            Pause(self.step_s, self.test_s),
            *([nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 28)] if self.convolve else []),
            nn.Flatten(),
            nn.Linear(1 if self.convolve else 784, self.hidden),
            *([nn.BatchNorm1d(self.hidden), Average(self.hidden)] if self.norm else []),
            nn.ReLU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.hidden, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, 10),
        ).to(getattr(torch, self.dtype))

    def train_data(self) -> ArrayDataset:
        return self.made(self.samples, key=1)

    def test_data(self) -> ArrayDataset:
        return self.made(self.test_samples, key=2)

    def made(self, samples: int, key: int) -> ArrayDataset:
        patterns = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(key)
        labels = torch.randint(10, (samples,), generator=generator)
        noise = torch.rand(samples, 1, 28, 28, generator=generator)
        images = (255 * (0.12 * patterns[labels] + 0.88 * noise)).to(torch.uint8)
        return ArrayDataset(
            images,
            labels,
            transform=lambda batch: batch.to(getattr(torch, self.dtype)) / 255 - 0.5,
            augment=add_noise if self.augment else None,
        )

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.optimizer_name == "adamw":
            return torch.optim.AdamW(model.parameters(), lr=self.learning_rate / 100)
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=self.momentum)

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: Steps) -> Schedule | None:
        return Schedule(CosineAnnealingLR(optimizer, 200), every="step") if self.schedule else None


def add_noise(images: torch.Tensor, random: SampleRandom) -> torch.Tensor:
    """Brighten each image by an amount of its own."""
    amount = random.uniform(1).to(images.dtype)
    return images + 0.1 * amount.reshape(-1, 1, 1, 1)


if __name__ == "__main__":
    main(Curve)
