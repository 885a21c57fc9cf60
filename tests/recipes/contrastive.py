"""Views of images told apart from those of all other images of the global batch, as in SimCLR."""

from dataclasses import dataclass
from typing import Any

import torch
from curve import Curve
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from launcher import StepSums, gather, main


@dataclass(frozen=True)
class Contrastive(Curve):
    """An encoder of images, which the second half of an image is to find the first of."""

    epochs: int = 2
    samples: int = 29
    batch_size: int = 7  # the last of an epoch has one sample
    test_samples: int = 7
    test_batch_size: int = 3
    log_every: int = 3

    def model(self) -> nn.Module:
        layers = nn.Flatten(), nn.Linear(392, 32), nn.ReLU(), nn.Linear(32, 8)
        return nn.Sequential(*layers).to(getattr(torch, self.dtype))

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        images, labels = batch
        views = torch.stack([images[..., :14], images[..., 14:]], 1).flatten(0, 1)
        z = normalize(model(views), dim=1).reshape(-1, 2, 8)  # (samples, views, 8)
        rows, mine = gather(z)  # (global batch, views, 8), (samples,)
        everyones, _ = gather(labels)  # (global batch,)
        alike = everyones == labels[:, None]  # (samples, global batch)
        alike[torch.arange(len(mine)), mine] = False
        logits = 5 * z[:, 0] @ rows[:, 1].T  # (samples, global batch)
        logits = logits.masked_fill(alike, -torch.inf)
        loss = cross_entropy(logits, mine, reduction="sum")
        return StepSums(loss, len(mine), (logits.argmax(1) == mine).sum())


if __name__ == "__main__":
    main(Contrastive)
