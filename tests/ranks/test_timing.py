"""What a rank does for itself: counted on the host, and by a stand-in for a device's events."""

import time
from collections.abc import Iterator
from itertools import count

import pytest
from training import RECIPES

from launcher.ranks.context import Context
from launcher.ranks.faults import StopRequest
from launcher.ranks.timing import DeviceClock, HostClock
from launcher.recipe.file import find, load
from launcher.recipe.hyperparameters import configure
from launcher.train.loops import train_loop
from launcher.train.prepare import prepare


class Stream:
    """A device that comes to one event after the other, when it is told to; 10 ms between two."""

    def __init__(self) -> None:
        self.recorded, self.reached = 0, 0
        self.made: list[Event] = []

    def event(self) -> "Event":
        self.made.append(Event(self))
        return self.made[-1]


class Event:
    """A stand-in for torch.cuda.Event."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.place = stream, 0

    def record(self) -> None:
        self.stream.recorded += 1
        self.place = self.stream.recorded

    def query(self) -> bool:
        return self.place <= self.stream.reached

    def synchronize(self) -> None:
        self.stream.reached = max(self.stream.reached, self.place)

    def elapsed_time(self, end: "Event") -> float:
        assert self.query(), "torch raises for an event that the device has not come to"
        assert end.query()
        return 10.0 * (end.place - self.place)


def test_the_host_s_clock_counts_between_start_and_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[int] = count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))
    clock = HostClock()
    clock.stop()
    assert clock.read() == 0
    for _ in range(3):
        clock.start()
        clock.stop()
        clock.stop()
    assert clock.read() == 3
    clock.reset()
    assert clock.read() == 0


def test_a_device_s_clock_waits_for_nothing_until_it_is_read() -> None:
    stream = Stream()
    clock = DeviceClock(stream.event)
    for _ in range(5):
        clock.start()
        clock.stop()
    clock.stop()
    assert stream.reached == 0
    assert clock.read() == pytest.approx(0.05)
    assert stream.reached == 10
    clock.reset()
    assert clock.read() == 0


def test_a_device_s_clock_has_as_many_events_as_the_host_is_ahead() -> None:
    stream = Stream()
    clock = DeviceClock(stream.event)
    for _ in range(100):
        clock.start()
        clock.stop()
        stream.reached = max(0, stream.recorded - 6)
    assert len(stream.made) <= 10
    assert clock.read() == pytest.approx(1.0)
    clock.start()
    clock.stop()
    clock.reset()  # what nobody has read is forgotten
    assert clock.read() == 0
    assert len(stream.made) <= 10


class Kept(DeviceClock):
    """Keeps what was counted when it was reset: at a report, and before the first step."""

    def __init__(self, stream: Stream) -> None:
        super().__init__(stream.event)
        self.kept: list[float] = []

    def reset(self) -> None:
        self.kept.append(self.read())
        super().reset()


def test_steps_are_counted_by_a_device_s_clock_from_their_start_to_their_last_backward() -> None:
    stream = Stream()
    values = {"samples": 96, "micro_batch_size": 8, "log_every": 3}
    recipe = configure(load(find(str(RECIPES / "slowed.py"))), "slowed", values)
    training = prepare(recipe, Context(cpu=True), StopRequest())
    training.times.own = clock = Kept(stream)
    train_loop(training, None)
    assert stream.recorded == 2 * 4  # steps of three micro-batches
    assert clock.kept == pytest.approx([0.0, 0.03, 0.01])
