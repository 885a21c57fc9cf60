"""Runs out of memory on one rank where more samples come at once than it holds."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe, StepSums, gather, main


class Full(torch.autograd.Function):
    """Is out of memory in backward."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, *__: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory in backward")


@dataclass(frozen=True)
class Memory(Recipe):
    """Holds `holds` samples at once on `rank`, in one of the passes."""

    batch_size: int = 8
    learning_rate: float = 0.1
    holds: int = 3
    rank: int = 0
    where: Literal["forward", "backward"] = "forward"
    after: int = 0  # steps that it takes
    norm: bool = False
    gathers: bool = False

    def model(self) -> nn.Module:
        norm = [nn.BatchNorm1d(5)] if self.norm else []
        return nn.Sequential(nn.Linear(4, 5), *norm, nn.Tanh(), nn.Linear(5, 2)).double()

    def train_data(self) -> ArrayDataset:
        x = torch.randn(200, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        return ArrayDataset(x, (x[:, 0] > 0).long())

    def test_data(self) -> ArrayDataset:
        return ArrayDataset(torch.ones(6, 4, dtype=torch.float64), torch.zeros(6).long())

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, labels = batch
        scores = model(x)
        if self.gathers:
            gather(scores)
        vars(self).setdefault("passes", []).extend([x] * model.training)
        full = len(x) > self.holds and os.environ.get("RANK", "0") == str(self.rank)
        if full and model.training and len(vars(self)["passes"]) > self.after:
            if self.where == "forward":
                raise torch.OutOfMemoryError("no memory in forward")
            scores = Full.apply(scores)
        return StepSums(loss_fn(scores, labels), len(x), scale=len(x))


if __name__ == "__main__":
    main(Memory)
