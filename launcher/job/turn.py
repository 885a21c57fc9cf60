"""Whose turn it is to write to a run directory: of several jobs, one at a time."""

import os
import time

from launcher.errors import RunDirError
from launcher.files import read_json
from launcher.run import lock
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.slurm.client import job_state

_PATIENCE_S = lock.STALE_AFTER_S + 15
_LIVE = {"RUNNING", "SUSPENDED", "STOPPED", "COMPLETING"}


def wait_for_turn(run: RunDir, job: str) -> None:
    """Wait until nobody else writes to a run; raises RunDirError where somebody goes on.

    A writer on a lost node counts as dead after a while.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while living := lock.holder(run.lock) or _begun(run, job):
        if time.monotonic() > deadline:
            hint = "it may run on a node that SLURM has lost sight of"
            raise RunDirError(f"`{run.path}` is still in use by {living}", hint=hint)
        time.sleep(1)


def taken_over(run: RunDir, job: str, restart: int) -> str | None:
    """Return who writes to a run in the place of this start of a job, None where nobody does."""
    attempts = SlurmFolder.of(run).attempts()
    if attempts and (attempts[-1].job, attempts[-1].restart) != (job, restart):
        return f"job {attempts[-1].job}"
    owner = read_json(run.lock) or {}
    return None if owner.get("job") == os.environ.get("SLURM_JOB_ID") else lock.holder(run.lock)


def _begun(run: RunDir, job: str) -> str | None:
    """Return another job that has begun with a run and is there still, whoever has the lock.

    Nobody has between a job's beginning and its first process.
    """
    folder = SlurmFolder.of(run)
    attempts = folder.attempts()
    if not attempts or attempts[-1].verdict or attempts[-1].job == job:
        return None
    state = job_state(attempts[-1].job)
    # Its script tells that it is a job of this run's: one made with --local has a made-up number.
    scripts = (folder.batch, SlurmFolder.of(RunDir(run.path.parent)).batch)
    is_this_runs = state.get("Command") in [str(script).split()[0] for script in scripts]
    return f"job {attempts[-1].job}" if is_this_runs and state["JobState"] in _LIVE else None
