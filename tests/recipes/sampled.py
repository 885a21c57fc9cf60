"""An ordinary dataset, one sample at a time, with random transforms from the global generators."""

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from launcher import Recipe, main


class Noisy(Dataset[tuple[Tensor, int]]):
    """Adds noise from each of the three global generators."""

    def __init__(self, samples: int, dtype: str) -> None:
        generator = torch.Generator().manual_seed(5)
        self.images = torch.rand(samples, 16, generator=generator, dtype=torch.float64)
        self.images = self.images.to(getattr(torch, dtype))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index] + 0.1 * torch.rand(16) + 0.1 * random.random()
        image = image + 0.1 * float(np.random.rand())
        return image, int(index % 4)


@dataclass(frozen=True)
class Sampled(Recipe):
    """A small network on noisy samples."""

    epochs: int = 2
    batch_size: int = 10
    learning_rate: float = 0.1
    samples: int = 47
    dtype: str = "float32"

    def model(self) -> nn.Module:
        return nn.Linear(16, 4).to(getattr(torch, self.dtype))

    def train_data(self) -> Noisy:
        return Noisy(self.samples, self.dtype)

    def test_data(self) -> Noisy:
        return Noisy(20, self.dtype)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


if __name__ == "__main__":
    main(Sampled)
