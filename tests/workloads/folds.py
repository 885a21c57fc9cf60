"""K folds: a hyperparameter says which part of the data a run is tested on."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import Subset

from launcher import ArrayDataset, Recipe, load_digits, main


@dataclass(frozen=True)
class Folds(Recipe):
    """A linear classifier of handwritten digits; `--grid fold=0,1,2` trains all of them."""

    epochs: int = 2
    batch_size: int = 20
    test_batch_size: int = 70
    learning_rate: float = 0.5
    log_every: int = 3
    folds: int = 3  # parts of the data
    fold: int = 0  # the part to test on

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def train_data(self) -> Subset[tuple[torch.Tensor, ...]]:
        return self.part(test=False)

    def test_data(self) -> Subset[tuple[torch.Tensor, ...]]:
        return self.part(test=True)

    def part(self, *, test: bool) -> Subset[tuple[torch.Tensor, ...]]:
        digits: ArrayDataset = load_digits(train=True, transform=lambda x: x.float() / 16)
        order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
        places = [
            n for i, n in enumerate(order) if (i % self.folds == self.fold) == test and i < 200
        ]
        return Subset(digits, places)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)


if __name__ == "__main__":
    main(Folds)
