"""The same work as a recipe of ours."""

from dataclasses import dataclass

import torch
import work
from torch import nn

from launcher import ArrayDataset, Recipe


@dataclass(frozen=True)
class Ours(Recipe):
    """The quickstart, or the small residual network."""

    def model(self) -> nn.Module:
        work.timed()
        return work.model()

    def train_data(self) -> ArrayDataset:
        return ArrayDataset(*work.in_memory("train", work.TRAIN), transform=to_float)

    def test_data(self) -> ArrayDataset:
        return ArrayDataset(*work.in_memory("t10k", work.TEST), transform=to_float)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


def to_float(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255
