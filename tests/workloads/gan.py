"""A GAN: two networks that learn against each other, each with its optimizer, in turns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.optim import Adam, Optimizer

from launcher import ArrayDataset, Recipe, SampleRandom, StepSums, Totals, main


class Both(nn.Module):
    """Generator and discriminator in one model: the batch says which of them is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
        self.d = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def forward(self, noise: Tensor, real: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return scores of made points, and those of real ones, (batch, 1) each."""
        fake = self.g(noise)
        return (self.d(fake),) if real is None else (self.d(fake.detach()), self.d(real))


@dataclass(frozen=True)
class GAN(Recipe):
    """Points on a circle, and a generator that learns to make such; in float64."""

    epochs: int = 2
    batch_size: int = 8
    test_batch_size: int = 5
    learning_rate: float = 1e-3
    log_every: int = 2
    samples: int = 37
    test_samples: int = 13

    def model(self) -> nn.Module:
        return Both()

    def train_data(self) -> ArrayDataset:
        return circle(self.samples, seed=0)

    def test_data(self) -> ArrayDataset:
        return circle(self.test_samples, seed=1)

    def loss(self) -> nn.Module:
        return nn.BCEWithLogitsLoss(reduction="sum")

    def optimizer(self, model: Any) -> dict[str, Optimizer]:
        parts = {"d": model.d, "g": model.g}
        return {
            name: Adam(part.parameters(), lr=self.learning_rate, betas=(0.5, 0.999))
            for name, part in parts.items()
        }

    def train_step(  # type: ignore[override]  # in turns
        self, model: nn.Module, batch: Any, loss_fn: nn.Module
    ) -> Iterator[tuple[str, StepSums]]:
        real, noise = batch[0][:, :2], batch[0][:, 2:]
        fake, true = model(noise, real)
        loss = loss_fn(fake, torch.zeros_like(fake)) + loss_fn(true, torch.ones_like(true))
        yield "d", StepSums(loss, len(real), sums={"seen": (fake < 0).sum()})
        [fake] = model(noise)
        yield "g", StepSums(loss_fn(fake, torch.ones_like(fake)), len(real))

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        return {"seen": totals["seen"] / totals.samples} if "seen" in totals else {}

    def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        real, noise = batch[0][:, :2], batch[0][:, 2:]
        fake, true = model(noise, real)
        loss = bce(fake, torch.zeros_like(fake), reduction="sum")
        return StepSums(loss + loss_fn(true, torch.ones_like(true)), len(real))


def circle(count: int, seed: int) -> ArrayDataset:
    """Return points on the unit circle and two numbers each to make one of, (count, 4)."""
    generator = torch.Generator().manual_seed(seed)
    angles = 6.3 * torch.rand(count, generator=generator, dtype=torch.float64)
    points = torch.stack([angles.cos(), angles.sin()], 1)
    return ArrayDataset(points, augment=with_noise)


def with_noise(points: Tensor, random: SampleRandom) -> Tensor:
    return torch.cat([points, 2 * random.uniform(2).to(points.dtype) - 1], dim=1)


if __name__ == "__main__":
    main(GAN)
