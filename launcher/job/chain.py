"""The jobs of a chain that still wait: SLURM is told which nodes they are not to get.

A job that is requeued leaves out bad nodes by itself (`requeue`). Those of a chain are all in the
queue before anybody knows of one.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm.client import hostnames, pairs_of, scontrol

UNHURRIED_S, HURRIED_S = 30.0, 5.0  # for all of them; the latter where SLURM ends the job soon
_FORGOTTEN = "Invalid job id"  # SLURM's words for a job that has ended a while ago


def leave_out(run: RunDir, job: str, within_s: float) -> None:
    """Have the jobs of a chain that wait behind this one leave out the bad nodes, and no others.

    Says it in a line where SLURM does not do it, or does not answer in time: that ends nothing, for
    each job checks its nodes.
    """
    folder = SlurmFolder.of(run)
    ever = {name for one in folder.attempts() for name in one.bad_nodes} | {*folder.bad_nodes()}
    asked = folder.asked()
    if asked.get("restart") != "chain" or not ever:
        return
    news = _News(asked["exclude"] or "", sorted(folder.bad_nodes()), ever, within_s)
    if in_vain := list(filter(None, [news.tell(name) for name in _behind(folder, job)])):
        print(in_vain[0], file=sys.stderr, flush=True)


def _behind(folder: SlurmFolder, job: str) -> Iterator[str]:
    """Give the names of the jobs that were submitted to follow a job."""
    jobs = iter(folder.jobs())
    any(one.name == job for one in jobs)  # up to this one
    return (one.name for one in jobs)


@dataclass
class _News:
    """What jobs are to be told, and for how long SLURM is asked to."""

    exclude: str  # what was asked for when they were submitted
    bad: list[str]
    ever: set[str]  # those that were bad at some time: one is forgiven that is like all others
    within_s: float
    began: float = field(default_factory=time.monotonic)

    def tell(self, name: str) -> str:
        """Tell a job, where it waits and does not know; returns SLURM's words against it."""
        shown = self._ask("show", "job", "-o", name)
        state = pairs_of(shown.stdout)
        if shown.returncode or state.get("JobState") != "PENDING":
            forgotten = not shown.returncode or _FORGOTTEN in shown.stderr
            return "" if forgotten else self._in_vain(name, shown)
        now = state.get("ExcNodeList", "").replace("(null)", "")
        if (nodes := self._nodes(now)) == now:
            return ""
        done = self._ask("update", f"JobId={name}", f"ExcNodeList={nodes}")
        return self._in_vain(name, done) if done.returncode else ""

    def _nodes(self, now: str) -> str:
        """Return all that a job is to leave out: what a template says, or a hand, stays."""
        known = self.ever.union(hostnames(self.exclude))
        others = [name for name in hostnames(now) if name not in known]
        return ",".join(filter(None, [self.exclude, *others, *self.bad]))

    def _ask(self, *words: str) -> "subprocess.CompletedProcess[str]":
        left_s = self.began + self.within_s - time.monotonic()
        if left_s > 0:
            return scontrol(*words, timeout_s=left_s)
        return subprocess.CompletedProcess(words, 1, "", "no time is left")

    def _in_vain(self, name: str, done: "subprocess.CompletedProcess[str]") -> str:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        nodes = ", ".join(self.bad) or "no node any more"
        return f"job {name} is not told to leave out {nodes}: {said}"
