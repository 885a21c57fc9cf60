"""What the agent of a script is told about the processes that it starts on one machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """Who starts on a machine, and how they are to be treated. The fields go through JSON."""

    nproc: int  # processes on each machine
    nnodes: int
    node_rank: int
    run_id: str  # of this start
    is_world: bool  # whether the processes are told their places among others
    endpoint: str | None  # HOST:PORT of machine 0, where there are several
    meeting: str | None  # a folder in which machine 0 tells its port, where that is 0
    max_restarts: int
    start: int  # counted from 1
    stop_signal: str
    grace: float | None  # seconds from a request to stop to the end; None: what they take
    stdin: bool  # whether rank 0 gets this machine's
    managed: bool  # by a job, whose scheduler may send its signals to every process
    first: Mapping[str, str] = field(default_factory=dict)  # environment of rank 0 alone

    @property
    def ranks(self) -> range:
        """The ranks on this machine."""
        first = self.node_rank * self.nproc
        return range(first, first + self.nproc)

    @property
    def host(self) -> str:
        """Where machine 0 is found."""
        return (self.endpoint or "").rpartition(":")[0] or "127.0.0.1"

    def place(self, rank: int, port: int | None) -> dict[str, str]:
        """Return the environment that tells a process its place, as torchrun does.

        `port` is where machine 0 listens; None: nobody does, and rank 0 has to.
        """
        if not self.is_world:
            return {}
        world = str(self.nproc * self.nnodes)
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % self.nproc),
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": str(self.nproc),
            "GROUP_RANK": str(self.node_rank),
            "GROUP_WORLD_SIZE": str(self.nnodes),
            "NODE_RANK": str(self.node_rank),
            "ROLE_NAME": "default",
            "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": world,
            "MASTER_ADDR": self.host,
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": self.run_id,
            "TORCHELASTIC_RESTART_COUNT": str(self.start - 1),
            "TORCHELASTIC_MAX_RESTARTS": str(self.max_restarts),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        }
