"""What the steps of one rank take, and how much of it is waiting."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class StepTimes:
    """Wall time since the last report, in seconds on this rank's clock.

    `spent` is over all of the session, by what it was spent on besides steps.
    """

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.trained = 0  # samples of global batches, in all of the session
        self._began = time.perf_counter()
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
            began = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            waited_s = time.perf_counter() - began
            self.spent["data"] += waited_s
            self.data_s += waited_s
            yield batch

    @contextmanager
    def spending(self, what: str) -> Iterator[None]:
        """Count the time of a block as spent on something else than steps."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] += time.perf_counter() - began

    def shares(self) -> dict[str, float]:
        """Return what share of the session went into what, the largest first; 1 together.

        `compute` is what is left: the steps without waiting for data. `communication` is known
        where gradients are averaged in shared memory; elsewhere it overlaps with computing, and is
        part of it.
        """
        session_s = time.perf_counter() - self._began
        shares = {what: seconds / session_s for what, seconds in self.spent.items()}
        shares["compute"] = 1 - sum(shares.values())
        return dict(sorted(shares.items(), key=lambda row: -row[1]))

    def end_step(self, samples: int) -> None:
        """Count a step over a global batch of so many samples."""
        self.steps += 1
        self.samples += samples
        self.trained += samples
