"""One node of a job: is it fit to train, and its processes from their start to their end."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from launcher.doctor.doctor import vet
from launcher.errors import BadInput, NodeFailed, Stopped, TrainingFailed
from launcher.files import write_json
from launcher.gpus import gpus
from launcher.job import scripts
from launcher.launch.ended import AskedAgain
from launcher.launch.launch import Launch, Nodes, check
from launcher.launch.resume import is_completed
from launcher.launch.script import launch
from launcher.processes import LOADED, orderly
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.run.node_marks import give_others_time, note, others_asked


def node(run: RunDir, nodes: Nodes, env: Mapping[str, str]) -> int:
    """Run one node's processes to their end; returns the exit code of its task.

    A stop on request is 0 here: srun would kill the other nodes in the middle of their saving.
    """
    name = env.get("SLURMD_NODENAME", socket.gethostname())
    asked = partial(note, run, nodes.node_rank, "asked", name)
    try:
        with orderly(Stopped("stopped on request")):
            return _node(run, nodes, name, env, asked)
    except AskedAgain:  # it has left by itself
        return 0
    except Stopped:
        asked()
        return 0


def _node(
    run: RunDir, nodes: Nodes, name: str, env: Mapping[str, str], asked: Callable[[], None]
) -> int:
    nodes = replace(nodes, meeting=SlurmFolder.of(run).path)
    told = scripts.with_grace(run, run.read_config())
    if is_completed(run, told["hyperparameters"]):
        return 0
    note(run, nodes.node_rank, "began", name)
    if step := env.get("SLURM_STEP_ID"):
        note(run, nodes.node_rank, "srun", f"{env['SLURM_JOB_ID']}.{step}")
    deserted = partial(others_asked, run, nodes.node_rank, nodes.nnodes, nodes.nproc)
    os.environ[LOADED] = str(run.node_mark(nodes.node_rank))
    try:
        with _scratch(env.get("LAUNCHER_SCRATCH"), name):
            _look_at_node(run, nodes, name)
            here = Launch(run, run, nodes, resumed=told, managed=True, on_stop=asked)
            launch(replace(here, deserted=deserted))
    except TrainingFailed as error:  # the job's own summary, of all nodes, comes at its end
        if isinstance(error, NodeFailed):
            if deserted():
                raise Stopped("what it waited for was asked to stop") from error
            failed = {"error": error.message, "hint": error.hint, "own_fault": error.own_fault}
            write_json(run.node_error(nodes.node_rank), failed)
        give_others_time(run, nodes.node_rank, nodes.nnodes, nodes.nproc)
        return error.exit_code
    return 0


def _look_at_node(run: RunDir, nodes: Nodes, name: str) -> None:
    """Raise NodeFailed where this node cannot train."""
    try:
        check(nodes)
    except BadInput as error:  # it has too few GPUs
        hint = "it is not like the others"
        raise NodeFailed(f"node {name}: {error.message}", hint=hint, own_fault=True) from error
    if not nodes.cpu and gpus() == 0:
        words, hint = f"node {name}: GPUs were asked for, and it has none", "`sinfo -o %n,%G`"
        raise NodeFailed(words, hint=hint, own_fault=True)
    if SlurmFolder.of(run).asked()["checks"]:
        vet(run, nodes, name)
    else:
        note(run, nodes.node_rank, "sound", name)


@contextmanager
def _scratch(place: str | None, name: str) -> Iterator[None]:
    """Have temporary files made on the node's own disk, and removed at the end."""
    if place is None:
        yield
        return
    try:
        folder = tempfile.TemporaryDirectory(prefix="launcher-", dir=place)
    except OSError as error:
        words = f"node {name}: no folder can be made in {place}: {error.strerror}"
        hint = "the profile names it as `scratch`"
        raise NodeFailed(words, hint=hint, own_fault=True) from error
    with folder as made:
        os.environ["TMPDIR"] = made
        yield
