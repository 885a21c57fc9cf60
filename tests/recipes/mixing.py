"""MixUp of samples that are drawn by weight, some of them several times in an epoch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from curve import Curve
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import default_collate

from launcher import BatchRandom, main


@dataclass(frozen=True)
class Mixing(Curve):
    """The curve's network, on mixed images."""

    epochs: int = 2
    samples: int = 61
    batch_size: int = 8
    test_samples: int = 11
    log_every: int = 3
    augment: bool = True
    growing: bool = False  # each epoch is longer than the one before

    def loss(self) -> torch.nn.Module:
        return SoftLoss()

    def order(self, epoch: int, generator: torch.Generator) -> Tensor:
        weights = torch.arange(1.0, self.samples + 1)
        drawn = 71 + 13 * epoch * self.growing
        return torch.multinomial(weights, drawn, replacement=True, generator=generator)

    def partners(self, size: int, random: np.random.Generator) -> Any:
        return random.permutation(size)

    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        (x, y), (other, theirs) = (
            default_collate(list(part)) for part in zip(*samples, strict=True)
        )
        share = random.batch.beta(0.4, 0.4)
        labels = share * one_hot(y, 10) + (1 - share) * one_hot(theirs, 10)
        return share * x + (1 - share) * other, labels.to(x.dtype)


class SoftLoss(torch.nn.Module):
    """Cross-entropy with labels as numbers or as shares."""

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, ()."""
        return cross_entropy(outputs, labels)


if __name__ == "__main__":
    main(Mixing)
