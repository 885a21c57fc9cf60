"""Start the processes of a run, again where they may fail, and raise how it ended. No torch."""

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.console import last_without_console
from launcher.errors import (
    BadInput,
    Interrupted,
    LauncherError,
    NodeFailed,
    TrainingFailed,
)
from launcher.files import warn_of_disk, write_bytes
from launcher.gpus import gpus, shared
from launcher.launch.allocator import allocator
from launcher.launch.fitting import has_to_be_smaller
from launcher.launch.notes import Noted
from launcher.launch.supervise import HangWatch, Supervisor
from launcher.launch.verdict import asked, verdict
from launcher.masks import clean
from launcher.processes import MEETING, PARENT, cores, shown, without_world
from launcher.recipe.base import Recipe
from launcher.run import lock, mark
from launcher.run.directory import RunDir
from launcher.run.record import write_result
from launcher.run.told import is_script
from launcher.times.notes import Times
from launcher.tracking.mirror import Mirror, close

_ID = "PET_RDZV_ID"  # environment variable: the rendezvous id, of torchrun's own


@dataclass(frozen=True)
class Nodes:
    """Which machines and processes a run has."""

    nproc: int  # processes on each machine
    nnodes: int = 1
    node_rank: int = 0
    endpoint: str | None = None  # HOST:PORT of machine 0, where there are several
    cpu: bool = False
    meeting: Path | None = None  # a folder in which machine 0 tells its port, where that is 0
    threads: int | None = None  # of each process; None: see `threads_of`

    @property
    def world_size(self) -> int:
        """Processes on all machines together."""
        return self.nproc * self.nnodes


def check(nodes: Nodes) -> None:
    """Raise BadInput for processes and machines that cannot be."""
    if not nodes.cpu and 0 < gpus() < nodes.nproc and not shared():
        raise BadInput(
            f"--nproc {nodes.nproc} asks for more processes than there are GPUs: {gpus()}",
            hint="give --cpu to train on the CPU, or fewer processes",
        )
    if nodes.nnodes > 1 and not nodes.endpoint:
        raise BadInput(
            f"--nnodes {nodes.nnodes} needs --rdzv-endpoint HOST:PORT",
            hint="name the machine with --node-rank 0 and a free port on it, the same everywhere",
        )
    if not 0 <= nodes.node_rank < nodes.nnodes:
        raise BadInput(f"--node-rank {nodes.node_rank} is not one of 0 to {nodes.nnodes - 1}")
    host, _, port = (nodes.endpoint or "localhost:1").rpartition(":")
    if not host or not port.isdigit() or not (nodes.meeting is None) <= int(port) < 65536:
        raise BadInput(f"--rdzv-endpoint {nodes.endpoint} is not of the form HOST:PORT")


def command(
    nodes: Nodes,
    run: RunDir,
    spec: RunDir,
    mixed_precision: str,
    extra: Sequence[str] = (),
    *,
    what: str = "worker",
) -> list[str]:
    """Return the command that starts this machine's processes: see `launcher.node.start`.

    One process needs no agent. Several come from `accelerate launch`, with a configuration of our
    own: each key of one in the user's home would otherwise count where no option says otherwise.
    """
    worker = ["-m", "launcher.node.start", what, str(run.path), str(spec.path)]
    if nodes.world_size == 1 and not extra:
        return [sys.executable, *worker]
    arguments = {
        "--config_file": Path(__file__).with_name("accelerate.yaml"),
        "--num_processes": nodes.world_size,
        "--num_machines": nodes.nnodes,
        "--machine_rank": nodes.node_rank,
        "--mixed_precision": mixed_precision,
        "--dynamo_backend": "no",
        "--num_cpu_threads_per_process": nodes.threads or threads_of(nodes),
        "--max_restarts": 0,
        "--log_dir": run.logs / f"node-{nodes.node_rank}-agent",
    }
    if nodes.nnodes == 1:
        arguments |= {"--rdzv_backend": "loopback", "--main_process_port": 0}
    else:
        host, _, port = str(nodes.endpoint).rpartition(":")
        arguments |= {"--main_process_ip": host, "--main_process_port": int(port)}
        arguments |= {"--rdzv_backend": "static" if int(port) else "meeting"}
    words = [*(str(word) for pair in arguments.items() for word in pair), "--same_network"]
    if nodes.world_size > 1:
        words += ["--multi_gpu"]
    elif nodes.cpu or gpus() == 0:
        words += ["--cpu"]
    agent = [sys.executable, "-m", "launcher.node.start", "agent", str(run.exits(nodes.node_rank))]
    return [*agent, str(_forks(nodes, extra)), *words, *extra, *worker]


def _forks(nodes: Nodes, extra: Sequence[str]) -> int:
    """Return how many workers the agent forks: all it has, or none where that may not be safe.

    CUDA does not survive a fork, and other options of `accelerate launch` may ask for more than to
    start our own worker.
    """
    on_cpu = nodes.cpu or gpus() == 0
    return nodes.nproc if on_cpu and not extra and sys.platform == "linux" else 0


def environment(nodes: Nodes, base: Mapping[str, str], *, shard: bool = False) -> dict[str, str]:
    """Return the environment of this machine's processes, of a model that is sharded or whole.

    The rendezvous id is fresh: two runs with the same id on the same port join into one world.
    Machines that meet at an endpoint must share it: what the environment says, else the endpoint.
    What configures Accelerate is left out: it would compile or shard the model behind our back.
    So is the place in another world that this process may have (Kubeflow, srun, mpirun, torchrun).
    """
    fresh = secrets.token_hex(8) if nodes.nnodes == 1 else str(nodes.endpoint)
    threads = str(nodes.threads or threads_of(nodes, env=base))
    added = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        _ID: base.get(_ID, fresh),
        "PYTHONUNBUFFERED": "1",
        PARENT: str(os.getpid()),
        MEETING: str(nodes.meeting or ""),
    }
    if nodes.cpu or gpus() == 0:
        added["ACCELERATE_USE_CPU"] = "true"
    return {**allocator(shard=shard), **without_world(base), **added}


def threads_of(
    nodes: Nodes, told: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ
) -> int:
    """Return threads for each process: those of the run that is `told` of, with as many processes.

    Sums are made in parts, one a thread: a run keeps its bytes only with the number it began with.
    At first it is what OMP_NUM_THREADS says, else this machine's cores shared out.
    """
    if told and told.get("threads") and told.get("world_size") == nodes.world_size:
        return int(told["threads"])
    asked = env.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(asked) if asked.isdigit() and int(asked) else max(1, cores() // nodes.nproc)


@dataclass(frozen=True)
class Launch:
    """One launch of a run: where it is, who takes part, and what happens when it fails."""

    run: RunDir
    spec: RunDir  # recipe and configuration: the run directory itself, but on other machines
    nodes: Nodes
    extra: Sequence[str] = ()  # for `accelerate launch`
    max_restarts: int = 0
    resumed: Mapping[str, Any] | None = None  # what a run that exists goes on with
    made: Sequence[Path] | None = None  # folders made for a run that is new
    managed: bool = False  # by a SLURM job, which judges and notes how all machines ended
    on_stop: Callable[[], None] | None = None  # called at the first request to stop
    deserted: Callable[[], bool] | None = None  # whether other machines left before all had begun
    times: Times = field(default_factory=Times)

    def timed(self, told: Mapping[str, Any]) -> "Launch":
        """Return it with what notes where its time goes, if this is machine 0, from now on."""
        run = None if self.nodes.node_rank or told.get("test") else self.run
        return replace(self, times=Times(run, script=is_script(told), in_job=self.managed))

    @property
    def ranks(self) -> range:
        """The ranks on this machine."""
        first = self.nodes.node_rank * self.nodes.nproc
        return range(first, first + self.nodes.nproc)


def launch(job: Launch) -> None:
    """Run all processes of this machine to their end; raises how it ended unless it completed."""
    started = time.time()
    last_without_console()
    with lock.held(job.run) if job.nodes.node_rank == 0 else nullcontext():
        told = job.resumed or job.spec.read_config()
        job = job.timed(told)
        before = go_on(job) if job.resumed and not job.managed else {}
        mirrored = job.nodes.node_rank == 0 and not told.get("test")
        mirror = Mirror.of(job.run) if mirrored else None
        if mirrored:
            warn_of_disk(job.run.path)
            if sys.stderr.isatty():  # before seconds of imports
                print(f"run directory: {shown(job.run.path)}", file=sys.stderr)
        error = _attempts(job, told)
        if error and job.run.config.exists() and not job.managed:
            write_result(job.run, job.nodes.world_size, error, time.time() - started)
        if mirror:
            close(mirror, error)
        job.times.end(error)
        if isinstance(error, BadInput) and job.made is not None:
            job.spec.remove(job.made)  # where nothing was trained, nothing is left
        if isinstance(error, BadInput) and job.nodes.node_rank == 0:
            _put_back(before)
    if error:
        raise error


def go_on(job: Launch) -> dict[Path, bytes | None]:
    """Note what a run goes on with; returns the files that say how it was, and their contents."""
    files = (job.run.config, job.run.result)
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    job.run.write_config(job.resumed or {})
    job.run.result.unlink(missing_ok=True)  # how the last session ended
    return before


def _put_back(before: Mapping[Path, bytes | None]) -> None:
    """Have files say what they said: a run that was refused is still what it was."""
    for path, content in before.items():
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, content)


def _attempts(job: Launch, told: Mapping[str, Any]) -> LauncherError | None:
    """Start the processes until they complete; returns how they ended, None where they completed.

    A failure is followed by another attempt, from the last checkpoint, up to `max_restarts` times;
    but a run that fails again without a step that is new has a bug, which no restart mends.
    """
    supervisor, farthest = Supervisor(patient=job.managed, on_stop=job.on_stop), -1
    for restarts_left in range(job.max_restarts, -1, -1):
        while True:
            error = _attempt(job, told, supervisor)
            if supervisor.requests or not has_to_be_smaller(error, job.run, job.ranks):
                break  # else it was no failure that counts
        if not isinstance(error, TrainingFailed) or not restarts_left or supervisor.requests:
            break
        before, farthest = farthest, max(farthest, steps_done(job))
        if farthest <= before:
            again = "not restarted: it came no farther than the time before"
            return TrainingFailed(f"{error.message}\n{again}", hint=error.hint)
        said = f"error: {clean(str(error))}\nrestarting; {restarts_left - 1} restarts left"
        print(said, file=sys.stderr)
    return error


def _attempt(job: Launch, told: Mapping[str, Any], supervisor: Supervisor) -> LauncherError | None:
    """Start the processes once; returns how they ended, None where they completed."""
    run, parameters = job.run, told["hyperparameters"]
    nodes = replace(job.nodes, threads=told.get("threads"))
    marks = {rank: run.mark(rank) for rank in job.ranks}
    for path in [*marks.values(), *map(run.record, job.ranks), run.exits(nodes.node_rank)]:
        path.unlink(missing_ok=True)
    job.times.start()
    start_timeout = parameters.get("start_timeout", Recipe.start_timeout)  # older runs have none
    watch = HangWatch(marks, parameters["hang_timeout"], start_timeout, job.deserted)
    argv = command(nodes, run, job.spec, parameters["mixed_precision"], job.extra)
    env = environment(nodes, os.environ, shard=bool(parameters.get("shard")))
    note = run.node_note(nodes.node_rank)
    with closing(Noted(watch, note, marks, cpu=nodes.cpu, also=job.times.look)) as noted:
        code = supervisor.run(argv, env, run.agent(nodes.node_rank), noted)
    job.times.processes_ended()
    shutil.rmtree(run.logs / f"node-{nodes.node_rank}-agent", ignore_errors=True)
    # With a thousand machines, nobody but the job itself should read everybody's records.
    ranks = job.ranks if job.managed else range(nodes.world_size)
    because = asked(run, supervisor.hang, stop=supervisor.requests > 0)
    error = verdict(run, ranks, [nodes.node_rank], code, because)
    if error and supervisor.forced:
        hint = f"launcher resume {shown(run.path)}"
        return Interrupted("ended at once, on a second request", hint=hint)
    if error and not supervisor.requests and not any(run.record(r).exists() for r in job.ranks):
        # They did not come to their own first line: torch is not there, or not whole.
        words = f"on {socket.gethostname()} {error.message}"
        return NodeFailed(words, hint=error.hint, own_fault=True)
    return error


def steps_done(job: Launch) -> int:
    """Return the step that the last attempt came to, on any rank of this machine."""
    marks = [mark.read(job.run.mark(rank)) for rank in job.ranks]
    return max((found.steps for found in marks if found), default=0)
