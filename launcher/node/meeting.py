"""How the processes of a run find each other, and who else may.

On one machine through a file in memory, which has no name and which only this user's processes can
open: no port listens. Machines of a job through a port of machine 0's kernel's choice, told with a
secret in a file of the run directory that only its owner can read. Every stock way meets at a port
that somebody else may take before it is used, and under an id that can be guessed.
"""

import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed import (  # type: ignore[attr-defined]  # torch exports them dynamically
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
)

from launcher.files import read_json, written
from launcher.processes import MEETING, STORE, nameless

_HOST = "127.0.0.1"
_ADDRESS = "address-of-machine-0"
_PATIENCE_S = 600.0  # for a machine whose checks take longer than those of others
_LOOK_S = 0.2
_TIMEOUT = timedelta(minutes=5)  # of one answer of the store


class Rendezvous(RendezvousHandler):
    """Machines that meet once, as many as were asked for; the rest is what torchrun wants to hear.

    A subclass makes the store of the agents and says where that of the workers is.
    """

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._met: RendezvousInfo | None = None

    def meet(self) -> RendezvousInfo:
        """Return the store and this machine's place."""
        raise NotImplementedError

    def next_rendezvous(self) -> RendezvousInfo:
        """Return the store and this machine's place, the same each time."""
        self._met = self._met or self.meet()
        return self._met

    def is_closed(self) -> bool:
        """Say that it is open."""
        return False

    def set_closed(self) -> None:
        """Need no closing."""

    def num_nodes_waiting(self) -> int:
        """Say that no machine waits."""
        return 0

    def get_run_id(self) -> str:
        """Return the id of the run."""
        return self._run_id

    def shutdown(self) -> bool:
        """Need no shutting down."""
        return True


class Alone(Rendezvous):
    """One machine: the agent needs nobody, and its workers meet in a file."""

    _folder: str | None = None  # of the file, where there is none in memory

    def get_backend(self) -> str:
        """Name this kind of rendezvous."""
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        """Leave the workers to themselves."""
        return False

    def meet(self) -> RendezvousInfo:
        """Return a store of the agent's own."""
        os.environ[STORE] = str(self._file_in_memory() or self._file_on_disk())
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo(_HOST, 0))

    def shutdown(self) -> bool:
        """Remove the file, where it is on disk."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        return True

    def _file_in_memory(self) -> Path | None:
        with suppress(OSError):
            path = Path(f"/proc/{os.getpid()}/fd/{nameless('meeting')}")
            return path if os.access(path, os.W_OK) else None
        return None

    def _file_on_disk(self) -> Path:
        self._folder = tempfile.mkdtemp(prefix="launcher-")  # only its owner may enter
        return Path(self._folder, "store")


class Meeting(Rendezvous):
    """The machines of a job: machine 0 listens, and tells the others where in a file.

    The next one tells it by which address it was found: on machine 0 itself its name may lead to
    loopback, as Debian has it, and from there it could not be reached by the others.
    """

    def __init__(self, parameters: RendezvousParameters, host: str, rank: int) -> None:
        """`host` is machine 0 as the others know it; `rank` this machine's."""
        super().__init__(parameters)
        self._host, self._rank, self._machines = host, rank, parameters.max_nodes
        # The id, a start of a job, is everybody's to know: it only tells files apart.
        name = re.sub(r"\W", "-", self._run_id)
        self._file = Path(os.environ[MEETING], f".meeting-{name}.json")

    def get_backend(self) -> str:
        """Name this kind of rendezvous."""
        return "meeting"

    @property
    def use_agent_store(self) -> bool:
        """Let workers use the agents' store: one port in all."""
        return True

    def meet(self) -> RendezvousInfo:
        """Return the store of machine 0, on this machine or another."""
        public, port, secret = self._listen() if self._rank == 0 else self._hear()
        store = PrefixStore(secret, public)
        if self._rank == 0:
            store.wait([_ADDRESS], timedelta(seconds=_PATIENCE_S))
            self._host = store.get(_ADDRESS).decode()
        elif self._rank == 1:
            store.set(_ADDRESS, _address(self._host))
        place = RendezvousStoreInfo(self._host, port)
        return RendezvousInfo(store, self._rank, self._machines, place)

    def shutdown(self) -> bool:
        """Take back what was told: it is of no use to anybody any more."""
        if self._rank == 0:
            self._file.unlink(missing_ok=True)
        return True

    def _listen(self) -> tuple[Store, int, str]:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, dualstack_ipv6=dual)
        port, secret = int(listener.getsockname()[1]), secrets.token_hex(16)
        store = TCPStore(
            self._host,
            port,
            is_master=True,
            timeout=_TIMEOUT,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        told = {"host": self._host, "port": port, "secret": secret}
        with written(self._file, private=True) as beside:
            beside.write_text(json.dumps(told), encoding="utf-8")
        return store, port, secret

    def _hear(self) -> tuple[Store, int, str]:
        deadline = time.monotonic() + _PATIENCE_S
        while (told := read_json(self._file)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"machine 0 has not told where to meet, in {self._file}")
            time.sleep(_LOOK_S)
        self._host = told["host"]
        store = TCPStore(self._host, told["port"], is_master=False, timeout=_TIMEOUT)
        return store, told["port"], told["secret"]


def _address(host: str) -> str:
    """Return the address of a machine; one that has none but IPv6's is known by its name."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host
