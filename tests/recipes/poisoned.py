"""A small run in which one gradient is NaN although the loss is a number."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe


class Rooted(nn.Module):
    """A linear layer that is zero, and no number, in its derivative once."""

    def __init__(self, recipe: "Poisoned") -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.frozen = nn.Parameter(torch.tensor([1.0, torch.inf]))  # never finite, and no harm
        self.recipe = recipe
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (batch, 3)."""
        scores: Tensor = self.linear(x) + 0 * self.frozen[0]
        if self.training:
            self.step += 1
            if self.step == self.recipe.at_step and not Path(self.recipe.mark).exists():
                scores = scores + (0 * self.linear.bias.abs()).sqrt()
        return scores


@dataclass(frozen=True)
class Poisoned(Recipe):
    """A linear layer and a root of zero."""

    batch_size: int = 10
    learning_rate: float = 0.1
    samples: int = 60
    at_step: int = 0  # of this session, from 1
    mark: str = "none"  # where there is such a file all is well

    def model(self) -> nn.Module:
        return Rooted(self)

    def train_data(self) -> ArrayDataset:
        images = torch.rand(self.samples, 4, generator=torch.Generator().manual_seed(0))
        return ArrayDataset(images, (images.sum(1) * 0.75).long().clamp(0, 2))

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)
