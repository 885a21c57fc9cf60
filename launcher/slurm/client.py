"""Talk to SLURM: check scripts and submit them."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.errors import BadInput, LauncherError
from launcher.run.job import Job, SlurmFolder

# Words of a client that has lost the controller after asking: the job may be in the queue.
_UNANSWERED = ("timed out", "Zero Bytes were transmitted", "Unexpected message received")
_OF_A_JOB = {
    *("JobState", "Reason", "Command", "NodeList", "ExcNodeList"),
    *("TimeLimit", "RunTime", "TresPerNode"),
}
_ASK_FIRST = "it may have taken the job all the same: `squeue --me` tells; RUN_DIR stays"


class RefusedError(LauncherError):
    """SLURM has said no: nothing of what was asked is queued."""


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return what the client commands and the job get of an environment.

    Inside of a job SLURM's own variables would override directives; outside of one they are the
    site's. SBATCH_ variables have become options (`slurm_options.of_environment`). W&B's service
    belongs to a process that will be gone; so does torchrun's world.
    """
    dropped = ["SBATCH_", "PMI", "TORCHELASTIC_", "PET_", "LOCAL_"]
    if "SLURM_JOB_ID" in base:
        dropped += ["SLURM_", "SLURMD_", "SRUN_"]
    single = {"WANDB_SERVICE", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    kept = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}  # how to reach the controller
    return {
        name: value
        for name, value in base.items()
        if name in kept or not (name.startswith(tuple(dropped)) or name in single)
    }


def check_syntax(script: str, name: str) -> None:
    """Raise BadInput where bash cannot read a script."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BadInput(f"bash cannot read the rendered {name}: {done.stderr.strip()}")


def check_accepted(script: str) -> str:
    """Return when SLURM expects to start a job; raises BadInput with its reason to refuse it."""
    done = _client("sbatch", "--test-only", stdin=script)
    if done.returncode:
        why, hint = _said(done), "nothing was submitted or written"
        if "Invalid job array" in why:
            hint += "; a grid may have fewer runs than `scontrol show config` says as MaxArraySize"
        raise BadInput(f"sbatch refuses the job: {why}", hint=hint)
    return _said(done).removeprefix("sbatch: ")


def submit(script: Path, *options: str) -> str:
    """Submit a batch script; returns the job's id.

    Raises RefusedError with sbatch's words, LauncherError where nobody knows what it has done.
    """
    done = _client("sbatch", "--parsable", *options, str(script))
    if done.returncode:
        failed = f"sbatch failed: {_said(done)}"
        if any(words in done.stderr for words in _UNANSWERED):
            raise LauncherError(failed, hint=_ASK_FIRST)
        raise RefusedError(failed)
    return done.stdout.strip().split(";")[0]


def submit_chain(
    folder: SlurmFolder, script: Path, options: Sequence[str], links: int, task: int | None = None
) -> list[Job]:
    """Submit a script so many times, each to start after the one before; notes the jobs."""
    jobs: list[Job] = []
    for _ in range(max(1, links)):
        after = [f"--dependency=afterany:{jobs[-1].id}"] if jobs else []
        jobs.append(Job(submit(script, *options, *after), time.time(), task))
        folder.add_job(jobs[-1])
    return jobs


def job_state(job: str) -> dict[str, str]:
    """Return what scontrol says of a job's state, nodes and time; {} where it cannot be asked.

    Of its Command, which is the script, the first word.
    """
    done = scontrol("show", "job", "-o", job)
    return {} if done.returncode else pairs_of(done.stdout)


def pairs_of(told: str) -> dict[str, str]:
    """Return what is of use to us in scontrol's words about one job."""
    pairs = [word.partition("=") for word in told.split()]
    return {key: value for key, _, value in pairs if key in _OF_A_JOB}


def hostnames(nodes: str) -> list[str]:
    """Return the names in a list as SLURM writes it, n[1-2]; [] where scontrol cannot be asked."""
    return scontrol("show", "hostnames", nodes).stdout.split() if nodes else []


def scontrol(*words: str, timeout_s: float = 30) -> "subprocess.CompletedProcess[str]":
    """Ask the controller from within a job; where there is no answer the exit code is not 0."""
    line = ["scontrol", *words]
    try:
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(line, 1, "", str(error))


def _client(*words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            words,
            input=stdin,
            env=environment(os.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    except FileNotFoundError as error:
        raise BadInput(
            f"there is no `{words[0]}` here",
            hint="submit on a login node of the cluster; --local runs the same scripts here, and "
            "--dry-run shows them",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LauncherError(
            f"`{words[0]}` has not answered for two minutes", hint=_ASK_FIRST
        ) from error


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the first words of an answer: sbatch says the reason first."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "; ".join(line.removeprefix("sbatch: error: ") for line in lines[:2]) or "no reason"
