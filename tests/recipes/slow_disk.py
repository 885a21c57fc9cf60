"""A run whose disk, data and exits take their time; a stop, a watch and an agent must wait."""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from launcher import ArrayDataset, Recipe, main
from launcher.run import checkpoint_files
from launcher.train import worker


def late(work: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The same work, some time later."""

    def work_late(*arguments: Any) -> Any:
        time.sleep(seconds)
        return work(*arguments)

    return work_late


@dataclass(frozen=True)
class SlowDisk(Recipe):
    """A small run with slow parts."""

    save_s: float = 0.0  # what writing a checkpoint takes
    weights_s: float = 0.0  # what writing the final weights takes
    verify_s: float = 0.0  # what reading a checkpoint's checksum takes
    data_s: float = 0.0  # what preparing data takes, on the rank `at_rank`
    step_s: float = 0.0
    thread_s: float = 0.0  # how long a thread goes on that the recipe has left running
    fail_at: int | None = None  # the step at which `at_rank` fails
    at_rank: int = 1

    def here(self) -> bool:
        return int(os.environ.get("RANK", "0")) == self.at_rank

    def model(self) -> nn.Module:
        slow: list[tuple[Any, str, float]] = [
            (checkpoint_files, "write", self.save_s),
            (worker, "save_weights", self.weights_s),
            (checkpoint_files, "_harm", self.verify_s),
        ]
        for module, name, seconds in slow:
            setattr(module, name, late(getattr(module, name), seconds))
        if self.thread_s:
            threading.Thread(target=time.sleep, args=(self.thread_s,), name="forgotten").start()
        return nn.Linear(4, 3)

    def train_data(self) -> ArrayDataset:
        if self.here():
            time.sleep(self.data_s)
        images = torch.rand(90, 4, generator=torch.Generator().manual_seed(0))
        return ArrayDataset(images, (images.sum(1) * 0.75).long().clamp(0, 2))

    def test_data(self) -> ArrayDataset:
        return self.train_data()

    def loss(self) -> nn.Module:
        if dist.is_initialized():
            group = dist.distributed_c10d._get_default_group()
            print("the group waits", group._get_backend(torch.device("cpu")).options._timeout)
        return nn.CrossEntropyLoss()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.learning_rate)

    def train_step(self, model: nn.Module, batch: Any, loss_fn: nn.Module) -> Any:
        time.sleep(self.step_s)
        STEPS.append(0)
        if len(STEPS) == self.fail_at and self.here():
            raise ValueError("the real reason")
        return super().train_step(model, batch, loss_fn)

    def counts_samples(self, *, test: bool = False) -> bool:
        return True


STEPS: list[int] = []

if os.environ.get("HANGS_AT_EXIT") in (os.environ.get("RANK", "0"), "all"):
    # NCCL's waits for the other ranks; gloo's does not.
    torch.distributed.destroy_process_group = lambda *_: time.sleep(1000)

if __name__ == "__main__":
    main(SlowDisk)
