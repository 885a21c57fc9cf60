"""Start a script, again where that may help, and raise how it ended. No torch."""

import json
import os
import secrets
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.around import RUN_DIR, START, without_script
from launcher.console import last_without_console
from launcher.errors import Interrupted, LauncherError, Stopped, TrainingFailed
from launcher.files import read_json, warn_of_disk, write_json
from launcher.gpus import gpus
from launcher.launch import launch as recipes
from launcher.launch.ended import AskedAgain, alike, verdict
from launcher.launch.launch import Launch, Nodes, go_on, steps_done, threads_of
from launcher.launch.notes import Noted
from launcher.launch.script_watch import Echo, ScriptWatch
from launcher.launch.supervise import Supervisor
from launcher.launch.verdict import asked
from launcher.masks import clean
from launcher.processes import MEETING, PARENT, shown, without_world
from launcher.recipe.file import RecipeFile
from launcher.recipe.untrained import note_of
from launcher.run import lock
from launcher.run.directory import RunDir
from launcher.run.told import is_script
from launcher.script.config import describe
from launcher.script.ends import Ends
from launcher.script.plan import Plan
from launcher.script.script import Script, Sign
from launcher.tracking.mirror import LateMirror, close

_QUICK_S = 60.0  # a failure that comes so soon, and again, is not worth a third start
# A task's place among those of srun. Lightning would take it for that of a process, and put the job
# into the queue by itself.
_OF_SRUN = {f"SLURM_{name}" for name in ("NTASKS", "NPROCS", "PROCID", "LOCALID", "STEP_NUM_TASKS")}
_ID = "PET_RDZV_ID"  # environment variable: what machines that meet have in common


def describe_script(
    script: Script, file: RecipeFile, nodes: Nodes, tracking: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the contents of config.json for a script, whose text is in `file`."""
    return describe(
        *(script, file.name, file.path),
        world_size=nodes.world_size,
        nodes=nodes.nnodes,
        cpu=nodes.cpu,
        threads=threads_of(nodes),
        tracking=tracking,
    )


def launch(job: Launch) -> None:
    """Run all processes of this machine, of a recipe or a script; raises how it ended."""
    told = job.resumed or job.spec.read_config()
    if is_script(told):
        _launch(job, told)
    else:
        recipes.launch(job)


def _launch(job: Launch, told: Mapping[str, Any]) -> None:
    began, job = time.time(), job.timed(told)
    last_without_console()
    with lock.held(job.run) if job.nodes.node_rank == 0 else nullcontext():
        before = read_json(job.run.result) or {}
        if job.resumed and not job.managed:
            go_on(job)
        if job.nodes.node_rank == 0:
            warn_of_disk(job.run.path)
        mirror = LateMirror(job.run) if job.nodes.node_rank == 0 else None
        error = _attempts(job, told, mirror)
        seconds = time.time() - began + float(before.get("seconds") or 0)
        if job.nodes.node_rank == 0 and not job.managed:
            write_result(job.run, job.nodes, error, seconds)
        if mirror:
            close(mirror, error)
        job.times.end(error)
    if error:
        raise error
    if not job.managed:
        print(f"Done: {seconds:.1f} s, {shown(job.run.path)}", file=sys.stderr)


def write_result(run: RunDir, nodes: Nodes, error: LauncherError | None, seconds: float) -> None:
    """Write the result.json of a script: `exit_code` is that of the process that ended it."""
    last, ends = run.last_report(), Ends.read(run, range(nodes.nnodes)).ends
    stopped = "stopped" if isinstance(error, Stopped) else "failed"
    write_json(
        run.result,
        {
            "state": stopped if error else "completed",
            "exit_code": next((end.code for end in ends if end.code), 0 if ends else None),
            "seconds": seconds,
            "starts": starts(run),
            "world_size": nodes.world_size,
            "step": last.get("step", 0),
            "error": error.message if error else None,
        },
    )


def starts(run: RunDir, node_rank: int = 0) -> int:
    """Return how often a script was started: outside of a job, each machine counts for itself."""
    return int((read_json(_starts_file(run, node_rank)) or {}).get("starts", 0))


def note_start(run: RunDir, start: int, node_rank: int = 0) -> None:
    """Note which start of a script this is, counted from 1."""
    write_json(_starts_file(run, node_rank), {"starts": start})


def _starts_file(run: RunDir, node_rank: int) -> Path:
    return run.logs / (f"node-{node_rank}-starts.json" if node_rank else "starts.json")


class _Progress:
    """Whether a script that failed has got on since it failed before."""

    def __init__(self) -> None:
        self._before: int | Sign | None = None
        self._error: LauncherError | None = None

    def made(self, job: Launch, script: Script, error: LauncherError, seconds: float) -> bool:
        """Note a failure after `seconds`; whether another start may end otherwise."""
        first = self._error is None
        again = not first and alike(self._error or error, error)
        before, self._error = self._before, error
        self._before = steps_done(job) or script.newest()
        if first:
            return True
        if self._before is not None or script.progress:
            return self._before != before
        return seconds > _QUICK_S or not again


def _attempts(
    job: Launch, told: Mapping[str, Any], mirror: LateMirror | None
) -> LauncherError | None:
    """Start the processes until they complete; returns how they ended, None where they completed.

    A failure is followed by another start up to `max_restarts` times, as long as it gets on.
    """
    script, progress = Script.of(told), _Progress()
    assert script
    supervisor = Supervisor(
        patient=job.managed,
        on_stop=job.on_stop,
        asking=f"asking the script to stop (SIG{script.stop_signal})",
    )
    for restarts_left in range(job.max_restarts, -1, -1):
        began = time.monotonic()
        error = _attempt(job, told, script, supervisor, mirror)
        may = isinstance(error, TrainingFailed | AskedAgain) and not supervisor.requests
        if error is None or not may or not restarts_left:
            break
        failed = isinstance(error, TrainingFailed)
        if failed and not progress.made(job, script, error, time.monotonic() - began):
            again = "not restarted: it came no farther than the time before"
            return TrainingFailed(f"{error.message}\n{again}", hint=error.hint)
        said = f"error: {clean(str(error))}" if failed else error.message
        print(f"{said}\nrestarting; {restarts_left - 1} restarts left", file=sys.stderr)
    return error


def _attempt(
    job: Launch,
    told: Mapping[str, Any],
    script: Script,
    supervisor: Supervisor,
    mirror: LateMirror | None,
) -> LauncherError | None:
    """Start the processes once; returns how they ended, None where they completed."""
    run, node_rank = job.run, job.nodes.node_rank
    run.logs.mkdir(parents=True, exist_ok=True)
    if job.managed:  # it has counted for all machines
        start = starts(run)
    else:
        start = starts(run, node_rank) + 1
        note_start(run, start, node_rank)
    for rank in job.ranks:
        for path in (run.mark(rank), run.record(rank), note_of(run.path, rank)):
            path.unlink(missing_ok=True)
    run.exits(node_rank).unlink(missing_ok=True)
    job.times.start()
    plan = plan_of(job, told, script, start)
    echo = Echo(run.log(0)) if node_rank == 0 else None
    argv = [sys.executable, "-m", "launcher.node.start", "programs", str(run.path)]
    argv += [json.dumps(asdict(plan)), *script.command(start)]
    env = environment(job, told, script, start, os.environ)
    watch, note = ScriptWatch(run, job.ranks, script, mirror), run.node_note(node_rank)
    marks = {rank: run.mark(rank) for rank in job.ranks}
    stdin = None if plan.stdin else subprocess.DEVNULL
    with closing(Noted(watch, note, marks, cpu=job.nodes.cpu, also=job.times.look)) as noted:
        code = supervisor.run(argv, env, run.agent(node_rank), noted, stdin=stdin)
    job.times.processes_ended()
    if echo:
        echo.close()
    because = asked(run, supervisor.hang, stop=supervisor.requests > 0)
    error = verdict(run, job.ranks, [node_rank], code, because)
    if because is None and code < 0 and not run.exits(node_rank).exists():
        Ends.killed(run, job.ranks, code).write(run, node_rank)
    if error and supervisor.forced:
        hint = f"launcher resume {shown(run.path)}"
        return Interrupted("ended at once, on a second request", hint=hint)
    return error


def plan_of(job: Launch, told: Mapping[str, Any], script: Script, start: int) -> Plan:
    """Return what the agent of this machine is told."""
    nodes, tracking = job.nodes, told["tracking"]
    names = {
        "WANDB_RUN_ID": tracking.get("run_id"),
        "WANDB_RESUME": "allow",
        "WANDB_PROJECT": tracking.get("project"),
        "WANDB_RUN_GROUP": tracking.get("group"),
        "WANDB_TAGS": ",".join(tracking.get("tags") or ()),
    }
    first = {} if tracking["mode"] == "disabled" else names
    return Plan(
        nproc=nodes.nproc,
        nnodes=nodes.nnodes,
        node_rank=nodes.node_rank,
        run_id=os.environ.get(_ID) or (nodes.endpoint or secrets.token_hex(8)),
        is_world=script.nproc is not None or nodes.nnodes > 1,
        endpoint=nodes.endpoint,
        meeting=str(nodes.meeting) if nodes.meeting else None,
        max_restarts=job.max_restarts,
        start=start,
        stop_signal=script.stop_signal,
        grace=script.grace,
        stdin=nodes.node_rank == 0 and _is_piped(),
        managed=job.managed,
        first={name: value for name, value in first.items() if value},
    )


def environment(
    job: Launch,
    told: Mapping[str, Any],
    script: Script,
    start: int,
    base: Mapping[str, str],
) -> dict[str, str]:
    """Return the environment of the processes of a script, but for what differs between them.

    What the user has set stays, also of Accelerate's; a place in another world does not.
    """
    nodes = job.nodes
    kept = without_script(without_world(base))
    kept |= {name: value for name, value in base.items() if name.startswith("ACCELERATE_")}
    added = {
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",  # what crashes says where, and so does what hangs
        RUN_DIR: str(job.run.path),
        START: str(start),
        "WANDB_DIR": str(job.run.path),
        "WANDB_MODE": told["tracking"]["mode"],
        PARENT: str(os.getpid()),
        MEETING: "",
    }
    if nodes.cpu or gpus() == 0:
        added["ACCELERATE_USE_CPU"] = "true"
    if nodes.cpu:
        added |= dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "")
    if nodes.nproc > 1 and "OMP_NUM_THREADS" not in base:
        added["OMP_NUM_THREADS"] = str(threads_of(nodes, told, base))
    if script.nproc is not None and nodes.nnodes == 1 and sys.platform == "linux":
        kept.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return {name: value for name, value in kept.items() if name not in _OF_SRUN} | added


def _is_piped() -> bool:
    """Whether this process was given something to read: a pipe or a file, and no terminal."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)
