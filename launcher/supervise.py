"""Run one command to its end: pass stop requests on, notice a hang, leave nobody behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from launcher import mark
from launcher.processes import children, kill_tree

_POLL_S = 0.05
_ASK_AGAIN_S = 1.0  # a worker that has just started does not hear yet
_LOOK_S = 0.5  # between two looks at how far the ranks are
_DUMP_S = 1.0  # what writing all stacks may take


class HangWatch:
    """Notices that no rank of this machine makes progress, and which one is behind."""

    def __init__(self, marks: Mapping[int, Path], timeout_s: float) -> None:
        self._paths, self._timeout_s = marks, timeout_s
        self._marks: dict[int, mark.Mark | None] = {}
        self._moved = self._looked = time.monotonic()

    def verdict(self) -> str | None:
        """Return what hangs, None while ranks move or before all have made their first step."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return None
        self._looked = now
        marks = {rank: mark.read(path) for rank, path in self._paths.items()}
        ticks = {rank: found.ticks for rank, found in marks.items() if found and found.steps > 0}
        if marks != self._marks or len(ticks) < len(self._paths):
            self._marks, self._moved = marks, now
        if now - self._moved < self._timeout_s:
            return None
        behind = min(ticks, key=lambda rank: ticks[rank])
        steps = getattr(marks[behind], "steps", 0)
        who = f"rank {behind} was behind, in step {steps}"
        if len(ticks) > 1 and len(set(ticks.values())) == 1:
            who = f"all ranks were equally far, in step {steps}"
        return f"no progress for {self._timeout_s:g} s: {who}"


class Supervisor:
    """Runs one command to its end and passes stop requests on to its workers.

    The first Ctrl-C, SIGTERM or SIGUSR1 asks the workers to stop after the step; a second Ctrl-C
    or SIGTERM ends everything at once, unless it is patient: SLURM says everything twice.
    """

    def __init__(self, *, patient: bool = False) -> None:
        self._patient = patient
        self.requests = 0  # to stop, by any signal
        self._urgent = 0  # by those of a terminal or a shell; SLURM sends SIGUSR1 before SIGTERM
        self.forced = False
        self.hang: str | None = None  # what hung

    def run(self, argv: Sequence[str], env: Mapping[str, str], log: Path, watch: HangWatch) -> int:
        """Return the command's exit code; its standard error goes to `log`.

        The command has a session of its own, so that the terminal's Ctrl-C reaches only this
        process; it ignores SIGUSR1 until a worker says otherwise, since torchrun dies of it.
        """
        self.hang = None
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        with log.open("ab") as agent_log:
            process = subprocess.Popen(
                argv,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stderr=agent_log,
                start_new_session=True,
            )
        with self._listening():
            try:
                self._wait(process, watch, is_agent="agent" in argv)
            finally:
                if process.poll() is None or self.forced:
                    kill_tree(process.pid)
                    process.wait()
        return process.returncode

    def _wait(
        self, process: "subprocess.Popen[bytes]", watch: HangWatch, *, is_agent: bool
    ) -> None:
        asked_at = 0.0
        while process.poll() is None and not self.forced:
            if self.requests and time.monotonic() - asked_at > _ASK_AGAIN_S:
                asked_at = time.monotonic()
                _tell_workers(process.pid, signal.SIGUSR1, is_agent=is_agent)
            self.hang = watch.verdict()
            if self.hang:
                _tell_workers(process.pid, signal.SIGUSR2, is_agent=is_agent)  # dump stacks
                time.sleep(_DUMP_S)
                return
            time.sleep(_POLL_S)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGUSR1:
            self.forced = self._urgent > 0 and not self._patient
            self._urgent += 1
        if not self.requests:
            again = "" if self._patient else "; Ctrl-C again stops at once"
            print(f"stopping after this step{again}", file=sys.stderr)
        self.requests += 1


def _tell_workers(pid: int, number: signal.Signals, *, is_agent: bool) -> None:
    """Send a signal to the training processes: the agent would die of it."""
    pids = [worker.pid for worker in children(pid, recursive=False)] if is_agent else [pid]
    for worker in pids:
        with suppress(ProcessLookupError):
            os.kill(worker, number)
