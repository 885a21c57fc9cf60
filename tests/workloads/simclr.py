"""SimCLR: two views of an image are to find each other among all images of the global batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from launcher import ArrayDataset, Recipe, SampleRandom, StepSums, Totals, gather, main


@dataclass(frozen=True)
class SimCLR(Recipe):
    """A small encoder of made images; in float64, since contrasts amplify rounding."""

    epochs: int = 2
    batch_size: int = 8
    test_batch_size: int = 5
    learning_rate: float = 0.05
    log_every: int = 2
    samples: int = 41  # the last batch of an epoch has one
    test_samples: int = 13
    temperature: float = 0.5  # of the softmax over images

    def model(self) -> nn.Module:
        layers = nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 8)
        return nn.Sequential(*layers).double()

    def train_data(self) -> ArrayDataset:
        return images(self.samples, seed=0)

    def test_data(self) -> ArrayDataset:
        return images(self.test_samples, seed=1)

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss(reduction="sum")

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate, momentum=0.9)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        views = batch[0]  # (samples, views, 6, 6)
        z = normalize(model(views.flatten(0, 1)), dim=1).reshape(-1, 2, 8)
        rows, mine = gather(z)  # (global batch, views, 8), (samples,)
        everyone = rows.flatten(0, 1)  # (2 · global batch, 8)
        own = z.flatten(0, 1)  # (2 · samples, 8)
        me = (2 * mine[:, None] + torch.tensor([0, 1])).flatten()
        scores = own @ everyone.T / self.temperature
        scores = scores.scatter(1, me[:, None], -torch.inf)  # nobody is its own partner
        partner = me ^ 1
        found = (scores.argmax(1) == partner).sum()
        return StepSums(
            cross_entropy(scores, partner, reduction="sum") / 2, len(mine), sums={"found": found}
        )

    def metrics(self, totals: Totals) -> Mapping[str, Any]:
        return {"found": totals["found"] / (2 * totals.count)}


def images(count: int, seed: int) -> ArrayDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 6, 6, generator=generator, dtype=torch.float64)
    return ArrayDataset(x, augment=two_views)


def two_views(x: Tensor, random: SampleRandom) -> Tensor:
    """Return two views of each image (batch, 6, 6), in other light: (batch, 2, 6, 6)."""
    light = 0.3 * random.uniform(4).to(x.dtype).reshape(-1, 2, 2)
    return x[:, None] * (1 + light[..., :1, None]) + light[..., 1:, None]


if __name__ == "__main__":
    main(SimCLR)
