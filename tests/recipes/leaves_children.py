"""A run whose recipe starts processes that leave their session and lose their parent."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from launcher import ArrayDataset, Recipe, main

# Forks twice, each time out of its session, so that nobody is its parent.
DAEMON = """
import os, sys, time
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
open(f"{sys.argv[1]}/{os.getpid()}", "w").close()
while True:
    time.sleep(1)
"""


@dataclass(frozen=True)
class LeavesChildren(Recipe):
    """A small run."""

    folder: str = ""  # where each child leaves its pid
    step_s: float = 0.0
    fails: bool = False

    def model(self) -> nn.Module:
        Path(self.folder).mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-c", DAEMON, self.folder], check=True)
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (Path(self.folder) / str(child.pid)).touch()
        if (pid := os.fork()) == 0:
            time.sleep(1000)
        (Path(self.folder) / str(pid)).touch()
        return nn.Linear(4, 3)

    def train_data(self) -> ArrayDataset:
        images = torch.rand(90, 4, generator=torch.Generator().manual_seed(0))
        return ArrayDataset(images, (images.sum(1) * 0.75).long().clamp(0, 2))

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        time.sleep(self.step_s)
        if self.fails:
            raise ValueError("no loss")
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)


if __name__ == "__main__":
    main(LeavesChildren)
