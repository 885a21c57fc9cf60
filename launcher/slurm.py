"""Talk to SLURM: check scripts, submit them, ask how a job is, follow its log."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launcher.errors import BadInput, LauncherError

ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("REVOKED", "TIMEOUT"),
}
_LOOK_S = 1.0  # between two looks at a job that is followed
_SLOW_S = 10.0  # when it has not moved for a while: a controller has other things to do


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return what the client commands and the job get of an environment.

    Inside of a job SLURM's own variables would override directives. W&B's service belongs to
    a process that will be gone; so does torchrun's world.
    """
    dropped = ("SBATCH_", "SLURM_", "SLURMD_", "SRUN_", "PMI", "TORCHELASTIC_", "PET_", "LOCAL_")
    single = {"WANDB_SERVICE", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {
        name: value
        for name, value in base.items()
        if name == "SLURM_CONF" or not (name.startswith(dropped) or name in single)
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
        raise BadInput(
            f"sbatch refuses the job: {_said(done)}", hint="nothing was submitted or written"
        )
    return _said(done).removeprefix("sbatch: ")


def submit(script: Path, *options: str) -> str:
    """Submit a batch script; returns the job's id. Raises LauncherError with sbatch's words."""
    done = _client("sbatch", "--parsable", *options, str(script))
    if done.returncode:
        raise LauncherError(f"sbatch failed: {_said(done)}")
    return done.stdout.strip().split(";")[0]


def states(job: str) -> dict[str, str]:
    """Return the state of a job, of all its tasks where it is an array, by name; {} if unknown."""
    done = _client("squeue", "--noheader", "--array", "--states=all", "--format=%i %T", f"-j{job}")
    lines = [line.split() for line in done.stdout.splitlines()]
    if not lines:  # it has ended and is forgotten by squeue, maybe not by the controller
        done = _client("scontrol", "show", "job", "-o", job)
        lines = re.findall(r"JobId=(\d+).*? JobState=(\S+)", done.stdout)
    return {line[0]: line[1] for line in lines if len(line) > 1}


def follow(log: Path, job: str) -> str:
    """Print what is added to a job's batch log until the job has ended; returns its last state."""
    position, pause_s, last = 0, _LOOK_S, "PENDING"
    while True:
        now = states(job).get(job)
        position, moved = _print_from(log, position)
        if now is None or now in ENDED:
            time.sleep(_LOOK_S)  # the last lines may come after the job's end
            _print_from(log, position)
            return now or last
        pause_s = _LOOK_S if moved or now != last else min(1.5 * pause_s, _SLOW_S)
        last = now
        time.sleep(pause_s)


def _print_from(path: Path, position: int) -> tuple[int, bool]:
    """Print a file from a position on; returns its end, and whether there was anything."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            added = file.read()
    except FileNotFoundError:
        return position, False
    sys.stdout.write(added.decode(errors="replace"))
    sys.stdout.flush()
    return position + len(added), bool(added)


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
        raise LauncherError(f"`{words[0]}` has not answered for two minutes") from error


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the first words of an answer: sbatch says the reason first."""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return "; ".join(line.removeprefix("sbatch: error: ") for line in lines[:2]) or "no reason"
