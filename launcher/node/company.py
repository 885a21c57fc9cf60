"""How the processes of a script meet, and how the agents of several machines keep together.

Machine 0 listens before any process is started, so that those who come early wait in the kernel's
queue; torch, whose store answers them, is imported meanwhile. On one machine that is at loopback.
"""

import json
import re
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.files import read_json, written
from launcher.script.plan import Plan

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # exported dynamically

_QUEUE = 4096  # connections that wait for torch; the kernel may allow fewer
_PATIENCE_S = 600.0  # for a machine whose checks take longer than those of others
_LOOK_S = 0.5
_TIMEOUT = timedelta(minutes=5)  # of one answer of the store
_LAST_S = 300.0  # for machines that have more to do, as torchrun has it
_LAST_AFTER_FAILURE_S = 15.0
_ASKED, _FAILED = "launcher/asked", "launcher/failed"


class Company:
    """The agents of a script: one machine's place among them."""

    def __init__(self, plan: Plan) -> None:
        """Listen, on machine 0; elsewhere find out where it does, which may take minutes."""
        self._plan = plan
        self._listener: socket.socket | None = None
        self._store: Store | None = None
        self._words: set[str] = set()  # that this machine has to say
        self._ready = threading.Event()
        self.asked = self.failed = False  # elsewhere
        self.port: int | None = None
        if plan.is_world:
            self.port = self._listen() if plan.node_rank == 0 else self._hear()

    def gather(self) -> None:
        """Begin to serve the store; once all processes are started, for it brings threads."""
        if self._plan.is_world and find_spec("torch"):
            threading.Thread(target=self._serve, name="store", daemon=True).start()
        else:
            self._ready.set()  # nobody meets
            if self._listener:
                self._listener.close()  # who brings a store of its own may listen there

    def tell_asked(self) -> None:
        """Have the other machines ask their processes to stop."""
        self._words.add(_ASKED)

    def tell_failed(self) -> None:
        """Have the other machines end their processes."""
        self._words.add(_FAILED)

    def leave(self) -> None:
        """Go once the others need nothing from this machine any more."""
        # Processes may be through before torch is imported here: the others wait for a word.
        if self._plan.nnodes > 1 and self._ready.wait(self._patience_s) and self._store:
            with suppress(Exception):  # the others, or the network, are gone
                self._leave_together(self._store)
        if self._meeting and self._plan.node_rank == 0:
            self._meeting.unlink(missing_ok=True)

    def _leave_together(self, store: "Store") -> None:
        self._say(store)
        store.set(f"launcher/left/{self._plan.node_rank}", "")
        if self._plan.node_rank:
            return
        everybody = [f"launcher/left/{node}" for node in range(self._plan.nnodes)]
        deadline = time.monotonic() + self._patience_s
        while not store.check(everybody) and time.monotonic() < deadline:
            time.sleep(_LOOK_S / 5)

    @property
    def _patience_s(self) -> float:
        """How long this machine waits for the others at its end."""
        return _LAST_AFTER_FAILURE_S if self._words or self.failed or self.asked else _LAST_S

    @property
    def _meeting(self) -> Path | None:
        """The file in which machine 0 tells its port, where it is the kernel's choice."""
        if not self._plan.meeting:
            return None
        name = re.sub(r"\W", "-", self._plan.run_id)
        return Path(self._plan.meeting, f".meeting-{name}.json")

    def _listen(self) -> int:
        if self._plan.nnodes == 1:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=_QUEUE)
            return int(self._listener.getsockname()[1])
        dual = socket.has_dualstack_ipv6()
        self._listener = socket.create_server(
            ("", int(str(self._plan.endpoint).rpartition(":")[2])),
            family=socket.AF_INET6 if dual else socket.AF_INET,
            dualstack_ipv6=dual,
            backlog=_QUEUE,
        )
        port = int(self._listener.getsockname()[1])
        if self._meeting:
            with written(self._meeting, private=True) as beside:
                beside.write_text(json.dumps({"port": port}), encoding="utf-8")
        return port

    def _hear(self) -> int:
        """Return the port of machine 0; raises TimeoutError where it never tells."""
        port = int(str(self._plan.endpoint).rpartition(":")[2])
        deadline = time.monotonic() + _PATIENCE_S
        while self._meeting and not port:
            port = int((read_json(self._meeting) or {}).get("port", 0))
            if time.monotonic() > deadline:
                raise TimeoutError(f"machine 0 has not told where to meet, in {self._meeting}")
            time.sleep(0 if port else _LOOK_S)
        return port

    def _serve(self) -> None:
        from torch.distributed import (  # type: ignore[attr-defined]  # noqa: PLC0415  # only now
            TCPStore,
        )

        listener = self._listener
        try:
            self._store = TCPStore(
                self._plan.host,
                self.port or 0,
                is_master=listener is not None,
                timeout=_TIMEOUT,
                wait_for_workers=False,
                master_listen_fd=listener.detach() if listener else None,
            )
        finally:
            self._ready.set()
        while self._plan.nnodes > 1:
            try:
                self._say(self._store)
                self.asked = self.asked or self._store.check([_ASKED])
                self.failed = self.failed or self._store.check([_FAILED])
                if self._store.check(["launcher/left/0"]):  # its processes came to their end
                    return
            except RuntimeError:  # machine 0 has left
                self.failed = True
                return
            time.sleep(_LOOK_S)

    def _say(self, store: "Store") -> None:
        for word in self._words.copy():
            store.set(word, "")
