"""The agent of one node: `accelerate launch` (so torchrun) with its rough edges taken off.

It meets its own processes on loopback where all are on this machine, and it says in a file which
of them failed. Started as `python -m launcher.start agent EXITS FORKS ARGS…`, where ARGS are those
of `accelerate launch`, and FORKS is how many workers are forked from here: all, or 0.
"""

import signal
import socket
from datetime import timedelta
from pathlib import Path

from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed import (  # type: ignore[attr-defined]  # torch exports them dynamically
    PrefixStore,
    Store,
    TCPStore,
)
from torch.distributed.elastic.multiprocessing import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from launcher import worker
from launcher.forks import stand_in
from launcher.run_dir import write_json

_HOST = "127.0.0.1"
_GRACE_S = 5  # what workers get to end by themselves when another has failed


class LoopbackRendezvous(RendezvousHandler):
    """One node meets itself: a store that listens on 127.0.0.1 only, on a port of the kernel's.

    Every stock rendezvous listens on all interfaces, whatever address it is told, and picks a
    port that somebody else may take before it is used. Here the socket is bound before the store
    gets it, so that two runs can neither collide nor meet.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._store: Store | None = None
        self._port = 0

    def get_backend(self) -> str:
        """Name this kind of rendezvous."""
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        """Let workers use the agent's store: one port in all."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store and this node's place: the only one."""
        if self._store is None:
            listener = socket.create_server((_HOST, 0))
            self._port = listener.getsockname()[1]
            self._store = TCPStore(
                _HOST,
                self._port,
                is_master=True,
                timeout=timedelta(minutes=5),
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        store = PrefixStore(self._run_id, self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(_HOST, self._port))

    def is_closed(self) -> bool:
        """Say that it is open."""
        return False

    def set_closed(self) -> None:
        """Need no closing."""

    def num_nodes_waiting(self) -> int:
        """Say that no node waits."""
        return 0

    def get_run_id(self) -> str:
        """Return the id of the run."""
        return self._run_id

    def shutdown(self) -> bool:
        """Need no shutting down."""
        return True


def main(argv: list[str]) -> int:
    """Run `accelerate launch` with these arguments; returns the exit code."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # stop requests go to the workers directly
    rendezvous_handler_registry.register("loopback", _create)
    _end_survivors_soon()
    exits, forks, *arguments = argv
    if int(forks):
        run, spec = arguments[-2:]
        stand_in(int(forks), lambda: worker.main([run, spec]))
    try:
        launch_command(launch_command_parser().parse_args(arguments))
    except ChildFailedError as error:
        codes = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        write_json(Path(exits), codes)
        return 1
    return 0


def _end_survivors_soon() -> None:
    """Give workers seconds, not torchrun's half a minute, to end when another has failed.

    They may be in a long download or batch, which would hold up the news. The option
    `--shutdown_timeout` is not used in this case.
    """
    close = PContext.close

    def close_soon(
        context: PContext, death_sig: signal.Signals | None = None, timeout: int = _GRACE_S
    ) -> None:
        close(context, death_sig, min(timeout, _GRACE_S))

    PContext.close = close_soon  # type: ignore[method-assign, assignment]  # no other way


def _create(parameters: RendezvousParameters) -> RendezvousHandler:
    return LoopbackRendezvous(parameters.run_id)
