"""Starts commands of Python from a warm process, where that is the same: see `zygote`.

`install` has `subprocess` do so for what it can become; the rest starts as ever, and so does all
where there is no such process. For tests that are marked `warm`.
"""

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from zygote import COVERAGE, COVERAGE_LATER, Start, is_warm, understood

_QUICK = str(Path(__file__).with_name("quick"))  # a sitecustomize.py: what starts cold is quicker
if _QUICK not in os.environ.get("PYTHONPATH", ""):
    os.environ["PYTHONPATH"] = f"{_QUICK}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
_PATIENCE_S = 120.0
_SET_SUBREAPER = 36  # linux/prctl.h
_fork_exec = subprocess._fork_exec  # type: ignore[attr-defined]


class Warm:
    """The warm process of this one, started when it is first of use."""

    def __init__(self) -> None:
        """Note what the environment is when nothing has changed it."""
        self.wanted = self.scripts = False
        self._can_be = sys.platform == "linux"
        self._ours = {name: word for name, word in os.environ.items() if name != "OMP_NUM_THREADS"}
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()

    def install(self) -> None:
        """Have subprocess start commands from here."""
        subprocess._fork_exec = self.fork_exec  # type: ignore[attr-defined]

    def fork_exec(self, *given: Any) -> int:
        """Take what `subprocess.Popen` gives to C: see `_posixsubprocess.fork_exec`."""
        start, files, odd = understood(given)
        odd |= start.inherits or not self.wanted
        if not odd and is_warm(start.words, start.env, self._ours, scripts=self.scripts):
            with self._lock:
                usable = self._can_be and os.getpid() == self._pid
                if usable and (pid := self._ask(start, files)):
                    return pid
        return int(_fork_exec(*given))

    def _ask(self, start: Start, files: Sequence[int]) -> int | None:
        """Return the new process, a child of this one; None where there is none."""
        self._can_be, could = False, self._can_be  # whoever interrupts this may take an answer away
        try:
            server = self._socket = self._socket or self._begin()
            with _adopting():
                text = json.dumps(asdict(replace(start, scripts=self.scripts))).encode()
                socket.send_fds(server, [struct.pack("i", len(text))], files)
                server.sendall(text)
                (pid,) = struct.unpack("i", _whole(server, 4))
        except OSError as error:
            print(f"no warm process: {error}", file=sys.stderr)
            return None
        self._can_be = could
        return int(pid)

    def _begin(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(_PATIENCE_S)
        env = self._ours | {"OPENBLAS_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        if COVERAGE in env:
            env[COVERAGE_LATER] = env.pop(COVERAGE)
        script = str(Path(__file__).with_name("zygote.py"))
        words = [sys.executable, script, str(theirs.fileno()), str(self._pid)]
        with theirs:
            self._process = subprocess.Popen(
                words, env=env, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        _whole(ours, 1)
        return ours

    def close(self) -> None:
        """End it; what it began runs on."""
        if self._socket:
            with suppress(OSError):  # it may have ended
                self._socket.shutdown(socket.SHUT_RDWR)  # for forks of this one, too: they hold it
            self._socket.close()
        if self._process:
            self._process.wait(_PATIENCE_S)


def _whole(server: socket.socket, size: int) -> bytes:
    said = b""
    while len(said) < size:
        if not (more := server.recv(size - len(said))):
            raise OSError("it has ended")
        said += more
    return said


@contextmanager
def _adopting() -> Iterator[None]:
    """Become the parent of what loses its own meanwhile."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_SUBREAPER, 0, 0, 0, 0)


WARM = Warm()
