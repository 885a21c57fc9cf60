"""What the steps of one rank take, and how much of it is waiting."""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")


class Clock(Protocol):
    """Counts what a rank does by itself, without what it waits for other ranks.

    That is a step from its start to its last backward pass, with the forward and backward passes of
    all micro-batches before that one: in the last ranks wait for each other's gradients, and a fast
    rank waits the longest. Behind it all ranks make the same.
    """

    def start(self) -> None:
        """Count from here on."""

    def stop(self) -> None:
        """Count no more; does nothing where it does not count."""

    def read(self) -> float:
        """Return the seconds counted since it was reset."""

    def reset(self) -> None:
        """Start anew."""


class HostClock:
    """A clock of what the host does: on a CPU that is all there is."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Count from here on."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Count no more."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def read(self) -> float:
        """Return the seconds counted."""
        return self._seconds

    def reset(self) -> None:
        """Start anew."""
        self._seconds = 0.0


class Event(Protocol):
    """A place in a device's stream, as torch.cuda.Event is."""

    def record(self) -> None:
        """Be here."""

    def query(self) -> bool:
        """Whether the device has come to it."""

    def synchronize(self) -> None:
        """Wait until the device has come to it."""

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds from here to a later one."""


class DeviceClock:
    """A clock of what a device does, by events in its stream: the host, far ahead, waits for none.

    But for the last one, where the clock is read: for a report, which reads the sums of the same
    step from the device right behind.
    """

    def __init__(self, event: Callable[[], Event] | None = None) -> None:
        """`event` makes one; by default torch's for the current device."""
        cuda: Any = torch.cuda.Event
        self._make: Callable[[], Event] = event or partial(cuda, enable_timing=True)
        self._free: list[Event] = []
        self._pairs: deque[tuple[Event, Event]] = deque()  # that nobody has read
        self._since: Event | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Count from here on."""
        while self._pairs and self._pairs[0][1].query():
            self._take()  # so that there are as many events as the host is ahead
        self._since = self._here()

    def stop(self) -> None:
        """Count no more."""
        if self._since is not None:
            self._pairs.append((self._since, self._here()))
            self._since = None

    def read(self) -> float:
        """Return the seconds counted; waits until the device has come to where it stopped."""
        if self._pairs:
            self._pairs[-1][1].synchronize()
        while self._pairs:
            self._take()
        return self._seconds

    def reset(self) -> None:
        """Start anew."""
        while self._pairs:
            self._free += self._pairs.popleft()
        self._seconds = 0.0

    def _here(self) -> Event:
        event = self._free.pop() if self._free else self._make()
        event.record()
        return event

    def _take(self) -> None:
        began, ended = self._pairs.popleft()
        self._seconds += began.elapsed_time(ended) / 1e3
        self._free += (began, ended)


def leave_out_buffers(model: nn.Module, clock: Clock) -> None:
    """Have a clock stand still while DDP sends buffers: in a forward pass, all wait for rank 0."""
    if isinstance(model, DistributedDataParallel):
        ddp: Any = model
        send = ddp._sync_buffers

        def send_uncounted() -> None:
            clock.stop()
            send()
            clock.start()

        ddp._sync_buffers = send_uncounted


class StepTimes:
    """Wall time since the last report, in seconds on this rank's clock.

    `spent` is over all of the session, by what it was spent on besides steps; `own` counts what
    this rank does without the others.
    """

    def __init__(self, own: Clock | None = None) -> None:
        self.own = own or HostClock()
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.trained = 0  # samples of global batches, in all of the session
        self._began = time.perf_counter()
        self.start()

    def start(self) -> None:
        """Start anew: after a report, and where training goes on after something else."""
        self.steps = self.samples = 0  # samples of global batches
        self.data_s = 0.0  # waited for the next batch
        self.own.reset()
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
