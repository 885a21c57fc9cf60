"""What the operating system knows of processes: their cores, parents that die, trees to signal."""

import ctypes
import gc
import os
import re
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
PARENT = "LAUNCHER_PARENT"  # environment variable: the pid of the process that starts another
HERE = "LAUNCHER_HERE"  # environment variable: where the command was given, if not in this folder
MEETING = "LAUNCHER_MEETING"  # a folder in which the machines of a job tell where they meet
LOADED = "LAUNCHER_LOADED"  # a file in which a process notes that it could import what it needs
# What torch, Accelerate and torchrun take for the place of a process, or of a machine, in a world.
_WORLD = re.compile(
    r"(NODE_|GROUP_|LOCAL_|ROLE_|CROSS_)?RANK|((GROUP|LOCAL|ROLE)_)?WORLD_SIZE|ROLE_NAME"
    r"|MASTER_(ADDR|PORT)|MPI_LOCALN?RANK\w*"
    r"|(PET|TORCHELASTIC|ACCELERATE|PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_\w+"
)
_MANY_FILES = 65_536
_PATIENCE_S, _POLL_S = 10.0, 0.01
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
STORE = "LAUNCHER_STORE"  # the file through which the processes of one machine meet
_CLOSE_ON_EXEC = 1  # linux/memfd.h


def die_with_parent(parent: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when its parent, with that pid, dies (Linux only).

    Without it a SIGKILL of the launcher or the agent would leave workers training on their own.
    """
    if not sys.platform.startswith("linux"):
        return
    _prctl(_PR_SET_PDEATHSIG, int(number))
    if os.getppid() != parent:  # it died before the kernel was told
        os.kill(os.getpid(), number)


def adopt_orphans() -> None:
    """Have the kernel give this process all its descendants that lose their parent (Linux only)."""
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


@contextmanager
def uncollected() -> Iterator[None]:
    """Import without looking for garbage, then or later, among what is to stay.

    It is a fifth of importing torch; and a collection writes to all pages, which forks share.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def without_world(base: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without a place among the processes of a run: the launcher gives it."""
    return {name: value for name, value in base.items() if not _WORLD.fullmatch(name)}


def without_ours(base: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what processes of the launcher tell each other."""
    ours = (PARENT, HERE, MEETING, LOADED, STORE)
    return {name: value for name, value in base.items() if name not in ours}


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


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to stop; nohup has the loss of a terminal ignored."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
    deaf = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return numbers if deaf else [*numbers, signal.SIGHUP]


@contextmanager
def on_stop_signals(hear: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have a handler for the signals that ask a run to stop; afterwards they are as before."""
    before = {number: signal.signal(number, hear) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


def allow_open_files() -> int:
    """Let this process, and those it starts, open many files; returns how many.

    Each connection to a rank is one, and so is each tensor that a data worker hands over.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY  # -1
    wanted = _MANY_FILES if hard == unlimited else min(_MANY_FILES, hard)
    if soft != unlimited and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return soft if soft != unlimited else wanted


def nameless(what: str) -> int:
    """Return the descriptor of an empty file in memory that has no name; raises OSError.

    Only this user's processes can open it, as /proc/PID/fd/DESCRIPTOR, while this one lives.
    """
    # By ctypes: many builds of Python lack os.memfd_create.
    create = getattr(ctypes.CDLL(None, use_errno=True), "memfd_create", None)
    if create is None:
        raise OSError("the C library has no memfd_create")
    descriptor = int(create(what.encode(), _CLOSE_ON_EXEC))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "memfd_create failed")
    return descriptor


def children(pid: int, *, recursive: bool) -> list[psutil.Process]:
    """Return the living children of a process, [] when it is gone."""
    try:
        return psutil.Process(pid).children(recursive=recursive)
    except psutil.NoSuchProcess:
        return []


def living_children(pid: int) -> list[psutil.Process]:
    """Return all that descend from a process and have not ended; the ended are waited for.

    All but Python's own that clears up shared memory behind others, and then ends.
    """
    living = []
    for process in children(pid, recursive=True):
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.status() != psutil.STATUS_ZOMBIE:
                if not any("multiprocessing.resource_tracker" in w for w in process.cmdline()):
                    living.append(process)
            elif process.ppid() == os.getpid():
                os.waitpid(process.pid, os.WNOHANG)
    return living


def kill_children(pid: int) -> None:
    """SIGKILL all that descend from a process, and what they start meanwhile, until all are gone.

    Gives up after a while: the kernel may keep one that waits for a disk.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (doomed := living_children(pid)) and time.monotonic() < deadline:
        for process in doomed:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_POLL_S)


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that descend from it."""
    kill_children(pid)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
