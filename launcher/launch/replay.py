"""Find what a step of a run is made again from, and start several processes that make it."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.errors import BadInput, Interrupted, LauncherError, RunDirError, TrainingFailed
from launcher.files import read_json
from launcher.gpus import gpus, shared
from launcher.launch.launch import Nodes, command, environment, threads_of
from launcher.launch.resume import kept_checkpoint, recipe_of
from launcher.launch.supervise import Supervisor
from launcher.launch.verdict import verdict
from launcher.run import checkpoint_files, mark
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.config import session_of, versions
from launcher.run.directory import RunDir
from launcher.run.listing import rows_of
from launcher.run.record import Record


@dataclass(frozen=True)
class Session:
    """What a run went on with from a step on."""

    begins: int  # at this step
    world_size: int
    nodes: int
    threads: int | None
    cpu: bool
    hyperparameters: Mapping[str, Any]
    torch: str | None  # version


@dataclass(frozen=True)
class Plan:
    """How a step is made again: by whom, and from where."""

    run: RunDir
    step: int
    session: Session
    nodes: Nodes
    start: Checkpoint | None  # None: from the start of the run
    rounding: list[str] = field(default_factory=list)  # why it is no more than that near

    @property
    def words(self) -> str:
        """What is about to be done, for people."""
        count = _processes(self.nodes.nproc)
        start = f"checkpoint {self.start.path.name}" if self.start else "the start"
        near = "".join(f"\nwithin rounding: {why}" for why in self.rounding)
        return f"step {self.step}, from {start}, by {count}{near}"


def _processes(count: int) -> str:
    return f"{count} process" + "es" * (count > 1)


def plan(run: RunDir, step: int, nproc: int | None) -> Plan:
    """Return how a step of a run is made again.

    Raises BadInput or RunDirError where the run did not come to it, or nothing leads there.
    """
    told = run.read_config()
    _refuse_beyond(run, step)
    sessions = sessions_of(told)
    session = _owner(sessions, step)
    start, retraced = _start(run, sessions, step)
    cpu, rounding = _device(run, session)
    if retraced:
        rounding.append(
            "no checkpoint of the step's own session is left; earlier ones are retraced"
        )
    nodes = Nodes(nproc or session.world_size, cpu=cpu)
    rounding += _differences(session, nodes)
    if session.hyperparameters.get("micro_batch_size") == "auto" and len(sessions) > 1:
        rounding.append("micro_batch_size is the one that the last session found")
    threads = session.threads or threads_of(nodes)
    if not cpu and 0 < gpus() < nodes.nproc and not shared():
        has = f"{nodes.nproc} processes, and there are {gpus()} GPUs"
        raise BadInput(f"step {step} was made by {has}", hint=f"--nproc {gpus()} makes it by fewer")
    return Plan(run, step, session, replace(nodes, threads=threads), start, rounding)


def _refuse_beyond(run: RunDir, step: int) -> None:
    """Raise BadInput for a step that the run has not come to; one that it failed in counts."""
    saved = checkpoint_files.all_of(run.checkpoints)
    result = read_json(run.result) or {}
    found = mark.read(run.mark(0))
    last = run.last_report().get("step", 0)
    done = max([last, found.steps if found else 0, *(one.step for one in saved)])
    newest = done - (result.get("state") in ("completed", "stopped"))
    if step > newest:
        what = f"the last step of the run is {newest}" if newest >= 0 else "the run made no step"
        raise BadInput(f"`{run.path}` has no step {step}: {what}", hint="steps count from 0")


def sessions_of(told: Mapping[str, Any]) -> list[Session]:
    """Return the sessions of a run that made a step, in their order.

    Raises RunDirError where an older launcher has not noted them.
    """
    resumed = told.get("resumed") or []
    first = told.get("first_session") if resumed else session_of(told)
    if first is None or any("hyperparameters" not in one for one in resumed):
        raise RunDirError(
            "the run was resumed by an older launcher, which has not noted with what and where",
            hint="a run that is resumed from now on notes it",
        )
    noted = [{**first, "step": 0}, *(one for one in resumed if "step" in one)]
    return [_session(one) for one in noted]


def _session(noted: Mapping[str, Any]) -> Session:
    return Session(
        begins=int(noted["step"]),
        world_size=int(noted["world_size"]),
        nodes=int(noted.get("nodes") or 1),
        threads=noted.get("threads"),
        cpu=bool(noted.get("cpu")),
        hyperparameters=noted["hyperparameters"],
        torch=(noted.get("versions") or {}).get("torch"),
    )


def _owner(sessions: list[Session], step: int) -> Session:
    """Return the session that made a step for good: the last that began before or at it."""
    return [one for one in sessions if one.begins <= step][-1]


def _start(run: RunDir, sessions: list[Session], step: int) -> tuple[Checkpoint | None, bool]:
    """Return the newest valid checkpoint before a step, and whether earlier sessions are retraced.

    None: from the start. Raises BadInput where the sessions between went on with other
    hyperparameters.
    """
    start = _nearest(run, step)
    own, first = _owner(sessions, step), start.step if start else 0
    if first >= own.begins:
        return start, False
    turns = [first, *(one.begins for one in sessions if first < one.begins <= step)]
    between = [_owner(sessions, at).hyperparameters for at in turns]
    if any(one != own.hyperparameters for one in between):
        raise BadInput(
            f"step {step} cannot be made again: its session began at step {own.begins} with other "
            "hyperparameters, and no valid checkpoint is left from there on",
            hint="`keep_last` and `keep_best` say how many are kept",
        )
    return start, True


def _nearest(run: RunDir, step: int) -> Checkpoint | None:
    saved = checkpoint_files.all_of(run.checkpoints)
    before = [one for one in reversed(saved) if one.step <= step]
    return next((one for one in before if checkpoint_files.problem(one) is None), None)


def _device(run: RunDir, session: Session) -> tuple[bool, list[str]]:
    """Return whether to compute on the CPU, and what is then not as the run had it."""
    mine = [row for row in rows_of(run) if row.get("split") == "train"]
    mine = [row for row in mine if row.get("step", 0) > session.begins] or mine
    on_cpu = session.cpu or all(row.get("gpu_memory") is None for row in mine[:1])
    if not mine and not session.cpu:  # it has not reported, and went where there was a GPU
        return gpus() == 0, []
    if on_cpu or gpus():
        return on_cpu, []
    return True, ["the run had GPUs, and there are none here"]


def _differences(session: Session, nodes: Nodes) -> list[str]:
    """Return what is not as the run had it, of what the last bits depend on."""
    found = []
    if nodes.nproc != session.world_size:
        found.append(f"the run had {_processes(session.world_size)}; what a model draws is another")
    if session.nodes > 1:
        found.append(f"the run had {session.nodes} machines")
    if session.threads is None:
        found.append("the run has not noted its threads")
    here = versions().get("torch")
    if session.torch != here:
        found.append(f"the run had torch {session.torch}, and here is {here}")
    return found


def spec_of(
    found: Plan, folder: Path, *, rank: int = 0, terminal: bool = False, rows: bool = False
) -> dict[str, Any]:
    """Return what processes that make a step are told; a checkpoint is kept in `folder` for them.

    A run that goes on may delete it meanwhile.
    """
    start = found.start
    kept = start and {
        "path": str(kept_checkpoint(start, folder)),
        "step": start.step,
        "epoch": start.epoch,
    }
    told = found.run.read_config()
    return told | {
        "hyperparameters": dict(found.session.hyperparameters),
        "world_size": found.nodes.world_size,
        "nodes": 1,
        "threads": found.nodes.threads,
        "cpu": found.nodes.cpu,
        "replay": {
            "step": found.step,
            "checkpoint": kept,
            "rank": rank,
            "terminal": terminal,
            "rows": rows,
            "gloo": found.session.nodes > 1,
        },
    }


@contextmanager
def scratch() -> Iterator[RunDir]:
    """Give a run directory for what processes need in order to meet, and nobody afterwards."""
    with tempfile.TemporaryDirectory(prefix="launcher-replay-") as folder:
        yield RunDir(Path(folder))


def make_together(found: Plan, *, rank: int, terminal: bool, rows: bool) -> dict[str, Any]:
    """Make a step by several processes of this machine; returns what it came to.

    `rank` gets the terminal. {} where the user has left the debugger. Raises what went wrong.
    """
    with scratch() as run:
        told = spec_of(found, run.path, rank=rank, terminal=terminal, rows=rows)
        run.fill(told, recipe_of(found.run).source)
        argv = command(
            *(found.nodes, run, run, told["hyperparameters"]["mixed_precision"]), what="replay"
        )
        env = environment(found.nodes, os.environ)
        stdin = None if terminal else subprocess.DEVNULL
        supervisor = Supervisor(on_stop=_leave, asking="ending the replay")
        code = supervisor.run(argv, env, run.agent(0), _Patient(), stdin=stdin)
        result = read_json(run.result)
        if result == {}:
            return {}
        if error := verdict(run, range(found.nodes.nproc), [0], code):
            raise _of_the_step(error, run, found)
        return result or {}


class _Patient:
    """A watch that waits: somebody may be thinking."""

    def verdict(self) -> None:
        """Find nothing wrong."""


def _leave() -> None:
    raise Interrupted("the replay was ended; nothing was written")


def _of_the_step(error: LauncherError, run: RunDir, found: Plan) -> LauncherError:
    """Return an error with the step that it is of; the logs of the processes are gone."""
    if isinstance(error, BadInput):
        return error
    records = Record.read_all(run, range(found.nodes.nproc))
    steps = [one.step for one in records if one.step is not None]
    where = f"step {steps[0]} failed: " if steps else ""
    hint = "with `--nproc 1` it all happens in one process, with its whole traceback"
    return TrainingFailed(f"{where}{error.message}", hint=hint)
