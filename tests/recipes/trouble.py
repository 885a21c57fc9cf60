"""A small run in which one rank gets into trouble at one step, and a slow one to be stopped."""

import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe, main

Kind = Literal[
    "none", "raise", "exit", "quit", "kill", "segfault", "nan", "warn", "once", "hang", "sizes"
]


class Troubled(nn.Module):
    """A linear layer that gets into trouble when told to."""

    def __init__(self, recipe: "Trouble") -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.recipe = recipe
        self.step = -1

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (batch, 3)."""
        if self.training:
            self.step += 1
            time.sleep(self.recipe.step_s)
            if self.step == self.recipe.at_step and self.recipe.here():
                self.recipe.get_into_trouble()
            if self.recipe.what == "nan" and self.step == self.recipe.at_step:
                x = x * float("nan")
        scores: Tensor = self.linear(x)
        return scores


@dataclass(frozen=True)
class Trouble(Recipe):
    """A small run with trouble in it."""

    what: Literal[
        "none", "raise", "exit", "quit", "kill", "segfault", "nan", "warn", "once", "hang", "sizes"
    ] = "none"
    at_rank: int = 0
    at_step: int = 5
    step_s: float = 0.0  # seconds a step takes
    samples: int = 90
    mark: str = ""  # file that says that trouble has been had

    def here(self) -> bool:
        return int(os.environ.get("RANK", "0")) == self.at_rank

    def get_into_trouble(self) -> None:
        if self.what == "raise":
            raise ValueError("the third wheel came off")
        if self.what == "exit":
            sys.exit(0)
        if self.what == "quit":
            os._exit(0)
        if self.what == "hang":
            time.sleep(1000)
        if self.what == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == "warn":
            warnings.warn("mind the step", stacklevel=1)
            print("said by the recipe")
        if self.what == "once" and not Path(self.mark).exists():
            Path(self.mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def model(self) -> nn.Module:
        return Troubled(self)

    def train_data(self) -> ArrayDataset:
        generator = torch.Generator().manual_seed(0)
        odd = self.what == "sizes" and self.here()
        images = torch.rand(self.samples + odd, 4, generator=generator)
        return ArrayDataset(images, (images.sum(1) * 0.75).long().clamp(0, 2))

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


if __name__ == "__main__":
    main(Trouble)
