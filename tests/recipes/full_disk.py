"""A run whose ranks save together, to a disk that is full now and then, or until one is killed."""

import errno
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import ArrayDataset, Recipe, main
from launcher.model.state import ModelState


@dataclass(frozen=True)
class FullDisk(Recipe):
    """A small model in pieces, and a checkpoint after each of its steps."""

    shard: bool = True
    shard_checkpoints: bool | None = True
    checkpoint_every: int | None = 1
    log_every: int = 1
    batch_size: int = 10
    samples: int = 60
    keep_last: int = 9
    at: tuple[int, ...] = ()  # saves that fail, from 1 on
    on_rank: int | None = None  # where; none: on all
    kill: bool = False  # the rank, in the last of them, in the middle of the file

    def model(self) -> nn.Module:
        mine = self.on_rank in (None, int(os.environ.get("RANK", "0")))
        write, saves = ModelState.write, Counter[str]()

        def failing(state: ModelState, path: Path) -> None:
            # The final weights are none of a checkpoint's.
            saves[""] += path.parent.name.startswith(".step-")
            if saves[""] not in self.at or not mine or not path.name.startswith("rank-"):
                return write(state, path)
            path.write_bytes(b"half a file")
            if self.kill and saves[""] == max(self.at):
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        ModelState.write = failing  # type: ignore[method-assign,assignment]
        return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))

    def train_data(self) -> ArrayDataset:
        images = torch.rand(self.samples, 4, generator=torch.Generator().manual_seed(0))
        return ArrayDataset(images, (images.sum(1) * 0.75).long().clamp(0, 2))

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> Any:
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate)


if __name__ == "__main__":
    main(FullDisk)
