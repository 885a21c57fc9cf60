"""A generator and a discriminator of points in the plane, in turns; the noise is the data's own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, dropout
from torch.optim import Adam, Optimizer

from launcher import ArrayDataset, Recipe, Schedule, Steps, StepSums, Totals, warmup_cosine


class Pair(nn.Module):
    """Two networks, and how often they were called by this rank: a buffer."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        self.d = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)


@dataclass(frozen=True)
class Turns(Recipe):
    """A GAN of a few hundred points."""

    batch_size: int = 30  # 7 steps an epoch, the last one of 17
    steps: int | None = 16
    test_every: int | None = 5
    log_every: int = 3
    samples: int = 197
    dropout: float = 0.0
    critics: int = 1  # turns of the discriminator for one of the generator

    def model(self) -> nn.Module:
        return Pair().double()

    def train_data(self) -> ArrayDataset:
        return made(self.samples, 1)

    def test_data(self) -> ArrayDataset:
        return made(61, 2)

    def loss(self) -> nn.Module:
        return nn.Identity()

    def optimizer(self, model: nn.Module) -> dict[str, Optimizer]:
        assert isinstance(model, Pair)
        return {"d": Adam(model.d.parameters(), 0.01), "g": Adam(model.g.parameters(), 0.02)}

    def scheduler(self, optimizer: dict[str, Optimizer], steps: Steps) -> dict[str, Schedule]:
        return {"g": warmup_cosine(optimizer["g"], steps)}

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> Any:
        assert isinstance(model, Pair)
        real, noise = batch
        model.calls += 1
        for _ in range(self.critics):
            fake = dropout(model.g(noise), self.dropout).detach()
            real_right = (model.d(real) > 0).sum()
            right = real_right + (model.d(fake) < 0).sum()
            loss = judged(model, real, 1) + judged(model, fake, 0)
            yield "d", StepSums(loss, len(real), real_right, sums={"right": right})
        # As a mean over more than samples: over the weight that each has.
        weights = noise[:, :1].abs()
        yield "g", StepSums(judged(model, model.g(noise), 1, weights), weights.sum())

    def test_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        assert isinstance(model, Pair)
        real, noise = batch
        return StepSums(judged(model, real, 1) + judged(model, model.g(noise), 0), len(real))

    def metrics(self, totals: Totals) -> dict[str, float]:
        if "right" not in totals:
            return {}
        return {"judged_right": float(totals["right"] / (2 * totals["count_d"]))}


def judged(model: Pair, points: Tensor, real: int, weights: Tensor | None = None) -> Tensor:
    """The loss of the discriminator on points, (points, 2), all real or not; summed, ()."""
    logits = model.d(points)
    truth = torch.full_like(logits, real)
    return binary_cross_entropy_with_logits(logits, truth, weights, reduction="sum")


def made(samples: int, key: int) -> ArrayDataset:
    """Points on a circle, (samples, 2), and noise, (samples, 4)."""
    generator = torch.Generator().manual_seed(key)
    angles = torch.rand(samples, generator=generator, dtype=torch.float64) * 2 * torch.pi
    noise = torch.randn(samples, 4, generator=generator, dtype=torch.float64)
    return ArrayDataset(torch.stack([angles.sin(), angles.cos()], 1), noise)
