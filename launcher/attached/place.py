"""Which of a script's processes this one is, as its environment or its process group says."""

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A process among those of a script."""

    rank: int = 0
    world_size: int = 1
    here: int = 1  # processes on this machine

    @property
    def one_machine(self) -> bool:
        """Whether all of them are on this one."""
        return self.here >= self.world_size


def find() -> Place:
    """Return this process's place: of torchrun's variables, else of a group that is there."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        world = int(env["WORLD_SIZE"])
        return Place(int(env["RANK"]), world, int(env.get("LOCAL_WORLD_SIZE", "1")))
    torch = sys.modules.get("torch.distributed")  # by whoever needs it
    if torch and torch.is_available() and torch.is_initialized():
        return Place(torch.get_rank(), torch.get_world_size())
    return Place()
