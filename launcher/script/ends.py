"""How the processes of a script ended: written by a machine's agent, read by the launcher."""

import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from launcher.files import read_json, write_json
from launcher.run.directory import RunDir

START_AGAIN = 75  # EX_TEMPFAIL: a process that leaves with it wants to be started again


@dataclass(frozen=True)
class End:
    """How one process ended."""

    rank: int
    code: int  # its exit code; -9 where SIGKILL ended it
    time: float  # seconds since 1970
    host: str
    log_from: int  # bytes that its log had at its start
    by_itself: bool  # and not after the agent had told it to, for another had failed


@dataclass(frozen=True)
class Ends:
    """How all processes ended, in the order in which they did."""

    ends: list[End]
    asked: bool  # whether they had been asked to stop

    @classmethod
    def read(cls, run: RunDir, node_ranks: Iterable[int]) -> "Ends":
        """Return what the agents of some machines have written, those that have."""
        told = [found for node in node_ranks if (found := read_json(run.exits(node)))]
        ends = [End(**end) for one in told for end in _listed(one)]
        asked = any(one.get("asked") for one in told)
        return cls(sorted(ends, key=lambda end: end.time), asked)

    @classmethod
    def killed(cls, run: RunDir, ranks: Iterable[int], code: int) -> "Ends":
        """Return how processes ended whose agent was killed, and they with it, just now.

        It could not tell; and machines that are asked to stop because of it must not be believed
        to have been asked first.
        """
        here, now = socket.gethostname(), time.time()
        logs = {rank: run.log(rank) for rank in ranks}
        said = {rank: log.stat().st_size for rank, log in logs.items() if log.exists()}
        return cls([End(rank, code, now, here, said.get(rank, 0), True) for rank in logs], False)

    def write(self, run: RunDir, node_rank: int) -> None:
        """Write it down for a machine."""
        told = {"ends": [asdict(end) for end in self.ends], "asked": self.asked}
        write_json(run.exits(node_rank), told)


def _listed(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(told.get("ends", ()))
