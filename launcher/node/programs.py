"""The agent of one node for a script: starts its processes, watches them, tells how each ended.

    python -m launcher.node.start programs RUN_DIR PLAN COMMAND…

Each process is a fresh interpreter with nothing of ours in it. torch is imported here only once
all are on their way, and only for the store in which they meet.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from launcher.around import AGENT
from launcher.node.company import Company
from launcher.processes import die_with_parent, without_ours
from launcher.ranks.interface import choose
from launcher.run import mark
from launcher.run.directory import RunDir
from launcher.script.ends import START_AGAIN, End, Ends
from launcher.script.plan import Plan

_GRACE_S = 5.0  # what processes get to end by themselves when another has failed
_OWN_END_S = 1.0  # for who has failed, too, or first, and still clears up: what it says counts
_POLL_S = 0.01
_RESET = (signal.SIGUSR1, signal.SIGUSR2)  # which this process does not leave at their defaults


@dataclass
class _Process:
    rank: int
    popen: "subprocess.Popen[bytes]"
    log_from: int  # bytes
    told: bool = False  # to end, for another has failed
    beats: int = -1  # signs of life, when last looked at


@dataclass
class _Requests:
    """What the launcher has asked for; it may say so before the processes are there."""

    stop: bool = False
    stacks: bool = False

    def hear(self, number: int, _frame: FrameType | None) -> None:
        """Note a request; a scheduler's signals go to every process, and are the launcher's."""
        self.stop |= number == signal.SIGUSR1
        self.stacks |= number == signal.SIGUSR2


@dataclass
class _Team:
    """The processes of this machine."""

    run: RunDir
    plan: Plan
    company: Company
    requests: _Requests
    living: list[_Process] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)
    asked_at: float | None = None  # when they were asked to stop
    failed_at: float | None = None  # when one had failed, here or elsewhere
    told_at: float | None = None  # when the others were told to end

    def watch(self) -> None:
        """See all processes to their end."""
        while self.living:
            self._collect()
            if self.requests.stacks:
                self.requests.stacks = False
                self._signal(signal.SIGABRT)  # Python's own handler writes all stacks
            if (self.requests.stop or self.company.asked) and self.asked_at is None:
                self._ask()
            self._end_others()
            time.sleep(_POLL_S)

    def _collect(self) -> None:
        for process in self.living.copy():
            code = process.popen.poll()
            if code is None:
                continue
            self.living.remove(process)
            end = End(
                *(process.rank, code, time.time(), socket.gethostname()),
                *(process.log_from, not process.told),
            )
            self.ends.append(end)
            if code and self.failed_at is None:
                self.failed_at = time.monotonic()
                self.company.tell_failed()

    def _ask(self) -> None:
        """Ask the processes to stop, once: from now on their own time counts, not the agent's."""
        self.asked_at = time.monotonic()
        self._signal(signal.Signals[f"SIG{self.plan.stop_signal}"])
        self.company.tell_asked()

    def _end_others(self) -> None:
        """End those that are left where one has failed, or where their time to stop is over."""
        now = time.monotonic()
        if self.asked_at is not None:
            if self.plan.grace is not None and now - self.asked_at >= self.plan.grace:
                self._signal(signal.SIGKILL)
            return
        if self.failed_at is None and self.company.failed:
            self.failed_at = now
        if self.failed_at is None:
            return
        again = any(end.code == START_AGAIN for end in self.ends)  # as the others may want, too
        if self.told_at is None and now - self.failed_at >= (_GRACE_S if again else _OWN_END_S):
            self.told_at = now
            for process in self.living:
                process.told = True
            self._signal(signal.SIGTERM)
        elif self.told_at is not None and now - self.told_at >= _GRACE_S:
            if self._somebody_saves():
                self.told_at = now - _GRACE_S + 3 * mark.BEAT_S
            else:
                self._signal(signal.SIGKILL)

    def _somebody_saves(self) -> bool:
        """Whether a process gives signs of life, as one does that waits for a disk."""
        alive = False
        for process in self.living:
            found = mark.read(self.run.mark(process.rank))
            beats = found.beats if found else -1
            alive |= beats > max(process.beats, 0)
            process.beats = beats
        return alive

    def _signal(self, number: signal.Signals) -> None:
        for process in self.living:
            with suppress(ProcessLookupError):
                process.popen.send_signal(number)


def main(arguments: list[str]) -> NoReturn:
    """Run a command as all processes of this machine; leaves with 0, or 1 where one failed."""
    folder, told, *command = arguments
    run, plan, requests = RunDir(Path(folder)), Plan(**json.loads(told)), _Requests()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *_RESET):
        signal.signal(number, requests.hear)
    if plan.nnodes > 1:
        choose(plan.host)
    company = Company(plan)
    team = _Team(run, plan, company, requests)
    team.living = [_start(run, plan, company, rank, command) for rank in plan.ranks]
    company.gather()
    team.watch()
    failed = any(end.code for end in team.ends)
    Ends(team.ends, team.asked_at is not None).write(run, plan.node_rank)
    company.leave()
    sys.stdout.flush()
    os._exit(1 if failed else 0)  # whatever torch has begun in the meantime


def _start(
    run: RunDir, plan: Plan, company: Company, rank: int, command: Sequence[str]
) -> _Process:
    first = rank == 0
    env = without_ours(os.environ) | plan.place(rank, company.port) | {AGENT: str(os.getpid())}
    with run.log(rank).open("ab") as log:
        popen = subprocess.Popen(
            command,
            env=env | (dict(plan.first) if first else {}),
            stdin=None if first and plan.stdin else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # what it signals as its own group is its own
            preexec_fn=partial(_in_child, os.getpid(), plan),  # noqa: PLW1509  # it has no other thread yet
        )
        return _Process(rank, popen, log.tell())


def _in_child(parent: int, plan: Plan) -> None:
    for number in _RESET:
        signal.signal(number, signal.SIG_DFL)
    if plan.managed and plan.stop_signal != "USR1":
        # SLURM may send its warning to every process, who would die of it. Lightning, which would
        # requeue the job itself then, leaves a signal alone that is not at its default.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    die_with_parent(parent)
