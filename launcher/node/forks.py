"""Training processes forked from the agent: what they all need is imported once, and shared.

They are forked before torchrun starts its threads and before anything touches a device, and wait to
be told their place: the environment that torchrun would give to a command.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from launcher.processes import PARENT, die_with_parent, uncollected

_POLL_S = 0.02


class Fork:
    """A process that waits for its place; the agent sees of it what it uses of a Popen."""

    def __init__(self, work: Callable[[], int]) -> None:
        """Fork; the child ends with the exit code that `work` returns."""
        self.returncode: int | None = None
        reader, self._writer = os.pipe()
        agent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            die_with_parent(agent)
            os.setsid()  # torchrun signals a worker's whole group
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the agent is deaf
                signal.signal(number, signal.SIG_DFL)
            os.close(self._writer)
            _take_place(reader)
            sys.exit(work())
        os.close(reader)

    def begin(self, env: Mapping[str, str], outputs: Mapping[int, str]) -> None:
        """Let it work with an environment, and file descriptors that are sent to files."""
        with os.fdopen(self._writer, "w") as writer:
            writer.write(json.dumps([dict(env), list(outputs.items())]) + "\n")

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return its exit code; raises TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(_POLL_S)
        return code


def _take_place(reader: int) -> None:
    """Wait for the place of this process; ends it where the agent has none for it."""
    with os.fdopen(reader) as pipe:
        told = pipe.readline()  # not to the end: forks after this one hold the other side open
    if not told:
        sys.exit(0)
    env, outputs = json.loads(told)
    os.environ.clear()
    os.environ.update(env)
    os.environ[PARENT] = str(os.getpid())
    for descriptor, path in outputs:
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), descriptor)


def stand_in(count: int, work: Callable[[], int]) -> None:
    """Fork `count` processes, and have torchrun take them for the commands it is about to start."""
    gc.collect()
    with uncollected():
        import_module("torch._dynamo")  # a second that torch puts off to the first optimizer
    sys.stdout.flush()
    sys.stderr.flush()
    forks = [Fork(work) for _ in range(count)]

    class Handler(SubprocessHandler):
        def _popen(self, args: tuple[str, ...], env: dict[str, str]) -> Any:  # noqa: ARG002
            fork = forks.pop(0)
            files = {1: self._stdout, 2: self._stderr}
            fork.begin(env, {number: file.name for number, file in files.items() if file})
            return fork

    api.get_subprocess_handler = Handler  # type: ignore[attr-defined, assignment]  # no other way
