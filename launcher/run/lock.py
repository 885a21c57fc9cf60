"""One writer to a run directory: a lock that tells who holds it and that a dead holder loses."""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from launcher.errors import RunDirError
from launcher.files import read_json
from launcher.run.directory import RunDir

HEARTBEAT_S = 5.0
STALE_AFTER_S = 60.0  # a holder on another machine that has been silent for so long is dead


@contextmanager
def held(run: RunDir) -> Iterator[None]:
    """Hold the lock of a run directory; raises RunDirError where a living process holds it."""
    if run.is_copy:
        hint = "`launcher resubmit` of it goes on with it there"
        raise RunDirError(f"`{run.path}` is a copy of what a run at another host tells", hint=hint)
    me = _take(run.lock)
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(run.lock, me, done), name="lock", daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        if read_json(run.lock) == me:  # and not somebody's who thought this process dead
            run.lock.unlink(missing_ok=True)


def holder(path: Path) -> str | None:
    """Return who holds a lock, None where nobody living does."""
    owner = read_json(path)
    if owner is None or not owner.keys() >= {"host", "pid", "started"}:  # nobody's: not ours
        return None
    if owner["host"] == socket.gethostname():
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(owner["pid"])
            same = abs(process.create_time() - owner["started"]) < 1
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return f"process {owner['pid']} on {owner['host']}"
        return None
    silent_s = _now_there(path.parent) - path.stat().st_mtime
    return None if silent_s > STALE_AFTER_S else f"process {owner['pid']} on {owner['host']}"


def _take(path: Path) -> dict[str, Any]:
    me: dict[str, Any] = {
        "token": secrets.token_hex(8),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "job": os.environ.get("SLURM_JOB_ID"),
    }
    beside = path.with_name(f".lock.{secrets.token_hex(4)}.tmp")
    beside.write_text(json.dumps(me), encoding="utf-8")
    try:
        with _one_at_a_time(path.parent):
            if living := holder(path):
                raise RunDirError(
                    f"`{path.parent}` is in use by {living}",
                    hint="wait for it to end or stop it; two writers would spoil the run",
                )
            beside.replace(path)
        return me
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time look at the lock and take it, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot lock a folder
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _beat(path: Path, me: dict[str, Any], done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S):
        with suppress(OSError):
            if read_json(path) == me:
                os.utime(path)


def _now_there(folder: Path) -> float:
    """Return the time by the clock of the folder's file system: machines' clocks differ."""
    probe = folder / f".clock.{secrets.token_hex(4)}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)
