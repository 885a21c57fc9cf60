"""The commands for runs that go on, on a cluster most: status, watch, logs, cancel, pull ..."""

import json
import math
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from launcher.cli.options import sbatch_of, with_sbatch_options
from launcher.cli.say import say
from launcher.cli.slurm import run_here, warn_if_stuck
from launcher.cli.words import OrThere
from launcher.errors import BadInput, LauncherError
from launcher.foreground import here as allocation
from launcher.masks import clean_log
from launcher.processes import orderly, shown
from launcher.remote import place as places
from launcher.remote.place import Place
from launcher.run.directory import RunDir
from launcher.run.job import SlurmFolder
from launcher.run.listing import find_runs, summary
from launcher.slurm import control
from launcher.slurm.status import NoAnswer, Status, find, statuses
from launcher.slurm.status import status as status_of
from launcher.times.goodput import words

_ASK_AGAIN_S = 30.0  # between two questions to SLURM
_FIRST_S = 5.0  # that the first page waits for an answer
_WHICH = click.argument("which", nargs=-1, metavar="[RUN_DIR|JOB]...")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class _RunDir(click.Path):
    """A run directory: one that is here, or at another host."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return its path."""
        return Path(value) if places.of(Path(value)) else super().convert(value, param, ctx)


_RUN_DIR = click.argument("run_dir", type=_RunDir(path_type=Path, file_okay=False, exists=True))


@click.command(cls=OrThere)
@_WHICH
@_JSON
def status(which: tuple[str, ...], as_json: bool) -> None:
    """Show how submitted runs are: those below ./runs, or the given ones.

    A job id is looked for among the runs below ./runs. What SLURM has forgotten is told from the
    run directories. Of one run a second line says where the time of all its starts went.
    """
    paths = find(which)
    elsewhere = [] if which else places.together(places.below(Path("runs")).values())
    try:
        rows = statuses(paths)
    except NoAnswer as error:
        say(f"{error.message}; this is what the run directories say", err=True)
        rows = [status_of(path, None) for path in paths]
    if not as_json and (rows or not elsewhere):
        _show(rows)
    there, code = _there(elsewhere, as_json=as_json)
    if as_json:
        say(json.dumps([asdict(row) for row in rows] + there))
    sys.exit(code)


def _there(
    elsewhere: Sequence[Sequence[Place]], *, as_json: bool
) -> tuple[list[dict[str, Any]], int]:
    """Ask at each other host, where one is silent as well; returns rows, and an exit code."""
    rows, code = [], 0
    for those in elsewhere:
        try:
            if as_json:
                rows += places.rows_of(those)
            else:
                say(f"at {those[0].host}:", err=True)
                places.ask(those[0], ["status", *(one.path for one in those)])
        except LauncherError as error:
            say(f"error: {error}", err=True)
            code = error.exit_code
    return rows, code


def _show(rows: Sequence[Status]) -> None:
    """Print how runs are, a line each."""
    width = max((len(row.run_dir) for row in rows), default=0)
    for row in rows:
        say(_line(row, width))
        for told in row.slow:
            say(f"{'':<{width}}  {told}")
    if len(rows) == 1 and (spent := words(rows[0].times, rows[0].starts)):
        say(spent)
    counts = Counter(row.state for row in rows)
    if len(rows) > 1:
        say(", ".join(f"{count} {state}" for state, count in counts.most_common()))
    if not rows:
        say("no submitted runs below ./runs")


@click.command(cls=OrThere)
@_WHICH
def watch(which: tuple[str, ...]) -> None:
    """Show runs as they go on: progress, curves, speed, ranks, GPUs, last lines.

    Those below ./runs that are alive, else the newest one; or the given ones. Ends with q or
    Ctrl-C. Without a terminal the page is printed once.
    """
    from launcher.report.live import show  # noqa: PLC0415  # rich, only here
    from launcher.report.watch import Curves, page  # noqa: PLC0415

    paths = _watched(which)
    runs = [(path, Curves(RunDir(path).metrics)) for path in paths]
    jobs = _Asking(paths)
    show(lambda width, height: page(runs, jobs.answer(), width, height))


def _watched(which: tuple[str, ...]) -> list[Path]:
    """Return the runs that are meant; raises RunDirError for what is none."""
    if which:
        named = [
            [Path(one)] if RunDir(Path(one)).config.is_file() else find([one]) for one in which
        ]
        return [path.absolute() for paths in named for path in paths]
    found = [summary(path) for path in find_runs(Path("runs"))] if Path("runs").is_dir() else []
    alive = [run for run in found if run.state == "running"]
    shown_runs = alive or sorted(found, key=lambda run: run.created)[-1:]
    if not shown_runs:
        raise BadInput("there are no runs below ./runs", hint="name the folder of a run")
    return [run.path.absolute() for run in shown_runs]


class _Asking:
    """Asks SLURM for jobs of runs, every so often, while the page goes on."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = [path for path in paths if SlurmFolder(path / "slurm").exists()]
        self._found: dict[Path, str] = {}
        self._asked = -math.inf
        self._thread: threading.Thread | None = None

    def answer(self) -> dict[Path, str]:
        """Return the newest answers; waits for the first."""
        if self._paths and time.monotonic() - self._asked > _ASK_AGAIN_S:
            first, self._asked = self._thread is None, time.monotonic()
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()
            if first:
                self._thread.join(_FIRST_S)
        return self._found

    def _ask(self) -> None:
        try:
            rows = statuses(self._paths)
        except NoAnswer:
            rows = [status_of(path, None) for path in self._paths]
        self._found = {
            Path(row.run_dir): " ".join(
                filter(None, (row.job, (row.slurm or row.state).lower(), row.nodes, row.reason))
            )
            for row in rows
        }


def _line(row: Status, width: int) -> str:
    """Return a run in one line."""
    notes = [row.nodes, row.reason if row.is_live or row.state != "completed" else ""]
    if row.starts > 1:
        notes.append(f"start {row.starts}")
    if row.bad_nodes:
        notes.append(f"without {','.join(row.bad_nodes)}")
    if row.error and not row.is_live:
        notes.append(row.error.partition("\n")[0])
    told = f"step {row.step}, {row.epochs} epochs"
    job = row.job or "-"
    line = f"{row.run_dir:<{width}}  {job:>8}  {row.state:<10}  {told:<22}  " + "  ".join(
        filter(None, notes)
    )
    return line.replace("\n", "\\n")


@click.command(cls=OrThere)
@_RUN_DIR
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@click.option("--rank", type=click.IntRange(0), help="What one process said.")
@_JSON
def logs(run_dir: Path, follow: bool, rank: int | None, as_json: bool) -> None:
    """Print the newest batch log of RUN_DIR, or the log of one rank."""
    if follow and as_json:
        raise BadInput("--follow prints as it comes, --json at the end: give one of them")
    path = control.log_of(run_dir, rank)
    if follow:
        control.follow(lambda: control.log_of(run_dir, rank), lambda: control.is_live(run_dir))
        return
    if not path.exists():
        hint = "`launcher status RUN_DIR` says whether it has started"
        raise BadInput(f"there is no `{path}` yet", hint=hint)
    text = path.read_text(encoding="utf-8", errors="replace")
    if as_json:
        say(json.dumps({"path": str(path), "text": text}))
    else:
        sys.stdout.write(clean_log(text))


@click.command(cls=OrThere)
@click.argument("which", nargs=-1, required=True, metavar="RUN_DIR|JOB...")
@_JSON
def cancel(which: tuple[str, ...], as_json: bool) -> None:
    """Cancel all jobs of runs, running and waiting ones; what is saved stays.

    SLURM asks a running job to stop, and it saves a checkpoint; what is left after the site's
    KillWait is killed. `launcher resubmit` goes on with the run.
    """
    paths = find(which)
    cancelled = control.cancel(paths)
    if as_json:
        say(json.dumps([one._asdict() for one in cancelled]))
        return
    for one in cancelled:
        say(
            f"job {one.job}, {one.was}, was told to end; "
            f"go on: launcher resubmit {shown(Path(one.run_dir))}"
        )
    if not cancelled:
        say("nothing to cancel: no job of these runs waits or runs")


@click.command(cls=OrThere)
@_RUN_DIR
@with_sbatch_options
@click.option("--max-requeues", type=click.IntRange(0), help="[default: as before]")
@click.option("--max-failures", type=click.IntRange(0), help="[default: as before]")
@click.option("--here", is_flag=True, help="In the allocation that this is in, as before.")
@_JSON
def resubmit(run_dir: Path, as_json: bool, here: bool, **options: Any) -> None:
    """Submit the run in RUN_DIR again; it goes on from its newest checkpoint.

    The job runs the code as it was at first, with the options of then where none are given now. Of
    an array, those runs go on that are not completed.
    """
    budgets = {
        name: options[name]
        for name in ("max_requeues", "max_failures")
        if options[name] is not None
    }
    if here:
        asked = SlurmFolder(run_dir / "slurm").asked()
        wanted = {"nodes": str(asked.get("nodes", 1))} | sbatch_of(options)
        given = allocation.options(wanted, asked.get("spare_nodes", 0), os.environ)
        run_here(run_dir, control.renew_here(run_dir, given, budgets))
    jobs = control.resubmit(run_dir, sbatch_of(options), budgets)
    if as_json:
        say(json.dumps({"run_dir": str(run_dir), "jobs": [asdict(job) for job in jobs]}))
    else:
        for job in jobs:
            say(f"job {job.name} goes on with {run_dir}")
        say(f"follow it: launcher logs {shown(run_dir)} --follow")
    warn_if_stuck(jobs, run_dir)


@click.command()
@_RUN_DIR
def pull(run_dir: Path) -> None:
    """Bring what `launcher report` needs of a run at another host: texts, and no checkpoint.

    Again brings what is new; nothing here is deleted.
    """
    from launcher.remote.pull import pull as bring  # noqa: PLC0415  # rsync, only here

    with orderly(SystemExit(128 + signal.SIGTERM)):
        place = bring(run_dir)
    say(f"pulled from {place.host}: {shown(run_dir)}")
    say(f"see it with: launcher report {shown(run_dir)}", err=True)
