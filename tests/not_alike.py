"""Uses of a sharded model that cannot be, and what each ends in (see test_together)."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launcher import ArrayDataset, Recipe, StepSums
from launcher.errors import LauncherError
from launcher.ranks.context import Context
from launcher.run.directory import RunDir
from launcher.train.worker import work

RANK = int(os.environ["RANK"])


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x)

    def other(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


class Whole(nn.Module):
    def __init__(self, trouble: str) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Part(), Part()])
        self.last, self.trouble = nn.Linear(4, 2), trouble
        self.spare = nn.Linear(2, 2) if trouble == "unused" else None
        self.listed = [self.last.weight] if trouble == "listed" else []

    def forward(self, x: Tensor) -> Tensor:
        for number, part in enumerate(self.parts):
            assert isinstance(part, Part)
            if self.trouble == "skipped" and number == RANK and self.training:
                continue
            other = self.trouble == "method" and number == 1
            x = part.other(x) if other else part(x)
        out: Tensor = self.last(x)
        return out


@dataclass(frozen=True)
class NotAlike(Recipe):
    shard: bool = True
    batch_size: int = 4
    sanity_test: bool = False
    trouble: str = ""

    def model(self) -> nn.Module:
        return Whole(self.trouble)

    def train_data(self) -> ArrayDataset:
        return ArrayDataset(torch.ones(8, 4), torch.zeros(8).long())

    test_data = train_data

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> StepSums:
        sums = super().train_step(model, batch, loss_fn)
        if self.trouble == "twice" and RANK == 0:
            model(batch[0])
        if self.trouble == "penalty":
            penalty: Any = sum(weight.square().sum() for weight in model.parameters())
            return StepSums(sums.loss + penalty, sums.count, sums.correct, scale=sums.scale)
        return sums

    def after_test(self, model: nn.Module, _report: Any, folder: Path) -> None:
        (folder / f"of rank {RANK}").touch()
        if self.trouble == "alone" and RANK == 0:
            model(torch.ones(1, 4))
        if not self.trouble:
            model(torch.ones(1, 4))


def main(folder: Path, troubles: list[str]) -> None:
    context, found = Context(cpu=True), {}
    for trouble in troubles:
        run = RunDir(folder / (trouble or "none"))
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.logs.mkdir(exist_ok=True)
        try:
            work(NotAlike(trouble=trouble), run, context, "")
        except LauncherError as error:
            found[trouble] = [type(error).__name__, str(error)]
    (folder / f"{RANK}.json").write_text(json.dumps(found))
    context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
