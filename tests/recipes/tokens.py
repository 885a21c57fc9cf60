"""A loss that is a mean over tokens, not samples: padding makes every sample count differently."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from launcher import ArrayDataset, Recipe, StepSums, main

PAD = -100


@dataclass(frozen=True)
class Tokens(Recipe):
    """Predict the next of a few tokens, with padding."""

    epochs: int = 3
    batch_size: int = 10
    learning_rate: float = 0.1
    samples: int = 101
    log_every: int = 4
    dtype: str = "float32"
    sparse: bool = False  # gradients of the embedding hold only the rows that were used

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Embedding(16, 32, sparse=self.sparse), nn.Linear(32, 16)).to(
            getattr(torch, self.dtype)
        )

    def train_data(self) -> ArrayDataset:
        generator = torch.Generator().manual_seed(3)
        tokens = torch.randint(16, (self.samples, 12), generator=generator)
        targets = (tokens * 7 + 3) % 16
        lengths = torch.randint(1, 12, (self.samples, 1), generator=generator)
        lengths[::9] = 0  # some samples are all padding
        targets[torch.arange(12) >= lengths] = PAD
        return ArrayDataset(tokens, targets)

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        tokens, targets = batch
        logits: Tensor = model(tokens)  # (batch, 12, 16)
        loss = cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="sum"
        )
        correct = (logits.argmax(2) == targets).sum()
        return StepSums(loss, (targets != PAD).sum(), correct)


if __name__ == "__main__":
    main(Tokens)
