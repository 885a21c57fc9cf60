"""Put a job back into the queue: asked again for as long as SLURM does not answer.

A controller that restarts, or moves to another machine, is away for seconds to hours, and just then
a job may want to go on. Nobody else gets its nodes while it waits.

Only a job that waits can be told which nodes to leave out, and by then SLURM is ending its script.
So they are written down before; a start that comes to one of them all the same goes back once more.
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from launcher.errors import Stopped
from launcher.files import read_json, write_json
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm.client import hostnames, job_state, scontrol

_FIRST_S, _AGAIN_S = 0.2, 5.0  # between two tries: ever longer, but no longer than this
_REFUSED_S = 60.0  # how long a controller that answers may refuse
_SILENT_S = 86400.0  # how long it may not answer; SLURM's own time limit ends the script before
_TIMES = 3  # that a job goes back for nodes that SLURM does not hear of


def requeue(run: RunDir, job: str, exclude: str, times: int = 0) -> None:
    """Requeue the job that calls this, and have its next start leave out some nodes.

    SLURM ends the job's script right behind, and this process after the site's KillWait. Raises
    Stopped with SLURM's words where it refuses, and leaves them in the run's result. `times` is how
    often that was done in vain before.
    """
    untold = SlurmFolder.of(run).untold
    if exclude:
        with suppress(OSError):  # a full disk is no reason not to go on
            write_json(untold, {"job": job, "exclude": exclude, "times": times})
    with _unmoved():
        try:
            _until_done(job, "requeue", job)
        except Stopped as error:
            untold.unlink(missing_ok=True)
            write_json(run.result, (read_json(run.result) or {}) | {"error": error.message})
            raise
        if exclude:
            _until_done(job, "update", f"JobId={job}", f"ExcNodeList={exclude}")
        untold.unlink(missing_ok=True)


def goes_elsewhere(run: RunDir, job: str, nodes: str) -> bool:
    """Requeue a job that has come to nodes which it is to leave out; returns whether it was done.

    That is no start of the job's: nothing has been tried there.
    """
    folder = SlurmFolder.of(run)
    told = read_json(folder.untold) or {}
    if told.get("job") != job or told["times"] >= _TIMES:
        return False
    unwanted = [name for name in hostnames(nodes) if name in hostnames(told["exclude"])]
    if len(unwanted) <= folder.asked().get("spare_nodes", 0):
        return False
    words = f"job {job} leaves out {', '.join(unwanted)}: back into the queue"
    print(words, file=sys.stderr, flush=True)  # what scripts read is on the standard output
    requeue(run, job, told["exclude"], told["times"] + 1)
    return True


@contextmanager
def _unmoved() -> Iterator[None]:
    """Have this process, and commands that it starts, outlive the signals that a requeue causes."""
    numbers = (signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _until_done(job: str, *words: str) -> None:
    """Ask scontrol for something until it is done; raises Stopped where it will not be."""
    began = refused = time.monotonic()
    wait_s = 0.0
    while (done := scontrol(*words)).returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
        if not wait_s:  # said before the next question, which a silent controller makes a long one
            again = f"scontrol {words[0]} failed, and is tried again while the job is there: {said}"
            print(again, file=sys.stderr, flush=True)
        state, now = job_state(job).get("JobState"), time.monotonic()
        if state == "PENDING" and words[0] == "requeue":
            return  # it was done, and only the answer was lost
        refused = refused if state else now
        gone = state not in (None, "RUNNING") and words[0] == "requeue"  # ended by somebody else
        if gone or now - refused > _REFUSED_S or now - began > _SILENT_S:
            hint = "`launcher resubmit RUN_DIR` goes on from the last checkpoint"
            raise Stopped(f"scontrol {words[0]} failed, the job does not go on: {said}", hint=hint)
        wait_s = min(2 * wait_s or _FIRST_S, _AGAIN_S)
        time.sleep(wait_s)
