"""How far each rank is, in a few bytes of shared memory that the launcher can read at any time."""

import mmap
import struct
from pathlib import Path
from typing import NamedTuple

_LAYOUT = "qqq"


class Mark(NamedTuple):
    """Where a rank is: `ticks` counts stages that all ranks go through alike."""

    ticks: int
    steps: int  # optimizer steps done since the start of the run
    beats: int  # signs of life of this rank alone, while it waits for a disk


class Marker:
    """Written by one rank: a store to memory, cheap enough for every stage of every step."""

    def __init__(self, path: Path | None) -> None:
        """Start counting; without a path nobody can read it."""
        if path is None:
            memory = mmap.mmap(-1, struct.calcsize(_LAYOUT))
        else:
            path.write_bytes(bytes(struct.calcsize(_LAYOUT)))
            with path.open("r+b") as file:
                memory = mmap.mmap(file.fileno(), 0)
        self._values = memoryview(memory).cast("q")

    def tick(self) -> None:
        """Say that this rank has entered the next stage."""
        self._values[0] += 1

    def beat(self) -> None:
        """Say that this rank is alive although it is not getting on."""
        self._values[2] += 1

    def step(self, steps: int) -> None:
        """Say how many optimizer steps are done."""
        self._values[1] = steps


def read(path: Path) -> Mark | None:
    """Return a rank's mark, None before it has one."""
    try:
        return Mark(*struct.unpack(_LAYOUT, path.read_bytes()))
    except (OSError, struct.error):
        return None
