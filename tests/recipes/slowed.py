"""A small run in which one rank, or all of one machine, takes its time: in a pass, or for data."""

import os
import socket
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from launcher import Recipe, main


class Layer(nn.Module):
    """A linear layer that pauses; batch norm has buffers, which DDP sends from rank 0."""

    def __init__(self, pause_s: float, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.linear = norm, nn.Linear(4, 3)
        self.pause_s = pause_s

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (batch, 3)."""
        time.sleep(self.pause_s)
        scores: Tensor = self.linear(self.norm(x))
        return scores


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """Random ones, each after a pause."""

    def __init__(self, size: int, pause_s: float) -> None:
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
        self.pause_s = pause_s

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.pause_s)
        return self.x[index], self.x[index][:3].argmax()


@dataclass(frozen=True)
class Slowed(Recipe):
    """Six steps of one epoch, reported two by two."""

    epochs: int = 1
    batch_size: int = 24
    samples: int = 144
    log_every: int = 2
    num_workers: int = 0
    rank: int = -1  # that pauses
    host: str = ""  # whose ranks pause
    where: Literal["pass", "data"] = "pass"
    pause_s: float = 0.1  # in a pass, or of a sample
    everybody_s: float = 0.0  # in a pass, of all ranks

    def train_data(self) -> Dataset[tuple[Tensor, Tensor]]:
        """Return what may take long to load."""
        return Samples(self.samples, self.pause_s if self.where == "data" and self.mine() else 0)

    def model(self) -> nn.Module:
        """Return what may take long to call."""
        more = self.pause_s if self.where == "pass" and self.mine() else 0
        return Layer(self.everybody_s + more, nn.LayerNorm(4) if self.shard else nn.BatchNorm1d(4))

    def loss(self) -> nn.Module:
        """Return the loss of a batch."""
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return what steps."""
        return torch.optim.SGD(model.parameters(), lr=0.1)

    def mine(self) -> bool:
        """Whether this rank is the slow one."""
        return int(os.environ.get("RANK", "0")) == self.rank or socket.gethostname() == self.host


if __name__ == "__main__":
    main(Slowed)
