"""How long a save blocks training, against writing the same 500 MB state synchronously.

    uv run python tests/benchmarks/save.py

Interleaved, medians. The steps are real ones of a model with 42 million parameters and SGD with
momentum: the time that a save blocks is the time of `checkpoint`, and what the writing that goes
on beside them takes from the steps after it is shown too.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from launcher.data.arrays import ArrayDataset
from launcher.files import sync
from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.recipe.base import Recipe
from launcher.run.directory import RunDir
from launcher.train.checkpoint import Saver, copied, parts_of
from launcher.train.exchange import checkpoint
from launcher.train.prepare import prepare
from launcher.train.step import train_step

WIDTH, LAYERS, ROUNDS = 4096, 4, 5


class Wide(Recipe):
    """About 67 million parameters: with momentum 537 MB of state."""

    def model(self) -> nn.Module:
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))

    def train_data(self) -> ArrayDataset:
        return ArrayDataset(torch.rand(64, WIDTH), torch.randint(10, (64,)))

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)


def main() -> None:
    recipe = Wide()
    training = prepare(recipe, Context(cpu=True), StopRequest())
    shard = next(iter(training.train_loader))

    def step() -> float:
        began = time.perf_counter()
        train_step(training, shard)
        training.sums.reset()
        training.progress.step += 1
        return time.perf_counter() - began

    for _ in range(3):
        step()
    blocked, written, plain, beside = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(RunDir(Path(folder)), keep_last=1, keep_best=0)
        for _ in range(ROUNDS):
            plain.append(statistics.median(step() for _ in range(5)))
            began = time.perf_counter()
            checkpoint(training, saver)
            blocked.append(time.perf_counter() - began)
            beside.append(statistics.median(step() for _ in range(3)))
            saver.wait(training.marker)
            began = time.perf_counter()
            path = Path(folder) / "plain.pt"
            torch.save(copied(training, parts_of(training)), path)
            sync(path)
            written.append(time.perf_counter() - began)
            path.unlink()
    ratio = statistics.median(blocked) / statistics.median(written)
    print(f"a save blocks {1e3 * statistics.median(blocked):.0f} ms", end=", ")
    print(f"torch.save with fsync {1e3 * statistics.median(written):.0f} ms: {ratio:.2f}")
    slower = statistics.median(beside) / statistics.median(plain)
    print(f"a step beside the writing takes {slower:.2f} of one without")


if __name__ == "__main__":
    main()
