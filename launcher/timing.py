"""What the steps of one rank take, and how much of it is waiting."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class StepTimes:
    """Wall time since the last report, in seconds on this rank's clock."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start anew: after a report, and where training goes on after something else."""
        self.steps = self.samples = 0  # samples of global batches
        self.data_s = 0.0  # waited for the next batch
        self._since = time.perf_counter()

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._since

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Give the batches, and count how long each is waited for."""
        source = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.data_s += time.perf_counter() - asked
            yield batch

    def end_step(self, samples: int) -> None:
        """Count a step over a global batch of so many samples."""
        self.steps += 1
        self.samples += samples
