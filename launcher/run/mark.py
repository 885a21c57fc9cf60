"""How far each rank is, in a few bytes of shared memory that the launcher can read at any time."""

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

BEAT_S = 0.5  # between two signs of life
_COPY_S = 0.2  # between two looks at values that have to be written

# What a rank spends its time on; the order is that of the numbers in its mark.
KINDS = ("starting", "training", "testing", "saving", "ending")
_STARTING, _TRAINING = 0, 1
# The four numbers of a `Mark`, those of `Spending`, and nanoseconds of each kind. `_SWITCH` is odd
# while the others change; steps are noted as one more, since 0 is none.
_MARK = 4
_SWITCH, _KIND, _SINCE, _FROM, _SAVED, _SAVED_NS, _SPENT = range(_MARK, _MARK + 7)
_LAYOUT = f"{_SPENT + len(KINDS)}q"


class Mark(NamedTuple):
    """Where a rank is: `ticks` counts stages that all ranks go through alike."""

    ticks: int
    steps: int  # optimizer steps done since the start of the run
    beats: int  # signs of life of this rank alone, while it waits for a disk
    waiting: int = 0  # not 0 while it waits for others, one of whom may wait for a disk


class Spending(NamedTuple):
    """What a rank has spent its time on since it made its mark, on the machine's steady clock."""

    spent: tuple[int, ...]  # nanoseconds of each of KINDS, up to the last change
    kind: int  # what it spends them on since then
    since: int  # nanoseconds
    gone_on_from: int | None  # the step that training began at; None: it has not
    saved: tuple[int, float] | None  # the step of the last checkpoint, and training before it in s

    def until(self, now: int) -> dict[str, float]:
        """Return seconds by kind up to a time in nanoseconds."""
        seconds = {kind: spent / 1e9 for kind, spent in zip(KINDS, self.spent, strict=True)}
        seconds[KINDS[self.kind]] += max(0, now - self.since) / 1e9
        return seconds


class Marker:
    """Written by one rank: a store to memory, cheap enough for every stage of every step."""

    def __init__(self, path: Path | None) -> None:
        """Start counting; without a path nobody can read it."""
        self._values = memoryview(_seen_at(path)).cast("q")
        self._values[_SINCE] = time.monotonic_ns()

    def tick(self) -> None:
        """Say that this rank has entered the next stage."""
        self._values[0] += 1

    def step(self, steps: int) -> None:
        """Say how many optimizer steps are done."""
        self._values[1] = steps

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Say that this rank is alive although it is not getting on: it waits for a disk."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT_S):
                self._values[2] += 1

        thread = threading.Thread(target=beat, name="signs of life", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Say that this rank waits for others, who may take as long as a disk does."""
        self._values[3] += 1
        try:
            yield
        finally:
            self._values[3] -= 1

    def goes_on_from(self, step: int) -> None:
        """Say at which step training begins."""
        self._values[_FROM] = step + 1

    def trains(self) -> None:
        """Say that the first step is done, where this is the first time: starting is over."""
        if self._values[_KIND] == _STARTING:
            self._switch(_TRAINING)

    def saves(self, step: int) -> None:
        """Say that what is there after `step` steps is being saved; in a block of `spending`."""
        values = self._values
        with self._changing():
            values[_SAVED], values[_SAVED_NS] = step + 1, values[_SPENT + _TRAINING]

    def ends(self) -> None:
        """Say that all that is left is to leave."""
        self._switch(KINDS.index("ending"))

    @contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """Count the time of a block as one of KINDS; one in it counts as its own."""
        before = self._values[_KIND]
        self._switch(KINDS.index(kind))
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, kind: int) -> None:
        values, now = self._values, time.monotonic_ns()
        with self._changing():
            values[_SPENT + values[_KIND]] += now - values[_SINCE]
            values[_SINCE], values[_KIND] = now, kind

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let who reads see that numbers do not belong together for a moment."""
        self._values[_SWITCH] += 1
        try:
            yield
        finally:
            self._values[_SWITCH] += 1


def _seen_at(path: Path | None) -> mmap.mmap | bytearray:
    """Return memory that others see in a file; where the file system cannot share it, soon."""
    zeros = bytearray(struct.calcsize(_LAYOUT))
    if path is None:
        return zeros
    path.write_bytes(zeros)
    with path.open("r+b") as file:
        try:
            return mmap.mmap(file.fileno(), 0)
        except OSError:
            copying = (os.dup(file.fileno()), zeros)
            threading.Thread(target=_copy, args=copying, name="mark", daemon=True).start()
            return zeros


def _copy(descriptor: int, values: bytearray) -> None:
    """Write values into a file whenever they have changed, for as long as the process lives."""
    written = b""
    while True:
        now = bytes(values)
        if now != written:
            with suppress(OSError):
                os.pwrite(descriptor, now, 0)
                written = now
        time.sleep(_COPY_S)


def read(path: Path) -> Mark | None:
    """Return a rank's mark, None before it has one."""
    try:
        return Mark(*struct.unpack(_LAYOUT, path.read_bytes())[:_MARK])
    except (OSError, struct.error):
        return None


def read_spending(path: Path) -> Spending | None:
    """Return what a rank spends its time on, None before it has a mark, or while that changes."""
    try:
        values, again = (struct.unpack(_LAYOUT, path.read_bytes()) for _ in range(2))
    except (OSError, struct.error):
        return None
    if values[_SWITCH] % 2 or values[_SWITCH] != again[_SWITCH]:
        return None
    begun, saved = values[_FROM], values[_SAVED]
    return Spending(
        spent=values[_SPENT:],
        kind=values[_KIND],
        since=values[_SINCE],
        gone_on_from=begun - 1 if begun else None,
        saved=(saved - 1, values[_SAVED_NS] / 1e9) if saved else None,
    )
