"""How submitted runs are: squeue is asked first, sacct where it works, and the run directory.

SLURM knows whether a job waits or runs, and forgets it minutes after its end. How the run went is
in the run directory in any case, so the truth needs no accounting.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import BadInput, BudgetUsedUp, RunDirError
from launcher.run.directory import RunDir
from launcher.run.job import Attempt, SlurmFolder
from launcher.run.listing import RunSummary, summary
from launcher.slurm.client import environment
from launcher.times import notes as times
from launcher.times import slow

# SLURM's words for a job that has ended.
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
_IDS_AT_ONCE = 500
_NEVER_BEGUN = "the job's script ended without having begun the run: see its batch log"
_ANSWER_S = 60


@dataclass(frozen=True)
class JobNow:
    """What SLURM says of a job; a task of an array is a job, too."""

    state: str  # SLURM's word: PENDING, RUNNING, ...
    nodes: str = ""
    reason: str = ""  # why it waits, or how it ended
    start: str = ""  # when it started, or is expected to

    @property
    def is_live(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED


@dataclass(frozen=True)
class Status:
    """How one submitted run is."""

    run_dir: str
    job: str | None  # the one that matters: live, else the newest
    state: str  # pending, running, ...; completed, failed, cancelled, stopped, killed, unstarted
    slurm: str | None  # SLURM's word, None where it knows the job no longer
    nodes: str
    reason: str
    starts: int  # of jobs, with requeues
    verdict: str | None  # how the newest start ended, by the run directory
    step: int
    epochs: int  # finished
    error: str | None
    bad_nodes: dict[str, str]
    slow: list[str]  # ranks that the others wait for, in words, at the last report
    times: dict[str, float]  # seconds of all starts by what they went into, as far as is noted

    @property
    def is_live(self) -> bool:
        """Whether a job of it waits or runs."""
        return self.slurm is not None and self.slurm not in ENDED


class NoAnswer(BadInput):
    """SLURM cannot be asked."""


def jobs_now(ids: Iterable[str]) -> dict[str, JobNow]:
    """Return what SLURM knows of jobs, by name: 12, or 12_3 for a task of array 12.

    All ids go into one question; jobs that SLURM has forgotten are left out. Raises NoAnswer.
    """
    asked = list(dict.fromkeys(ids))
    found: dict[str, JobNow] = {}
    for at in range(0, len(asked), _IDS_AT_ONCE):
        found |= _squeue(asked[at : at + _IDS_AT_ONCE])
    known = {name.partition("_")[0] for name in found}
    forgotten = [job for job in asked if job not in known]
    return _sacct(forgotten) | found if forgotten else found


def _squeue(ids: Sequence[str]) -> dict[str, JobNow]:
    # The reason comes last: it is the one field that may hold anything.
    words = ["--noheader", "--array", "--states=all", "--format=%i|%T|%N|%S|%r"]
    done = ask("squeue", *words, f"--jobs={','.join(ids)}")
    if done.returncode and "Invalid job id" not in done.stderr:
        raise NoAnswer(
            f"SLURM does not answer: {done.stderr.strip()}",
            hint="`sinfo` says whether the controller is up",
        )
    rows = [line.split("|", 4) for line in done.stdout.splitlines()]
    return {row[0]: JobNow(row[1], row[2], row[4], row[3]) for row in rows if len(row) == 5}


def _sacct(ids: Sequence[str]) -> dict[str, JobNow]:
    """Return the ended jobs that the accounting remembers, {} where a site has none.

    Jobs that it believes to run, and squeue does not know, were lost by SLURM: they are left out.
    """
    words = ["--allocations", "--noheader", "--parsable2", "--format=JobID,State,NodeList,Start"]
    try:
        done = ask("sacct", *words, f"--jobs={','.join(ids)}")
    except NoAnswer:
        return {}
    rows = [line.split("|") for line in done.stdout.splitlines()] if not done.returncode else []
    found: dict[str, JobNow] = {}
    for name, state, nodes, start in (row for row in rows if len(row) == 4):
        job = JobNow(state.split()[0], "" if nodes == "None assigned" else nodes, "", start)
        if not job.is_live:  # "CANCELLED by 1000" is the one state of more than a word
            found |= dict.fromkeys(_tasks(name), job)
    return found


def _tasks(name: str) -> Iterator[str]:
    """Give the tasks that never started as jobs, which sacct has in one name: 12_[0,3-5%2]."""
    job, is_array, listed = name.partition("_[")
    if not is_array:
        yield name
        return
    for part in listed.rstrip("]").partition("%")[0].split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        for task in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{job}_{task}"


def ask(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run a client command of SLURM; raises NoAnswer where there is none, or it hangs."""
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            check=False,
            timeout=_ANSWER_S,
            env=_environment(),
        )
    except FileNotFoundError as error:
        raise NoAnswer(
            f"there is no `{words[0]}` here", hint="ask on a login node of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"`{words[0]}` has not answered in {_ANSWER_S} s") from error


def _environment() -> dict[str, str]:
    """Return the environment without what would change a client's output."""
    env = environment(os.environ)
    env = {k: v for k, v in env.items() if not k.startswith(("SQUEUE_", "SACCT_", "SINFO_"))}
    return env | {"SLURM_BITSTR_LEN": "0"}  # sacct cuts the tasks of an array short otherwise


def submitted_runs(folder: Path) -> Iterator[Path]:
    """Give the run directories in a folder that were submitted: arrays as their runs."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if SlurmFolder(path / "slurm").exists() and not RunDir(path).is_copy:
            yield from runs_of(path)


def runs_of(path: Path) -> list[Path]:
    """Return the run directories of a submission: itself, or those of an array by task."""
    if RunDir(path).config.exists():
        return [path]
    inner = [one for one in path.iterdir() if SlurmFolder(one / "slurm").exists()]
    return sorted(inner, key=lambda one: SlurmFolder(one / "slurm").asked().get("array_task", 0))


def find(words: Sequence[str], folder: Path = Path("runs")) -> list[Path]:
    """Return the run directories of names of folders and ids of jobs; all in `folder` without.

    Raises RunDirError for what is neither, or was not submitted.
    """
    if not words:
        return list(submitted_runs(folder))
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word)
        if SlurmFolder(path / "slurm").exists():
            found |= dict.fromkeys(runs_of(path))
        elif os.path.isdir(word):  # noqa: PTH112  # `is_dir` raises for what no name can be
            raise RunDirError(
                f"`{word}` was not made by `launcher submit`", hint="`launcher runs` shows it"
            )
        elif those := [run for run in submitted_runs(folder) if _has_job(run, word)]:
            found |= dict.fromkeys(those)
        else:
            raise RunDirError(
                f"`{word}` is no run directory, and no run in `{folder}` has a job of that id",
                hint="`launcher status` lists them",
            )
    return list(found)


def _has_job(path: Path, word: str) -> bool:
    jobs = SlurmFolder(path / "slurm").jobs()
    return any(word in (job.id, job.name) for job in jobs)


def statuses(paths: Sequence[Path]) -> list[Status]:
    """Return how runs are; asks SLURM once for all of them. Raises NoAnswer."""
    ids = [job.id for path in paths for job in SlurmFolder(path / "slurm").jobs()]
    now = jobs_now(ids) if ids else {}
    return [status(path, now) for path in paths]


def status(path: Path, asked: Mapping[str, JobNow] | None) -> Status:
    """Return how one run is, by what SLURM says of jobs and by its own files.

    None where SLURM could not be asked: then a run without an end may be anything.
    """
    folder, now = SlurmFolder(path / "slurm"), asked or {}
    names = [job.name for job in folder.jobs()]
    live = [name for name in names if name in now and now[name].is_live]
    live.sort(key=lambda name: now[name].state == "PENDING")  # of a chain, the one that runs
    remembered = [name for name in names if name in now]
    name = next(iter([*live, *reversed(remembered), *reversed(names)]), None)
    job = now.get(name or "")
    attempts = folder.attempts()
    run = _summary(path)
    slurms = job.state.lower() if job else None
    if job is None and name in folder.cancelled() and not (run and run.state == "running"):
        slurms = "cancelled"
    unbegun = folder.words_of_script()
    if slurms == "completed" and not attempts:
        unbegun = unbegun or _NEVER_BEGUN
    known = asked is not None
    state = _state(slurms, run, attempts, begun=not unbegun) if known else _state_alone(run)
    return Status(
        run_dir=str(path),
        job=name,
        state=state,
        slurm=job.state if job else None,
        nodes=_nodes(name, job, attempts),
        reason=_reason(job),
        starts=len(attempts),
        verdict=attempts[-1].verdict if attempts else None,
        step=max([run.step if run else 0, *(one.step for one in attempts)]),
        epochs=run.epochs if run else 0,
        error=(unbegun if state == "failed" else "") or (run.error if run else None),
        bad_nodes=folder.bad_nodes(),
        slow=[one.words for one in slow.read(RunDir(path))],
        times=times.spent(RunDir(path), alive=run is not None and run.state == "running"),
    )


def _nodes(name: str | None, job: JobNow | None, attempts: Sequence[Attempt]) -> str:
    """Return the nodes that a run uses: a job may have spare ones."""
    goes_on = bool(attempts) and attempts[-1].job == name and attempts[-1].verdict is None
    if job and job.nodes and not goes_on:
        return job.nodes
    return attempts[-1].nodes if attempts else ""


def _summary(path: Path) -> RunSummary | None:
    try:
        return summary(path)
    except RunDirError:  # being made, or torn
        return None


def _state(
    slurms: str | None, run: RunSummary | None, attempts: Sequence[Attempt], *, begun: bool
) -> str:
    """Return one word: SLURM's while the job lives, then what the run directory tells.

    SLURM calls a job completed whose script ended with exit code 0, for whatever reason: only the
    run's own word counts.
    """
    if slurms and slurms.upper() not in ENDED:
        return slurms
    if run and (run.state == "completed" or (run.state == "running" and slurms is None)):
        return run.state  # without a job: on this machine
    if slurms == "cancelled":
        return slurms
    if not attempts or not begun:
        return (slurms or "unstarted") if begun else "failed"
    last = attempts[-1]
    if last.verdict is None:  # it died unheard: SLURM may know of what
        return slurms if slurms and slurms != "completed" else "killed"
    given_up = last.code == BudgetUsedUp.exit_code
    return "failed" if given_up or last.verdict in ("failed", "mistake") else "stopped"


def _state_alone(run: RunSummary | None) -> str:
    return run.state if run and run.state in ("completed", "running") else "unknown"


def _reason(job: JobNow | None) -> str:
    if job is None or job.reason in ("", "None"):
        return ""
    expected = f", expected to start {job.start}" if job.start not in ("", "N/A", "NONE") else ""
    return job.reason + (expected if job.state == "PENDING" else "")
