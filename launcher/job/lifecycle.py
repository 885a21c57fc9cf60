"""The life of a SLURM job: count its starts, judge its ends, decide how it goes on.

The batch script asks `begin` before and `end` after; each node runs `launcher.job.node`. What they
know is in the run directory: a job that was killed unheard is understood at its next start.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from launcher.errors import (
    BadInput,
    BudgetUsedUp,
    LauncherError,
    RunDirError,
    Stopped,
)
from launcher.job import scripts
from launcher.job.budgets import Budgets
from launcher.job.cause import cause
from launcher.job.place import again_on, can_go_on, leave_out_slow, lost, note_bad_nodes
from launcher.job.turn import taken_over, wait_for_turn
from launcher.job.unheard import TAKEN, look_back, reach
from launcher.launch.ended import AskedAgain
from launcher.launch.launch import Nodes, threads_of
from launcher.launch.resume import is_completed, resumed
from launcher.run import checkpoint_files, lock
from launcher.run.directory import RunDir
from launcher.run.job import Attempt, SlurmFolder, Verdict
from launcher.run.node_marks import look_at_all
from launcher.run.record import write_result
from launcher.run.told import is_script
from launcher.slurm.client import hostnames, job_state
from launcher.times import notes as times

AGAIN = 77  # exit code of `launcher job end`: another start, on nodes that the job has


@dataclass(frozen=True)
class Here:
    """Which job this is, as SLURM's variables tell."""

    job: str  # 12, or 12_3 for a task of an array
    restart: int
    nodes: str  # n[1-2]

    @property
    def name(self) -> str:
        """What tells this start of the job from others."""
        return f"{self.job} {self.restart}"

    @classmethod
    def read(cls, env: Mapping[str, str]) -> "Here":
        """Read the environment; raises BadInput outside of a job."""
        if "SLURM_JOB_ID" not in env:
            raise BadInput("this is a command of job scripts, and here is no SLURM job")
        task = env.get("SLURM_ARRAY_TASK_ID")
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{task}" if task else env["SLURM_JOB_ID"]
        restart = int(env.get("SLURM_RESTART_COUNT") or 0)
        return cls(job, restart, env.get("SLURM_JOB_NODELIST", ""))

    def on(self, names: Sequence[str]) -> "Here":
        """Return the same with those of its nodes alone that a start uses; [] are all."""
        if not names or list(names) == hostnames(self.nodes):
            return self
        return replace(self, nodes=",".join(names))


class NodesLost(Stopped):
    """Nodes are gone, and the job was left with the others: sbatch's --no-kill."""


@dataclass(frozen=True)
class End:
    """What the batch script is to do: exit 0, start again here (77), requeue (75), or fail."""

    code: int
    message: str  # what it says
    exclude: str = ""  # nodes that the next start must not get
    given_up: str = ""  # why it may not start again


@contextmanager
def _turn(run: RunDir, here: Here) -> Iterator[None]:
    """Wait until nobody else writes to a run, and keep others from it: nothing is noted before."""
    if not SlurmFolder.of(run).asked():
        raise RunDirError(f"`{run.path}` was not made by `launcher submit`")
    wait_for_turn(run, here.job)
    with lock.held(run):
        yield


def prepare(run: RunDir, here: Here) -> None:
    """Note how the last start ended, where it could not, before nodes are chosen for this one.

    Raises RunDirError as `begin` does, which does it by itself where this was not asked for.
    """
    with _turn(run, here):
        if not _completed(run, run.read_config()):
            look_back(run, here.job)


def begin(run: RunDir, here: Here) -> str:
    """Count a start of the job; returns what to say of it.

    Raises BudgetUsedUp where it was started too often, RunDirError where another job still writes
    to the run directory.
    """
    with _turn(run, here):
        return _begin(run, here)


def _begin(run: RunDir, here: Here) -> str:
    folder, told = SlurmFolder.of(run), run.read_config()
    asked = folder.asked()
    if _completed(run, told):
        return f"{run.path} is completed: there is nothing left to do"
    look_back(run, here.job)
    if attempts := _attempts(folder, asked):
        _refuse_to_go_on(run, attempts, Budgets.of(asked))
    nodes = Nodes(asked["nproc"], asked["nodes"], cpu=told["cpu"])
    if folder.attempts():
        if is_script(told):
            told = scripts.resumed(run, told, nodes)
        else:
            told = resumed(run, {}, nodes, allow_changes=False)
    run.write_config(told | {"threads": threads_of(nodes, told)})
    _forget_last_end(run)
    folder.blame_unfit()
    folder.start(here.job, here.restart, here.nodes)
    queued = next((one.submitted for one in folder.jobs() if one.name == here.job), None)
    again = any((one.job, one.restart) == (here.job, here.restart) for one in attempts)
    times.append(run, "job", name=here.name, time=time.time(), queued=queued, again=again)
    if is_script(told):
        scripts.begin(run)
    saved = checkpoint_files.all_of(run.checkpoints)
    onward = f"goes on after step {saved[-1].step}" if saved else "starts"
    bad = again_on(folder, here.nodes)
    return f"job {here.job} {onward} on {here.nodes} (start {len(attempts) + 1}){bad}"


def end(run: RunDir, here: Here, code: int, heard: str, *, again: bool = False) -> End:
    """Judge an attempt from what it left in the run directory, and decide how the job goes on.

    `code` is srun's exit code, `heard` the signal that the batch script got, if any; `again`: the
    script can start once more on nodes that it is told.
    """
    if other := taken_over(run, here.job, here.restart):
        words = f"error: {other} writes to `{run.path}` now: how this start ended is not noted"
        return End(0 if _completed(run, run.read_config()) else RunDirError.exit_code, words)
    ended = _end(run, here, code, heard, again=again)
    times.append(run, "job end", name=here.name, time=time.time())
    return ended


def _end(run: RunDir, here: Here, code: int, heard: str, *, again: bool) -> End:
    folder, told = SlurmFolder.of(run), run.read_config()
    asked = folder.asked()
    if _completed(run, told):
        return _whole(run, folder, asked)
    state, before = job_state(here.job), _attempts(folder, asked)
    used = hostnames(before[-1].nodes if again and before else here.nodes)
    came = look_at_all(run, asked["nproc"], used or [""] * told["nodes"])
    error = cause(run, told, came, code, stopped=bool(heard) or _is_taken(state))
    if error is None:
        _write_end(run, before, None)
        return _whole(run, folder, asked)
    kind, error = _judged(error, heard, state, lost(used, state))
    known = {name for one in folder.attempts() for name in one.bad_nodes}
    if kind == "failed":
        error = note_bad_nodes(folder, came, before, error)
    slow = leave_out_slow(run, [one.node for one in came])
    new_bad = sorted(folder.bad_nodes().keys() - known)
    last = Attempt(here.job, here.restart, here.nodes, 0, kind, code, reach(run), None, new_bad)
    if is_script(told):
        last = scripts.judged(told, before, last, error)
    told_end = answer(error, [*before[:-1], last], Budgets.of(asked), state)
    folder.end(kind, told_end.code, last.step, new_bad, got_on=last.got_on, error=last.error)
    if kind in ("timeout", "interrupted") and not isinstance(error, Stopped):
        error = Stopped(f"SLURM ended the job: {error.message}")
    _write_end(run, before, error, told_end.given_up)
    for name, why in slow.items():
        words = f"{told_end.message}\nnode {name} is left out from now on: {why}"
        told_end = replace(told_end, message=words)
    if bad := folder.bad_nodes():
        told_end = replace(told_end, exclude=",".join(filter(None, [asked["exclude"], *bad])))
    mends = kind == "failed" or isinstance(error, AskedAgain | NodesLost)
    if told_end.code != Stopped.exit_code or not (again and mends and before) or heard:
        return told_end
    if can_go_on(run, here.nodes, before[-1].started, state):
        return replace(told_end, code=AGAIN, message=f"{told_end.message} on the nodes it has")
    return told_end


def _whole(run: RunDir, folder: SlurmFolder, asked: Mapping[str, Any]) -> End:
    """Note that a run is completed, where that is not noted yet."""
    if (attempts := _attempts(folder, asked)) and attempts[-1].verdict is None:
        folder.end("completed", 0, reach(run), [])
    return End(0, "")


def _write_end(
    run: RunDir, attempts: Sequence[Attempt], error: LauncherError | None, given_up: str = ""
) -> None:
    """Write result.json: how the run ended (None: it completed), or why it was given up."""
    seconds = time.time() - (attempts[0].started if attempts else time.time())
    if given_up:
        said = "" if error is None or isinstance(error, Stopped) else f": {error.message}"
        error = BudgetUsedUp(f"given up: {given_up}{said}")
    told = run.read_config()
    if is_script(told):
        scripts.write_result(run, told, error, seconds)
    elif error:
        write_result(run, told["world_size"], error, seconds)


def _is_taken(state: Mapping[str, str]) -> bool:
    """Whether SLURM has ended the job, as far as it can be asked."""
    return state.get("JobState", "RUNNING") != "RUNNING"


def judge(error: LauncherError, heard: str, state: Mapping[str, str]) -> Verdict:
    """Return what kind of end it was; `state` is what SLURM says of the job now."""
    if state.get("Reason") == "TimeLimit":
        return "timeout"
    if _is_taken(state):
        return "interrupted"  # whatever the processes said while they were being killed
    if isinstance(error, Stopped):
        # Without a warning of the time limit somebody else asked for it, perhaps on one node only:
        # SLURM may still be ending what ran on a node that came back.
        return "timeout" if heard == "USR1" else "interrupted"
    return "mistake" if isinstance(error, BadInput) else "failed"


def _judged(
    error: LauncherError, heard: str, state: Mapping[str, str], gone: Sequence[str]
) -> tuple[Verdict, LauncherError]:
    """Return what kind of end it was, and its cause: nodes that are `gone` explain a failure."""
    kind = judge(error, heard, state)
    if kind == "failed" and gone:
        return "interrupted", NodesLost(f"SLURM has lost {', '.join(gone)}")
    return kind, error


def answer(
    error: LauncherError, attempts: Sequence[Attempt], budgets: Budgets, state: Mapping[str, str]
) -> End:
    """Return what the batch script is to do after the last of these attempts."""
    last = attempts[-1]
    said = "" if isinstance(error, Stopped) else f"error: {error}\n"
    if last.verdict == "interrupted" and _is_taken(state):
        return End(TAKEN, f"{said}SLURM has taken the nodes, after step {last.step}")
    if last.verdict == "mistake" or not budgets.restart:
        return End(error.exit_code, said)
    if why := budgets.used_up(attempts):
        # A job that never started again fails with the code of what went wrong.
        first = len(attempts) == 1 and not isinstance(error, Stopped)
        used_up = error.exit_code if first else BudgetUsedUp.exit_code
        return End(used_up, f"{said}given up: {why}", given_up="" if first else why)
    return End(75, f"{said}{last.verdict} after step {last.step}: to be continued")


def _completed(run: RunDir, told: Mapping[str, Any]) -> bool:
    return is_completed(run, told["hyperparameters"])


def _attempts(folder: SlurmFolder, asked: Mapping[str, Any]) -> list[Attempt]:
    """Return the attempts of the last submission: a new one has new budgets."""
    return [one for one in folder.attempts() if one.started >= asked["submitted"]]


def _refuse_to_go_on(run: RunDir, attempts: Sequence[Attempt], budgets: Budgets) -> None:
    """Raise BudgetUsedUp where the attempts so far leave no other: for the next job of a chain."""
    last = attempts[-1]
    if last.verdict == "mistake":
        raise BudgetUsedUp("the start before this one failed in a way that no restart mends")
    if why := budgets.used_up(attempts):
        if last.code != BudgetUsedUp.exit_code:  # its own end did not say so
            SlurmFolder.of(run).end(last.verdict or "failed", 76, last.step, last.bad_nodes)
            _write_end(run, attempts, Stopped("stopped"), why)
        hint = "`launcher resubmit RUN_DIR` goes on from the last checkpoint"
        raise BudgetUsedUp(f"given up: {why}", hint=hint)


def _forget_last_end(run: RunDir) -> None:
    """Delete what tells how the last attempt ended: this one may die before it writes anything."""
    for path in run.process_files():
        if path.suffix != ".log":
            path.unlink(missing_ok=True)
    for path in SlurmFolder.of(run).path.glob(".meeting-*"):
        path.unlink(missing_ok=True)
    run.result.unlink(missing_ok=True)
