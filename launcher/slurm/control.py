"""What is done to submitted runs: cancel their jobs, submit them again, follow what they say."""

import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from launcher.errors import BadInput, LauncherError, RunDirError
from launcher.files import write_json
from launcher.masks import clean_log
from launcher.processes import shown
from launcher.run.directory import RunDir
from launcher.run.job import Job, SlurmFolder
from launcher.run.node_marks import told
from launcher.slurm import client
from launcher.slurm.options import nodes_of, settled, words_of
from launcher.slurm.profile import Profile
from launcher.slurm.status import NoAnswer, Status, ask, jobs_now, runs_of, statuses

_LOOK_S = 0.5  # between two looks at a log
_ASK_S = 5.0  # between two questions to SLURM
_STARTS_S = 120.0  # until the first node of a start has told its step
_FIRST_LOOK_S = 1.0  # what SLURM takes to find out that a new job can never start
# Its reasons for that; others pass: Resources, Priority, QOSMaxJobsPerUserLimit.
_NEVER = re.compile(
    r"^(Partition(Config|NodeLimit|TimeLimit)|Invalid\w+|Bad\w+|\w+NotAllowed|\w+NeverSatisfied"
    r"|\w+(PerJob|PerNode|Minutes)(Limit)?|\w+NotSatisfied)$"
)


class Cancelled(NamedTuple):
    """A job that was told to end, and the run it belongs to."""

    run_dir: str
    job: str
    was: str  # SLURM's word for it before


def never_starts(jobs: Sequence[Job]) -> str | None:
    """Return SLURM's reason why new jobs can never start, None where it has said none by now."""
    time.sleep(_FIRST_LOOK_S)
    try:
        now = jobs_now(job.id for job in jobs)
    except NoAnswer:
        return None
    reasons = {one.reason for one in now.values() if one.state == "PENDING"}
    return next(filter(_NEVER.match, sorted(reasons)), None)


def cancel(paths: Sequence[Path]) -> list[Cancelled]:
    """Tell all jobs of runs to end; returns those that waited or ran.

    SLURM sends SIGTERM, upon which a run saves a checkpoint, and kills what is left after the
    site's KillWait (30 s by default). Of a run in somebody's allocation no more than its step ends.
    Raises LauncherError with SLURM's words where it refuses.
    """
    jobs = {path: SlurmFolder(path / "slurm").jobs() for path in paths}
    asked = jobs_now(job.id for ones in jobs.values() for job in ones)
    now = {name: job for name, job in asked.items() if job.is_live}
    live = [
        Cancelled(str(path), job.name, now[job.name].state)
        for path, ones in jobs.items()
        for job in ones
        if job.name in now
    ]
    if live:
        _scancel(*_in_few_words([one.job for one in live], now))
        _note(live)
    steps = [Cancelled(str(path), step, "RUNNING") for path in paths if (step := _step(path))]
    if steps:  # without a word of which signal, a step is killed at once
        _scancel("--signal=TERM", *(one.job for one in steps))
    return live + steps


def _scancel(*words: str) -> None:
    done = ask("scancel", *words)
    if done.returncode:
        raise LauncherError(f"scancel failed: {done.stderr.strip()}")


def _step(path: Path) -> str | None:
    """Return the step that a run is in the allocation of `submit --here`, None where it is none.

    Raises BadInput where it is just starting: SLURM does not know it yet.
    """
    folder = SlurmFolder(path / "slurm")
    attempts = folder.attempts() if folder.asked().get("restart") == "here" else []
    queued = [job.name for job in folder.jobs()]
    if not attempts or attempts[-1].verdict or attempts[-1].job in queued:
        return None
    step = told(RunDir(path), "srun")
    if not step and time.time() - attempts[-1].started < _STARTS_S:
        hint = "try again in a moment, or give Ctrl-C where it runs"
        raise BadInput(f"`{path}` is just starting in job {attempts[-1].job}", hint=hint)
    lives = step and step in ask("squeue", "--noheader", f"--steps={step}", "--format=%i").stdout
    return step if lives else None


def end_step(folder: SlurmFolder) -> None:
    """Kill what runs of a run in an allocation, where anything does."""
    if step := told(RunDir(folder.path.parent), "srun"):
        ask("scancel", step)


def _note(cancelled: Sequence[Cancelled]) -> None:
    """Note what was cancelled, all tasks of an array at once, in the array's folder."""
    names: dict[SlurmFolder, list[str]] = defaultdict(list)
    for one in cancelled:
        folder = SlurmFolder(Path(one.run_dir) / "slurm")
        is_task = folder.asked().get("array_task") is not None
        names[folder.of_array() if is_task else folder].append(one.job)
    for folder, those in names.items():
        folder.add_cancelled(those)


def _in_few_words(names: Sequence[str], live: Iterable[str]) -> list[str]:
    """Name jobs as scancel takes them, the tasks of an array in one word: 12_[0,3].

    All of an array are the array itself: SLURM forgets a waiting task that is cancelled alone.
    """
    tasks: dict[str, list[str]] = defaultdict(list)
    for name in names:
        job, _, task = name.partition("_")
        tasks[job].append(task)
    counts = Counter(name.partition("_")[0] for name in live)
    return [
        job if len(those) == counts[job] else f"{job}_[{','.join(those)}]"
        for job, those in tasks.items()
    ]


def resubmit(path: Path, options: Mapping[str, str], budgets: Mapping[str, int]) -> list[Job]:
    """Submit a run again, or those of an array that are not completed; returns the new jobs.

    The scripts and the code are those of the first time; `options` are sbatch's and win over
    theirs. Nodes that failed their checks are left out. Budgets start anew.

    Raises BadInput while a job of it waits or runs, and where nothing is left to do.
    """
    folder = SlurmFolder(path / "slurm")
    asked = folder.asked()
    if not asked:
        raise RunDirError(f"`{path}` was not made by `launcher submit`")
    told = _checked(options, asked["nproc"])
    left = _left_to_do(path)
    if "exclude" not in told and (exclude := _excluded(asked, left)):
        told["exclude"] = exclude
    if "nodes" in told:
        told["nodes"] = str(int(told["nodes"]) + asked.get("spare_nodes", 0))
    folders = {folder, *(SlurmFolder(Path(one.run_dir) / "slurm") for one in left)}
    before, jobs = {one: one.asked() for one in folders}, folder.jobs()
    for one, was in before.items():  # first: the job may start before sbatch has ended
        write_json(one.job, _asked_now(was, options, budgets))
    try:
        return _submit(folder, asked, told, left)
    except (BadInput, client.RefusedError):
        if folder.jobs() == jobs:  # nothing of it was submitted
            for one, was in before.items():
                write_json(one.job, was)
        raise


def renew_here(path: Path, options: Mapping[str, str], budgets: Mapping[str, int]) -> SlurmFolder:
    """Give a run of `submit --here` new budgets; raises BadInput for others, and completed ones."""
    folder = SlurmFolder(path / "slurm")
    asked = folder.asked()
    if asked.get("restart") != "here" or folder.jobs():
        hint = f"`launcher resubmit {shown(path)}` puts it into the queue"
        raise BadInput(f"`{path}` was not made by `launcher submit --here`", hint=hint)
    _left_to_do(path)
    write_json(folder.job, _asked_now(asked, options, budgets))
    return folder


def _checked(options: Mapping[str, str], nproc: int) -> dict[str, str]:
    """Return options that can be changed; raises BadInput for those that cannot."""
    for name in options:
        if name in ("gpus", "gpus-per-node", "gres"):
            hint = "submit a new run, or edit RUN_DIR/slurm/node.sh and job.sbatch"
            raise BadInput(f"--{name}: the scripts start {nproc} processes a node", hint=hint)
    settings = settled(options, Profile(), {})
    if "nodes" in settings:
        nodes_of(settings)  # raises where it is no number
    return {name: one.value for name, one in settings.items()}


def _left_to_do(path: Path) -> list[Status]:
    """Return how those runs are that are to go on; raises BadInput where there is none."""
    all_of = statuses(runs_of(path))
    for one in all_of:
        if one.is_live:
            raise BadInput(
                f"job {one.job} of `{one.run_dir}` is {one.slurm}",
                hint=f"wait for its end, or `launcher cancel {shown(path)}` first",
            )
    if left := [one for one in all_of if one.state != "completed"]:
        return left
    raise BadInput(
        f"`{path}` is completed", hint="`launcher resume RUN_DIR epochs=N` trains for longer"
    )


def _excluded(asked: Mapping[str, Any], runs: Sequence[Status]) -> str:
    bad = {node for run in runs for node in run.bad_nodes}
    return ",".join([*filter(None, [asked.get("exclude")]), *sorted(bad)])


def _asked_now(
    asked: dict[str, Any], options: Mapping[str, str], budgets: Mapping[str, int]
) -> dict[str, Any]:
    """Return what job.json says from now on."""
    given = {name: {"value": value, "source": "resubmit"} for name, value in options.items()}
    now: dict[str, Any] = {**asked, **budgets} | {"submitted": time.time()}
    now["options"] = asked.get("options", {}) | given
    if "nodes" in options:
        now["nodes"] = int(options["nodes"])
    if "exclude" in options:
        now["exclude"] = options["exclude"]
    return now


def _submit(
    folder: SlurmFolder,
    asked: Mapping[str, Any],
    options: Mapping[str, str],
    left: Sequence[Status],
) -> list[Job]:
    words = list(words_of(options))
    task, script = asked.get("array_task"), folder.batch
    if task is not None:  # one run of an array, whose script is the array's
        script = SlurmFolder(folder.path.parent.parent / "slurm").batch
        words.append(f"--array={task}")
    elif asked.get("array"):
        tasks = [
            str(SlurmFolder(Path(one.run_dir) / "slurm").asked()["array_task"]) for one in left
        ]
        limit = asked["array"].partition("%")[2]
        words.append(f"--array={','.join(tasks)}" + (f"%{limit}" if limit else ""))
    return client.submit_chain(folder, script, words, asked["chain"], task)


def is_live(path: Path) -> bool:
    """Whether a run waits in a queue or runs, in a job or on this machine."""
    now = statuses([path])[0]
    return now.is_live or now.state == "running"


def log_of(path: Path, rank: int | None) -> Path:
    """Return the newest batch log of a run, or a rank's log; rank 0's where there was no job."""
    folder = SlurmFolder(path / "slurm")
    if folder.asked().get("array") and not RunDir(path).config.exists():
        raise BadInput(
            f"`{path}` is an array of runs", hint=f"name one of them: {shown(path / '0')}"
        )
    outputs = folder.outputs()
    if rank is None and outputs:
        return outputs[-1]
    return RunDir(path).log(rank or 0)


def follow(log: Callable[[], Path], lives: Callable[[], bool]) -> None:
    """Print a log and what is added to it until its run has ended; the log may be another then.

    The last lines may come after the end, so there is one more look.
    """
    position, path, alive = 0, log(), True
    asked_at = -_ASK_S
    while True:
        position = _print_from(path, position)
        if not alive:
            return
        if time.monotonic() - asked_at > _ASK_S:
            alive, asked_at = lives(), time.monotonic()
        time.sleep(_LOOK_S)
        if (now := log()) != path:
            _print_from(path, position)
            path, position = now, 0


def follow_run(path: Path) -> str:
    """Print the batch logs of a run's jobs until the last has ended; returns its state then."""
    follow(lambda: log_of(path, None), lambda: is_live(path))
    return statuses([path])[0].state


def _print_from(path: Path, position: int) -> int:
    """Print a file from a position on; returns its end."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            added = file.read()
    except FileNotFoundError:
        return position
    sys.stdout.write(clean_log(added.decode(errors="replace")))
    sys.stdout.flush()
    return position + len(added)
