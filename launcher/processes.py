"""What the operating system knows of processes: their cores, parents that die, trees to signal."""

import ctypes
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
PARENT = "LAUNCHER_PARENT"  # environment variable: the pid of the process that starts another
HERE = "LAUNCHER_HERE"  # environment variable: where the command was given, if not in this folder
LOADED = "LAUNCHER_LOADED"  # a file in which a process notes that it could import what it needs
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
    """Return a path for people to paste into a shell.

    It is found from the folder where the user gave the command; whole where it lies outside of it,
    as for a job, whose folder is one that nobody goes to.
    """
    found = os.path.relpath(path, os.environ.get(HERE))
    if Path(found).parts[:1] == (os.pardir,):
        found = os.path.abspath(path)  # noqa: PTH100  # not `absolute`, which keeps ".."
    return shlex.quote(f"./{found}" if found.startswith("-") else found)


@contextmanager
def orderly(error: BaseException) -> Iterator[None]:
    """Have SIGTERM raise an error instead of ending this process, so that it can clear up."""

    def hear(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)  # who says it twice gets no second error
        raise error

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def cores() -> int:
    """Return how many cores this process may use.

    Those it may run on; no more than SLURM gave to it, where nothing binds it to them, and than the
    quota of its container, a part of a core left out.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    given = (os.environ.get(name, "") for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"))
    limits = [int(number) for number in given if number.isdigit() and int(number)]
    return max(1, min([len(os.sched_getaffinity(0)), *limits, *map(int, _quotas())]))


def _quotas() -> Iterator[float]:
    """Give the cores that this process's cgroups, and those above them, may keep busy."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the name may be the host's: what is mounted begins at the container's own.
        own = Path(name.lstrip("/"))
        for folder in (own, *own.parents):
            with suppress(OSError, ValueError):  # no such file, or no quota: "max", -1
                yield _quota(folder, version=1 if controllers else 2)


def _quota(folder: Path, version: int) -> float:
    """Return the cores of one cgroup; raises OSError or ValueError where it has no quota."""
    if version == 2:
        quota, period = (_CGROUPS / folder / "cpu.max").read_text(encoding="utf-8").split()
    else:
        place = _CGROUPS / "cpu" / folder
        quota, period = ((place / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
    if int(quota) <= 0:
        raise ValueError("no quota")
    return int(quota) / int(period)


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
