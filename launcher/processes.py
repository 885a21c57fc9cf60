"""What the operating system knows of processes: their cores, parents that die, trees to signal."""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil

PARENT = "LAUNCHER_PARENT"  # environment variable: the pid of the process that starts another
HERE = "LAUNCHER_HERE"  # environment variable: where the command was given, if not in this folder
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int) -> None:
    """Have the kernel SIGKILL this process when its parent, with that pid, dies (Linux only).

    Without it a SIGKILL of the launcher or the agent would leave workers training on their own.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def shown(path: Path) -> str:
    """Return a path as it is found from the folder where the user gave the command."""
    return os.path.relpath(path, os.environ.get(HERE))


def cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def children(pid: int, *, recursive: bool) -> list[psutil.Process]:
    """Return the living children of a process, [] when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that descend from it, and wait until they are gone."""
    doomed = children(pid, recursive=True)
    for process in doomed:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    psutil.wait_procs(doomed, timeout=10)
