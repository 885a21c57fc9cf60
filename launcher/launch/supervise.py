"""Run one command to its end: pass stop requests on, notice a hang, leave nobody behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Protocol

import psutil

from launcher.processes import children, kill_tree, on_stop_signals
from launcher.run import mark

_POLL_S = 0.05
_TWICE_S = 0.1  # within which a request is heard twice: `timeout` tells a process, and its group
_ASK_AGAIN_S = 1.0  # a worker that has just started does not hear yet
_LOOK_S = 0.5  # between two looks at how far the ranks are
_LOOK_AROUND_S = 5.0  # and at other machines
_DUMP_S = 1.0  # what writing all stacks may take
_SAY_AFTER_S = 5.0  # how long imports have to take to be worth a word on a terminal
_SAY_IN_LOG_S = 30.0  # and elsewhere
_LONG_S = 60.0  # and how long a start has to last for its limit to be worth one


class Watch(Protocol):
    """Looks at what a command does; called many times a second."""

    def verdict(self) -> str | None:
        """Return what hangs, None while nothing does."""


class HangWatch:
    """Notices that no rank of this machine makes progress, and which one is behind.

    A first step may take `start_timeout_s`, and so may a disk: meanwhile a rank gives signs of
    life. Where all ranks wait for those of other machines, those machines' watches judge.
    `deserted` tells whether other machines, without which no rank begins, have left.
    """

    def __init__(
        self,
        marks: Mapping[int, Path],
        timeout_s: float,
        start_timeout_s: float,
        deserted: Callable[[], bool] | None = None,
    ) -> None:
        self._paths, self._timeout_s, self._start_timeout_s = marks, timeout_s, start_timeout_s
        self._deserted = deserted
        self._marks: dict[int, mark.Mark] = {}
        self._began = self._looked = self._stirred = self._got_on = time.monotonic()
        self._looked_around = self._began
        self._said = set[str]()

    def verdict(self) -> str | None:
        """Return what hangs, None while ranks get on or wait for something in good time."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return None
        self._looked = now
        marks = {rank: mark.read(path) or mark.Mark(0, 0, 0) for rank, path in self._paths.items()}
        waiting = all(found.waiting for found in marks.values())
        if waiting or marks != self._marks:
            self._stirred = now
        if waiting or _stages(marks) != _stages(self._marks):
            self._got_on = now
        self._marks = marks
        started = all(found.steps for found in marks.values())
        if not started:
            self._say_what_it_does(now - self._began)
        if self._is_in_vain(now):
            return "the machines that it waited for have left"
        patience_s = self._timeout_s if started else self._start_timeout_s
        if now - self._stirred >= patience_s:
            return f"no progress for {patience_s:g} s: {_who(marks)}"
        if now - self._got_on >= max(self._timeout_s, self._start_timeout_s):
            return f"waited for a disk for {now - self._got_on:.0f} s: {_who(marks)}"
        return None

    def _is_in_vain(self, now: float) -> bool:
        if self._deserted is None or now - self._looked_around < _LOOK_AROUND_S:
            return False
        self._looked_around = now
        return not any(path.exists() for path in self._paths.values()) and self._deserted()

    def _say_what_it_does(self, seconds: float) -> None:
        """Say why nothing is said, once each; what ranks do once they are there, they say."""
        after_s = _SAY_AFTER_S if sys.stderr.isatty() else _SAY_IN_LOG_S
        if seconds > after_s and not self._all_there():
            self._say_once("importing torch and the recipe", seconds)
        if seconds > _LONG_S:
            limit = f"start_timeout={self._start_timeout_s:g} ends a run that does nothing so long"
            self._say_once(f"no step yet; {limit}", seconds)

    def _say_once(self, words: str, seconds: float) -> None:
        if words not in self._said:
            self._said.add(words)
            print(f"{words} ({seconds:.0f} s)", file=sys.stderr)

    def _all_there(self) -> bool:
        return all(path.exists() for path in self._paths.values())


def _stages(marks: Mapping[int, mark.Mark]) -> list[tuple[int, int]]:
    """Return how far ranks have got: all but signs of life."""
    return [(found.ticks, found.steps) for found in marks.values()]


def _who(marks: Mapping[int, mark.Mark]) -> str:
    """Return which rank keeps the others waiting."""
    silent = {rank: found for rank, found in marks.items() if not found.waiting} or marks
    if unready := [rank for rank, found in silent.items() if not found.steps]:
        return f"rank {unready[0]} was not ready for its first step"
    behind = min(silent, key=lambda rank: silent[rank].ticks)
    steps = silent[behind].steps
    if len(silent) > 1 and len({found.ticks for found in silent.values()}) == 1:
        return f"all ranks were equally far, in step {steps}"
    return f"rank {behind} was behind, in step {steps}"


class Supervisor:
    """Runs one command to its end and passes stop requests on to its workers.

    The first Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 asks the workers to stop after the step; a second
    Ctrl-C or SIGTERM ends everything at once, unless it is patient: SLURM says everything twice.
    So do shells when a connection is lost, and SIGUSR1 comes before SIGTERM.
    """

    def __init__(
        self,
        *,
        patient: bool = False,
        on_stop: Callable[[], None] | None = None,
        asking: str = "stopping after this step",
    ) -> None:
        self._patient, self._on_stop, self._asking = patient, on_stop, asking
        self.requests = 0  # to stop, by any signal
        self._urgent_at: float | None = None  # when first by a signal that somebody sends
        self.forced = False
        self.hang: str | None = None  # what hung

    def run(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        log: Path,
        watch: Watch,
        *,
        stdin: int | None = subprocess.DEVNULL,
    ) -> int:
        """Return the command's exit code; its standard error goes to `log`.

        The command has a session of its own, so that the terminal's Ctrl-C reaches only this
        process; it ignores SIGUSR1 until a worker says otherwise, since torchrun dies of it. A
        guard runs it, who leaves nothing of it behind.
        """
        self.hang = None
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        with log.open("ab") as agent_log:
            process = subprocess.Popen(
                [sys.executable, "-m", "launcher.node.guard", *argv],
                env=dict(env),
                stdin=stdin,
                stderr=agent_log,
                start_new_session=True,
            )
        with on_stop_signals(self._hear):
            try:
                self._wait(process, watch, is_agent="agent" in argv)
            finally:
                if process.poll() is None or self.forced:
                    kill_tree(process.pid)
                    process.wait()
        return process.returncode

    def _wait(self, process: "subprocess.Popen[bytes]", watch: Watch, *, is_agent: bool) -> None:
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

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            now = time.monotonic()
            self._urgent_at = self._urgent_at or now
            self.forced |= now - self._urgent_at > _TWICE_S and not self._patient
        self.requests += 1
        if self.requests == 1:
            again = "" if self._patient else "; Ctrl-C again stops at once"
            print(f"{self._asking}{again}", file=sys.stderr)
            if self._on_stop:  # now: SLURM may lose its patience
                self._on_stop()


def _tell_workers(guard: int, number: signal.Signals, *, is_agent: bool) -> None:
    """Send a signal to the training processes: the agent would die of it."""
    workers = _first_child(_first_child([guard]))  # of the guard within the guard
    if is_agent and workers:
        workers = [child.pid for child in children(workers[0], recursive=False)]
    for worker in workers:
        with suppress(psutil.NoSuchProcess):
            psutil.Process(worker).send_signal(number)


def _first_child(pids: Sequence[int]) -> list[int]:
    """Return the first child of a process: a guard adopts others later."""
    found = children(pids[0], recursive=False) if pids else []
    return [child.pid for child in sorted(found, key=lambda child: child.create_time())[:1]]
