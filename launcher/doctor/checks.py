"""Checks of one machine that need no torch: each is ok, or says what is wrong and what to do."""

import errno
import netrc
import os
import platform
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from launcher.files import sync, without

T = TypeVar("T")

PACKAGES = ("torch", "accelerate")
CLOCKS_S = 5.0  # what clocks may differ
_ANSWER_S = 20  # for a disk or a name server
_LEAVE_S = 5  # to clear up
_DISK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Check:
    """What was looked at, and what was found."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    blames: bool = False  # whether a failure is this machine's own, and not the network's
    figures: dict[str, float] = field(default_factory=dict)  # s, bytes, bytes_per_s


def versions() -> Check:
    """Check that the packages which train are installed here."""
    found = [f"python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            remedy = f"install launcher with its dependencies: pip install {package}"
            return Check("versions", False, f"{package} is not installed", remedy, True)
    return Check("versions", True, ", ".join(found))


def host_name() -> Check:
    """Check that this machine's name leads to an address, and soon: torchrun waits in silence."""
    name = socket.gethostname()
    remedy = f"add a line for {name} to /etc/hosts, or mend the name server"
    try:
        address, seconds = _timed(lambda: socket.gethostbyname(name))
    except (OSError, TimeoutError) as error:
        return Check("host name", False, f"{name} has no address: {error}", remedy, True)
    return Check("host name", True, f"{name} is {address}", figures={"s": seconds})


def port() -> Check:
    """Check that this machine gives out a port to meet at."""
    try:
        with socket.create_server(("", 0)) as server:
            return Check("port", True, f"port {server.getsockname()[1]} was free")
    except OSError as error:
        return Check("port", False, f"no port is free: {error}", "end what holds them all", True)


def disk(folder: Path) -> Check:
    """Check that a file in the folder can be written, flushed, renamed and read back."""
    remedy = f"free space on the disk of `{folder}`, or give a folder that you may write"
    try:
        _, seconds = _timed(lambda: _write_and_read(folder))
    except (OSError, TimeoutError) as error:
        said = getattr(error, "strerror", None) or str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)  # for all machines
        return Check("disk", False, f"`{folder}` cannot be written: {said}", remedy, not full)
    speed = _DISK_BYTES / seconds
    detail = f"{_DISK_BYTES / 1e6:.0f} MB written and flushed at {speed / 1e6:,.0f} MB/s"
    return Check("disk", True, detail, figures={"s": seconds, "bytes_per_s": speed})


def _write_and_read(folder: Path) -> None:
    content = os.urandom(2**20) * (_DISK_BYTES // 2**20)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
        written, renamed = Path(place, "new"), Path(place, "file")
        written.write_bytes(content)
        sync(written)
        written.rename(renamed)
        if renamed.read_bytes() != content:
            raise OSError(0, "what was written is not what is read")


def file_system(folder: Path) -> Check:
    """Tell what the folder's file system cannot do of what a run would use; it does without."""
    try:
        said, _ = _timed(lambda: without(folder))
    except (OSError, TimeoutError) as error:
        return Check("file system", False, str(error), "see `disk`")
    return Check("file system", True, said or "can do all that runs use")


def clock(folder: Path) -> Check:
    """Check this machine's clock against that of the folder's file system."""
    remedy = "have it set by NTP (chrony): logs, locks and rendezvous go by it"
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder) as file:
            off_s = time.time() - Path(file.name).stat().st_mtime
    except OSError as error:
        return Check("clock", False, f"nothing to compare it with: {error.strerror}", remedy)
    detail = f"{off_s:+.2f} s from that of `{folder}`"
    return Check("clock", abs(off_s) < CLOCKS_S, detail, remedy, True, {"s": off_s})


def wandb() -> Check:
    """Tell whether there are credentials for Weights & Biases; a run needs none."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        stored = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        stored = None
    if stored or os.environ.get("WANDB_API_KEY"):
        return Check("wandb", True, f"credentials for {host}")
    return Check("wandb", True, "no credentials: metrics stay in run directories (`wandb login`)")


def node_checks(folder: Path) -> list[Check]:
    """Check what a machine needs to train in a folder, but for its processes; under a second."""
    return [versions(), host_name(), port(), disk(folder), file_system(folder), clock(folder)]


def _timed(do: Callable[[], T]) -> tuple[T, float]:
    """Return what a call returns and its seconds; raises TimeoutError when it takes too long.

    A call to a disk or name server that is gone can't be interrupted: it is left behind.
    """
    outcome: list[T | Exception] = []

    def call() -> None:
        try:
            outcome.append(do())
        except Exception as error:  # noqa: BLE001  # raised below, in the caller's thread
            outcome.append(error)

    began = time.perf_counter()
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    try:
        thread.join(_ANSWER_S)
    except BaseException:  # this process is to end: first the call clears up what it has made
        thread.join(_LEAVE_S)
        raise
    if not outcome:
        raise TimeoutError(f"no answer in {_ANSWER_S} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0], time.perf_counter() - began
