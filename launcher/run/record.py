"""How one process of a run does: its log, and a small JSON record that tells how it ended.

torchrun turns every exit code into 1 and every signal into a stack trace of its own, so what
happened travels in these files. Written by the worker, read by the launcher.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO

import launcher
from launcher.console import Lasting
from launcher.errors import (
    BadInput,
    LauncherError,
    NonFiniteLoss,
    PeerFailed,
    RunDirError,
    SampleFailed,
    Stopped,
    TooLarge,
)
from launcher.files import assets, read_json, write_json
from launcher.processes import shown
from launcher.run.checkpoint_files import all_of
from launcher.run.directory import RunDir

_STEP = "_launcher_step"  # attribute of an exception
State = Literal["running", "completed", "stopped", "failed"]


@dataclass
class Record:
    """Who a rank is and how it ended; "running" at the end means that it died unheard."""

    rank: int
    host: str
    pid: int
    state: State
    time: float  # seconds since 1970, of the last change
    error: str = ""  # "ValueError: what it said"
    hint: str | None = None
    traceback: str = ""  # the whole of it
    users_frames: str = ""  # only what is in the user's files, and the error
    users_mistake: bool = False  # a mistake in what was asked: nothing was trained
    first_cause: bool = True  # False: it failed because another rank had failed
    exit_code: int = 0
    smaller: int | None = None  # a micro-batch size with which to start again at once
    step: int | None = None  # that it failed in, where it was in one
    sample: str = ""  # that could not be loaded

    @classmethod
    def started(cls, rank: int) -> "Record":
        """Return the record of this process at its start."""
        return cls(rank, socket.gethostname(), os.getpid(), "running", time.time())

    def end(self, state: State, error: BaseException | None = None) -> None:
        """Note how the process ended."""
        self.state, self.time = state, time.time()
        if error is None:
            return
        self.error = f"{type(error).__name__}: {error}".removesuffix(": ")
        self.exit_code = 1
        self.step = step_of(error)
        self.first_cause = not (isinstance(error, PeerFailed) or _lost_a_peer(error))
        if isinstance(error, LauncherError):
            self.error, self.hint = error.message, error.hint
            self.exit_code = error.exit_code
            self.users_mistake = isinstance(error, BadInput)
            self.state = "stopped" if isinstance(error, Stopped) else state
            self.smaller = error.smaller if isinstance(error, TooLarge) else None
            if isinstance(error, SampleFailed):
                self.traceback, self.users_frames = error.trace, error.frames
                self.sample = error.sample
        else:
            self.traceback = "".join(traceback.format_exception(error))
            self.users_frames = users_frames(error)
            if type(error).__name__ == "OutOfMemoryError":  # torch's, which this side never imports
                self.hint = "a smaller micro_batch_size needs less memory for the same numbers"

    def write(self, run: RunDir) -> None:
        """Write the record into the run directory; a full or lost disk is no second failure."""
        with contextlib.suppress(OSError):
            write_json(run.record(self.rank), asdict(self))

    def made_again(self, run: RunDir) -> list[str]:
        """Return in words how the step that this rank failed in is made again; [] for no step."""
        if self.step is None:
            return []
        which = f", with sample {self.sample}" if self.sample else ""
        return [f"`launcher debug {shown(run.path)} --step {self.step}` makes it again{which}"]

    @classmethod
    def read_all(cls, run: RunDir, ranks: Iterable[int]) -> "list[Record]":
        """Return the records of those ranks that wrote one, by rank."""
        found = (read_json(run.record(rank)) for rank in ranks)
        return [cls(**record) for record in found if record]


def in_step(error: BaseException, step: int) -> None:
    """Note in which step of the run an error came up."""
    with contextlib.suppress(AttributeError):
        setattr(error, _STEP, step)


def step_of(error: BaseException) -> int | None:
    """Return in which step of the run an error came up, None where that was in none."""
    own = error.step if isinstance(error, NonFiniteLoss) else -1
    return own if own >= 0 else getattr(error, _STEP, None)


def users_frames(error: BaseException) -> str:
    """Return the traceback's frames outside of installed packages, its last one, and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(launcher.__file__).parent) + os.sep
    recipes = str(assets("recipes")) + os.sep
    users = [
        frame
        for frame in frames
        if frame.filename.startswith(recipes)
        or not ("site-packages" in frame.filename or frame.filename.startswith(ours))
    ]
    if frames and frames[-1] not in users:
        users.append(frames[-1])
    return "".join(traceback.format_list(users) + traceback.format_exception_only(error))


def _lost_a_peer(error: BaseException) -> bool:
    """Whether an error says only that another process has gone: gloo's and NCCL's words."""
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    words = ("closed by peer", "Connection reset", "gloo", "NCCL", "Broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def write_result(run: RunDir, world_size: int, error: LauncherError, seconds: float) -> None:
    """Write the result.json of a run that stopped or failed.

    It is what metrics.jsonl knows; `step` is that of the newest checkpoint where that is later.
    """
    last = run.last_report()
    saved = 0
    with contextlib.suppress(OSError, RunDirError):  # of a disk that fails
        saved = max((checkpoint.step for checkpoint in all_of(run.checkpoints)), default=0)
    of_old = last.get("epoch", 0) + (last.get("split") == "test")  # tests were where one ended
    numbers = ("train_loss", "test_loss", "test_accuracy", "test_correct", "test_samples")
    write_json(
        run.result,
        {
            "state": "stopped" if isinstance(error, Stopped) else "failed",
            "epoch": last.get("epochs", of_old),  # whole ones
            "step": max(last.get("step", 0), saved),
            "world_size": world_size,
            **dict.fromkeys(numbers),
            "seconds": seconds,
            "samples_per_second": None,
            "error": error.message,
        },
    )


@contextlib.contextmanager
def logged(run: RunDir, rank: int, *, supervised: bool) -> Iterator[TextIO]:
    """Send what this process says to its log, which is given; rank 0 says it on the console too.

    Under the launcher, file descriptor 2 of every rank and 1 of all but rank 0 go to the log too:
    what C code says while it crashes must not be lost.
    """
    run.logs.mkdir(parents=True, exist_ok=True)
    log = run.log(rank).open("a", encoding="utf-8", buffering=1)
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout.flush()
    sys.stderr.flush()
    if rank == 0:
        # The launcher keeps standard error for the agent: what rank 0 warns of goes to the console.
        sys.stdout = Lasting(stdout, log)
        sys.stderr = Lasting(stdout if supervised else stderr, log)
    sent = ([1] if rank else []) + ([2] if rank or supervised else [])
    before = [(number, os.dup(number)) for number in sent]
    for number in sent:
        os.dup2(log.fileno(), number)
    if sent:
        faulthandler.enable(log)
        # All stacks, when the launcher sees a hang; works with the interpreter's lock held, too.
        faulthandler.register(signal.SIGUSR2, log, all_threads=True)
    try:
        yield log
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = stdout, stderr
        faulthandler.unregister(signal.SIGUSR2)
        faulthandler.disable()
        for number, kept in before:
            os.dup2(kept, number)
            os.close(kept)
        log.close()
