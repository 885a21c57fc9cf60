"""Run a job's scripts in the allocation that one is sitting in: `salloc`, then `submit --here`.

srun starts a step of it, as often as that helps. What would go back into the queue ends instead,
and nothing here ends the allocation.
"""

import os
import re
from collections.abc import Mapping

from launcher.errors import BadInput
from launcher.foreground.scripts import Scripts
from launcher.processes import on_stop_signals
from launcher.run.job import SlurmFolder
from launcher.slurm.client import environment, hostnames, job_state
from launcher.slurm.control import end_step

_MAY_BE_GIVEN = ("nodes", "gpus-per-node")
_OURS = ("SLURM_", "SRUN_")  # what srun reads of the allocation


def check(env: Mapping[str, str]) -> None:
    """Raise BadInput where this is no allocation."""
    if "SLURM_JOB_ID" not in env:
        raise BadInput("--here, but this is no allocation", hint="`salloc --nodes 2` makes one")


def options(given: Mapping[str, str], spare: int, env: Mapping[str, str]) -> dict[str, str]:
    """Return the options of a job that is the allocation, or a part of it.

    Raises BadInput outside of one, for what it does not have, and for what only a queue can give.
    """
    check(env)
    for name in given:
        if name not in _MAY_BE_GIVEN:
            hint = "leave it out, or give it to `salloc`"
            raise BadInput(f"--{name} is settled by the allocation that --here runs in", hint=hint)
    names = hostnames(env.get("SLURM_JOB_NODELIST", ""))
    nodes = given.get("nodes", str(len(names) - spare))
    if nodes.isdigit() and not 1 <= int(nodes) <= len(names) - spare:
        more = f" and {spare} spare ones" if spare else ""
        raise BadInput(f"--nodes {nodes}{more}, and the allocation has {len(names)}")
    found = {"nodes": nodes, "cpus-per-task": _cores(env)} | dict(given)
    if "gpus-per-node" not in given and (gpus := _gpus(env)):
        found["gres"] = gpus
    return {name: value for name, value in found.items() if value}


def _cores(env: Mapping[str, str]) -> str:
    """Return the cores of each node, of which the only task gets all: 4(x2),8 are 4."""
    counts = re.findall(r"(?:^|,)(\d+)", env.get("SLURM_JOB_CPUS_PER_NODE", ""))
    return env.get("SLURM_CPUS_PER_TASK") or min(counts, key=int, default="")


def _gpus(env: Mapping[str, str]) -> str:
    """Return the GPUs of each node as `gres` has them, however they were asked for."""
    entries = job_state(env["SLURM_JOB_ID"]).get("TresPerNode", "").split(",")
    plain = [re.sub(r"^gres[:/]", "", entry) for entry in entries]
    return ",".join(entry for entry in plain if entry.startswith("gpu"))


def run(folder: SlurmFolder) -> int:
    """Run the scripts of a folder to their end; returns their exit code.

    A request to stop is SLURM's SIGTERM for the scripts; the second one ends their step.
    """
    cores = folder.asked()["options"].get("cpus-per-task", {}).get("value", "")
    kept = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    scripts = Scripts(folder.batch)
    with on_stop_signals(scripts.hear):
        code = scripts.run(environment(os.environ) | kept | {"SLURM_CPUS_PER_TASK": cores})
    if scripts.requests > 1:
        end_step(folder)
    return code
