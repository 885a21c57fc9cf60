"""Run a job's scripts on this machine: SLURM's variables and the commands they call are faked.

The scripts are the very same ones. Each node becomes a process of srun's stand-in; a requeue is
another round, unless somebody has asked this process to stop.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launcher.errors import BadInput
from launcher.foreground.scripts import Scripts
from launcher.gpus import gpus, shared
from launcher.processes import on_stop_signals
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


def check(nodes: int, gpus_each: int, of_nodes: Sequence[str] = ()) -> None:
    """Raise BadInput where this machine lacks the GPUs that all nodes together ask for.

    `of_nodes` are options that choose among nodes: here all are this machine.
    """
    if of_nodes:
        hint = "leave one of them out: all nodes are this machine"
        raise BadInput(f"--{of_nodes[0]} goes with no --local", hint=hint)
    if gpus() < nodes * gpus_each and not shared():
        raise BadInput(
            f"{nodes * gpus_each} GPUs are asked for, and this machine has {gpus()}",
            hint="leave them out to train on the CPU here",
        )


def run(folder: SlurmFolder, nodes: int, tasks: int) -> int:
    """Run the scripts of a folder to their end, the tasks of an array one after the other.

    Returns the exit code, the first that is not 0 of an array's. A request to stop is SLURM's
    SIGTERM for the scripts, and the end of it all; the second one ends them at once.
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
    here = Scripts(folder.batch, partial(_was_left, commands / "requeued"))
    with on_stop_signals(here.hear):
        codes = [here.run(base | array) for array in arrays or [{}]]
    return next((code for code in codes if code), 0)


def _was_left(mark: Path) -> bool:
    """Whether a file is there; it is taken away."""
    try:
        mark.unlink()
    except FileNotFoundError:
        return False
    return True
