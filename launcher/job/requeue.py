"""Put a job back into the queue: asked again for as long as SLURM does not answer.

A controller that restarts, or moves to another machine, is away for seconds to hours, and just then
a job may want to go on. Nobody else gets its nodes while it waits.
"""

import time

from launcher.errors import Stopped
from launcher.run.directory import RunDir, read_json, write_json
from launcher.slurm.client import job_state, scontrol

_AGAIN_S = 5.0  # between two tries
_REFUSED_S = 60.0  # how long a controller that answers may refuse
_SILENT_S = 86400.0  # how long it may not answer; SLURM's own time limit ends the script before


def requeue(run: RunDir, job: str, exclude: str) -> None:
    """Requeue the job that calls this, and have its next start leave out some nodes.

    SLURM ends the job's script right behind, and this process after the site's KillWait. Raises
    Stopped with SLURM's words where it refuses, and leaves them in the run's result.
    """
    try:
        _until_done(job, "requeue", job)
    except Stopped as error:
        write_json(run.result, (read_json(run.result) or {}) | {"error": error.message})
        raise
    if exclude:  # only a job that waits can be told
        _until_done(job, "update", f"JobId={job}", f"ExcNodeList={exclude}")


def _until_done(job: str, *words: str) -> None:
    """Ask scontrol for something until it is done; raises Stopped where it will not be."""
    began = refused = time.monotonic()
    told = False
    while (done := scontrol(*words)).returncode:
        said = " ".join((done.stderr or done.stdout).split())
        state, now = job_state(job).get("JobState"), time.monotonic()
        if state == "PENDING" and words[0] == "requeue":
            return  # it was done, and only the answer was lost
        refused = refused if state else now
        gone = state not in (None, "RUNNING") and words[0] == "requeue"  # ended by somebody else
        if gone or now - refused > _REFUSED_S or now - began > _SILENT_S:
            hint = "`launcher resubmit RUN_DIR` goes on from the last checkpoint"
            raise Stopped(f"scontrol {words[0]} failed, the job does not go on: {said}", hint=hint)
        if not told:
            print(f"scontrol {words[0]} failed, and is tried again: {said}", flush=True)
            told = True
        time.sleep(_AGAIN_S)
