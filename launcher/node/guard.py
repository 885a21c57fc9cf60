"""Stands between the launcher and what it starts: nothing that a run has started outlives it.

    python -m launcher.node.guard COMMAND ARGUMENTS…

What a recipe starts may leave its session and lose its parent (double forks, setsid, daemons). The
kernel gives such processes to this one, which ends them with the command, or with the launcher.
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from textwrap import shorten
from types import FrameType

import psutil

from launcher.processes import (
    PARENT,
    adopt_orphans,
    die_with_parent,
    kill_children,
    living_children,
)

_LOOK_S = 1.0  # between two looks at whether the launcher lives
_GRACE_S = 1.0  # for what ends by itself when it has lost its parent


def main(command: list[str]) -> int:
    """Run a command to its end and end what it leaves behind; ends as the command did.

    There are two guards, one within the other: what one leaves that is killed the other ends.
    """
    launcher, outer = int(os.environ[PARENT]), os.getpid()
    if inner := os.fork():
        return _guard(launcher, lambda: inner)
    # Commands read their environment at once: see `launcher.node.start`.
    env = {**os.environ, PARENT: str(os.getpid())}
    return _guard(outer, lambda: os.posix_spawn(command[0], command, env))


def _guard(parent: int, start: Callable[[], int]) -> int:
    """Guard what `start` returns the pid of, to its end or that of the parent."""

    def heard(_number: int, _frame: FrameType | None) -> None:
        if os.getppid() != parent:  # else somebody signals every process of a job
            kill_children(os.getpid())
            os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, heard)
    # What comes just before a wait is heard only after it.
    signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
    die_with_parent(parent, signal.SIGTERM)
    adopt_orphans()
    pid = start()
    status = 0
    ended = 0
    while ended != pid:
        ended, status = os.wait()  # orphans that end are waited for as well
    if _has_children():
        _end_what_is_left()
    signal.setitimer(signal.ITIMER_REAL, 0)  # Python takes its handlers away while it ends
    return _ended_alike(os.waitstatus_to_exitcode(status))


def _has_children() -> bool:
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
        return True
    return False


def _end_what_is_left() -> None:
    deadline = time.monotonic() + _GRACE_S
    while (left := living_children(os.getpid())) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in left:
        with suppress(psutil.Error, OSError):  # it has ended, or the console is gone
            words = shorten(" ".join(process.cmdline()) or process.name(), 70)
            told = f"the run left process {process.pid} behind, which is ended now: {words}"
            print(f"WARNING: {told}", flush=True)
    kill_children(os.getpid())


def _ended_alike(code: int) -> int:
    """Return an exit code, or die of the signal that it stands for."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
