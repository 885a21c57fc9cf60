"""Detection-like targets: as many boxes as an image has, and a loss of two parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss
from torch.utils.data import Dataset

from launcher import Recipe, StepSums, Totals, main

CELLS, SIDE = 4, 8  # cells a side; pixels a side

Sample = tuple[Tensor, dict[str, Tensor]]


class Scenes(Dataset[Sample]):
    """Images with up to three bright squares: where they are is for the network to tell."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        generator = torch.Generator().manual_seed(1000 * self.seed + index)
        boxes = torch.randint(3, (1,), generator=generator).item()
        cells = torch.randperm(CELLS**2, generator=generator)[: int(boxes)]
        image = 0.3 * torch.rand(1, SIDE, SIDE, generator=generator)
        sizes = torch.rand(len(cells), generator=generator)
        for cell, size in zip(cells.tolist(), sizes.tolist(), strict=True):
            row, column = 2 * (cell // CELLS), 2 * (cell % CELLS)
            image[0, row : row + 2, column : column + 2] += 0.5 + size
        return image, {"cells": cells, "sizes": sizes}


@dataclass(frozen=True)
class Detection(Recipe):
    """Tells for each cell whether there is a square, and how bright it is."""

    epochs: int = 2
    batch_size: int = 9
    test_batch_size: int = 6
    learning_rate: float = 0.01
    num_workers: int | None = 0
    log_every: int = 2
    samples: int = 40
    test_samples: int = 17

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 8, 2, stride=2), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))

    def train_data(self) -> Scenes:
        return Scenes(self.samples, seed=1)

    def test_data(self) -> Scenes:
        return Scenes(self.test_samples, seed=2)

    def collate(self, samples: list[Sample], *_: Any, **__: Any) -> Any:
        images, targets = zip(*samples, strict=True)
        return torch.stack(images), list(targets)

    test_collate = collate

    def loss(self) -> nn.Module:
        return nn.BCEWithLogitsLoss(reduction="sum")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        images, targets = batch
        there, sizes = model(images).flatten(2).unbind(1)  # (images, cells) each
        truth = torch.zeros_like(there)
        size_loss = torch.zeros(())
        for number, target in enumerate(targets):
            truth[number, target["cells"]] = 1
            size_loss = size_loss + l1_loss(
                sizes[number, target["cells"]], target["sizes"], reduction="sum"
            )
        object_loss = binary_cross_entropy_with_logits(there, truth, reduction="sum")
        sums = {
            "object_loss": object_loss.detach(),
            "size_loss": size_loss.detach(),
            "squares": truth.sum(),
            "found": ((there > 0) & (truth > 0)).sum(),
        }
        return StepSums(object_loss + size_loss, len(images), sums=sums)

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        return {
            "object_loss": totals["object_loss"] / totals.count,
            "size_loss": totals["size_loss"] / totals["squares"].clamp(min=1),
            "recall": totals["found"] / totals["squares"].clamp(min=1),
        }


if __name__ == "__main__":
    main(Detection)
