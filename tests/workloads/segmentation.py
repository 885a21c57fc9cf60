"""Segmentation: every pixel a class, pixels that nobody labelled left out, and the mean IoU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe, StepSums, Totals, main

VOID = 255  # the label of pixels that count for nothing
CLASSES = 4


@dataclass(frozen=True)
class Segmentation(Recipe):
    """A small fully convolutional network on coloured quarters of made images."""

    epochs: int = 2
    batch_size: int = 10
    test_batch_size: int = 7
    learning_rate: float = 0.3
    log_every: int = 3
    samples: int = 53
    test_samples: int = 19

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 3, padding=1)
        )

    def train_data(self) -> ArrayDataset:
        return scenes(self.samples, seed=0)

    def test_data(self) -> ArrayDataset:
        return scenes(self.test_samples, seed=1)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(ignore_index=VOID, reduction="sum")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        images, labels = batch
        scores = model(images)  # (batch, classes, height, width)
        seen = labels != VOID
        told, true = scores.argmax(1)[seen], labels[seen]  # (pixels that count,)
        pairs = torch.bincount(true * CLASSES + told, minlength=CLASSES**2)
        matrix = pairs.reshape(CLASSES, CLASSES)  # true by told
        loss = loss_fn(scores, labels)
        return StepSums(loss, seen.sum(), matrix.trace(), sums={"confusion": matrix})

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        matrix = totals["confusion"]
        union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
        return {"miou": (matrix.diag() / union.clamp(min=1)).mean()}


def scenes(count: int, seed: int) -> ArrayDataset:
    """Return images (count, 3, 8, 8) whose classes can be told by colour, a fifth of them void."""
    generator = torch.Generator().manual_seed(seed)
    quarters = torch.randint(CLASSES, (count, 2, 2), generator=generator)
    labels = quarters.repeat_interleave(4, 1).repeat_interleave(4, 2)  # (count, 8, 8)
    colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
    images = colours[labels].permute(0, 3, 1, 2)
    images += torch.randn(images.shape, generator=generator)
    void: Tensor = torch.rand(labels.shape, generator=generator) < 0.2
    void[::7] = True  # nobody has labelled these images at all
    return ArrayDataset(images, labels.masked_fill(void, VOID))


if __name__ == "__main__":
    main(Segmentation)
