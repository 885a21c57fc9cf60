"""A small ResNet with CutMix, an average of its weights, and the metrics of ImageNet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import Dataset, default_collate

from launcher import BatchRandom, Recipe, StepSums, Totals, main

CLASSES, SIDE = 7, 8


class Residual(nn.Module):
    """A convolution whose input is added to its output."""

    def __init__(self, channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class Patches(Dataset[tuple[Tensor, int]]):
    """Made images (3, side, side), with noise of their own each time that they are seen."""

    def __init__(self, count: int, seed: int, noise: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (count,), generator=generator)
        patterns = torch.rand(CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(9))
        self.images = patterns[self.labels] + 0.5 * torch.rand(
            count, 3, SIDE, SIDE, generator=generator
        )
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        return image + self.noise * torch.rand(image.shape), int(self.labels[index])


@dataclass(frozen=True)
class CutMix(Recipe):
    """Images whose boxes come from their partners, and labels that tell how much."""

    epochs: int = 2
    batch_size: int = 10
    test_batch_size: int = 8
    learning_rate: float = 0.05
    ema_decay: float | None = 0.9
    num_workers: int | None = 0
    log_every: int = 2
    samples: int = 43
    test_samples: int = 17
    batch_norm: bool = False  # and dropout

    def model(self) -> nn.Module:
        norm = nn.BatchNorm2d if self.batch_norm else nn.Identity
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            *(Residual(8, norm) for _ in range(2)),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2 if self.batch_norm else 0.0),
            nn.Linear(32, CLASSES),
        )

    def train_data(self) -> Patches:
        return Patches(self.samples, seed=0, noise=0.1)

    def test_data(self) -> Patches:
        return Patches(self.test_samples, seed=1, noise=0.0)

    def partners(self, size: int, random: np.random.Generator) -> Any:
        return random.permutation(size)

    def collate(self, samples: list[Any], *, random: BatchRandom) -> Any:
        (x, y), (other, theirs) = (
            default_collate(list(part)) for part in zip(*samples, strict=True)
        )
        top, left = random.batch.integers(SIDE // 2, size=2)
        height, width = random.batch.integers(1, SIDE // 2, size=2)
        x[:, :, top : top + height, left : left + width] = other[
            :, :, top : top + height, left : left + width
        ]
        kept = 1 - float(height * width) / SIDE**2
        return x, kept * one_hot(y, CLASSES) + (1 - kept) * one_hot(theirs, CLASSES)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(label_smoothing=0.1)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        x, y = batch
        scores = model(x)  # (batch, classes)
        hits = scores.topk(5).indices == y[:, None]  # (batch, 5)
        loss = loss_fn(scores, y)
        return StepSums(loss, len(y), hits[:, 0].sum(), scale=len(y), sums={"top5": hits.sum()})

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        return {"top5": totals["top5"] / totals.count} if "top5" in totals else {}


if __name__ == "__main__":
    main(CutMix)
