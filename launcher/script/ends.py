"""How the processes of a script ended: written by a machine's agent, read by the launcher."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from launcher.run.directory import RunDir, read_json, write_json

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

    def write(self, run: RunDir, node_rank: int) -> None:
        """Write it down for a machine."""
        told = {"ends": [asdict(end) for end in self.ends], "asked": self.asked}
        write_json(run.exits(node_rank), told)


def _listed(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(told.get("ends", ()))
