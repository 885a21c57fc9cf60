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
_LAYOUT = "qqqq"
_COPY_S = 0.2  # between two looks at values that have to be written


class Mark(NamedTuple):
    """Where a rank is: `ticks` counts stages that all ranks go through alike."""

    ticks: int
    steps: int  # optimizer steps done since the start of the run
    beats: int  # signs of life of this rank alone, while it waits for a disk
    waiting: int = 0  # not 0 while it waits for others, one of whom may wait for a disk


class Marker:
    """Written by one rank: a store to memory, cheap enough for every stage of every step."""

    def __init__(self, path: Path | None) -> None:
        """Start counting; without a path nobody can read it."""
        self._values = memoryview(_seen_at(path)).cast("q")

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
        return Mark(*struct.unpack(_LAYOUT, path.read_bytes()))
    except (OSError, struct.error):
        return None
