"""Labels that a loss is told to leave out, with the base `train_step`: of samples, or of pixels."""

from dataclasses import dataclass

import torch
from torch import nn

from launcher import ArrayDataset, Recipe, main

LEFT_OUT = 3  # a class that there is: what the network answers must not be counted as right


@dataclass(frozen=True)
class Ignoring(Recipe):
    """A small network on labels of which some do not count."""

    epochs: int = 2
    batch_size: int = 10
    test_batch_size: int = 7
    learning_rate: float = 0.1
    samples: int = 61
    pixels: int = 0  # labels of a sample in a row; 0: one for all of it
    dtype: str = "float32"

    def model(self) -> nn.Module:
        layer = nn.Conv1d(2, 6, 3, padding=1) if self.pixels else nn.Linear(16, 6)
        return layer.to(getattr(torch, self.dtype))

    def train_data(self) -> ArrayDataset:
        generator = torch.Generator().manual_seed(4)
        shape = (2, self.pixels) if self.pixels else (16,)
        x = torch.randn(self.samples, *shape, generator=generator).to(getattr(torch, self.dtype))
        y = torch.randint(6, (self.samples, *shape[1:]), generator=generator)
        y[::4] = LEFT_OUT  # all of some samples, and of some micro-batches
        return ArrayDataset(x, y)

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(ignore_index=LEFT_OUT, label_smoothing=0.1)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)


if __name__ == "__main__":
    main(Ignoring)
