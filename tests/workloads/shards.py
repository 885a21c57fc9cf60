"""Shards of JSON lines that are read in turn, and never all at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launcher import Recipe, Stream, main, stream_of


@dataclass(frozen=True)
class Shards(Recipe):
    """A perceptron on lines like {"x": [1.5, 2, 3], "y": 1}."""

    epochs: int = 3
    batch_size: int = 9
    test_batch_size: int = 7
    learning_rate: float = 0.1
    num_workers: int | None = 1
    log_every: int = 2
    data: Path = Path("shards")  # folder with train-*.jsonl and test-*.jsonl

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))

    def train_data(self) -> Stream:
        return stream_of(str(self.data / "train-*.jsonl"), decode=decoded, count=True)

    def test_data(self) -> Stream:
        return stream_of(str(self.data / "test-*.jsonl"), decode=decoded, count=True)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)


def decoded(line: Any) -> tuple[Tensor, int]:
    """Return inputs (3,), with noise that is another one each time, and the class."""
    return torch.tensor(line["x"]) + 0.1 * torch.rand(3), line["y"]


if __name__ == "__main__":
    main(Shards)
