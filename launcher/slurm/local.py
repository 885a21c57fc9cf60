"""Run a job's scripts on this machine: SLURM's variables and the commands they call are faked.

The scripts are the very same ones. Each node becomes a process of srun's stand-in; a requeue is
another round.
"""

import os
import subprocess
from pathlib import Path

from launcher.errors import BadInput
from launcher.gpus import gpus, shared
from launcher.run.job import SlurmFolder
from launcher.slurm.client import environment

# Starts the command once for each node and passes USR1 on to all, as srun does; its options, of
# the form --name=value, are left out.
_SRUN = """\
#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
tasks=()
trap 'kill -USR1 "${tasks[@]}" 2>/dev/null' USR1
trap 'kill -TERM "${tasks[@]}" 2>/dev/null' TERM
for ((node = 0; node < SLURM_NNODES; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node "$@" &
    tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do
    while kill -0 "$task" 2>/dev/null; do wait "$task"; done
    wait "$task" || { code=$?; kill -TERM "${tasks[@]}" 2>/dev/null; }
done
exit $code
"""
_SCONTROL = """\
#!/bin/bash
case "$1 $2" in
    "show hostnames") for ((node = 0; node < SLURM_NNODES; node++)); do echo localhost; done ;;
    "show job") echo "JobId=$SLURM_JOB_ID JobState=RUNNING Reason=None" ;;
    requeue*) touch "$LAUNCHER_LOCAL/requeued" ;;
esac
"""


def check(nodes: int, gpus_each: int) -> None:
    """Raise BadInput where this machine lacks the GPUs that all nodes together ask for."""
    if gpus() < nodes * gpus_each and not shared():
        raise BadInput(
            f"{nodes * gpus_each} GPUs are asked for, and this machine has {gpus()}",
            hint="leave them out to train on the CPU here",
        )


def run(folder: SlurmFolder, nodes: int, tasks: int) -> int:
    """Run the scripts of a folder to their end, the tasks of an array one after the other.

    Returns the exit code, the first that is not 0 of an array's.
    """
    commands = folder.path / "local"
    commands.mkdir()
    for name, script in (("srun", _SRUN), ("scontrol", _SCONTROL)):
        (commands / name).write_text(script, encoding="utf-8")
        (commands / name).chmod(0o755)
    job = str(os.getpid())  # not noted as a job: SLURM may have one of that number
    base = environment(os.environ) | {
        "PATH": f"{commands}:{os.environ.get('PATH', os.defpath)}",
        "LAUNCHER_LOCAL": str(commands),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_NNODES": str(nodes),
        "SLURM_CPUS_PER_TASK": "",
    }
    arrays = [
        {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)} for task in range(tasks)
    ]
    codes = [_run(folder.batch, base | array, commands / "requeued") for array in arrays or [{}]]
    return next((code for code in codes if code), 0)


def _run(script: Path, env: dict[str, str], requeued: Path) -> int:
    restarts = 0
    while True:
        start = env | {"SLURM_RESTART_COUNT": str(restarts)}
        code = subprocess.run(["bash", str(script)], env=start, check=False).returncode
        if not requeued.exists():
            return code
        requeued.unlink()
        restarts += 1
