"""The commands that put a run on a cluster: submit, and those that job scripts call."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from launcher.cli.answers import JSON, is_asked, tell, tell_of
from launcher.cli.options import INIT_FROM, TRACKING, sbatch_of, with_sbatch_options
from launcher.cli.say import say
from launcher.cli.scripts import refuse_for_script, script_options, what, with_script_options
from launcher.cli.words import GIVEN, PassesOn
from launcher.errors import BadInput, RunDirError, Stopped
from launcher.foreground import here, local
from launcher.job import chain as job_chain
from launcher.job import lifecycle
from launcher.job import node as job_node
from launcher.job import place as job_place
from launcher.job import requeue as job_requeue
from launcher.job.unheard import TAKEN
from launcher.launch.launch import Nodes
from launcher.processes import orderly, shown
from launcher.run.directory import RunDir
from launcher.run.job import Job, SlurmFolder
from launcher.slurm import control
from launcher.slurm.points import Program, Wishes
from launcher.times import notes as times

if TYPE_CHECKING:
    from launcher.slurm.submit import Plan


def warn_if_stuck(jobs: Sequence[Job], run_dir: Path) -> None:
    """Say it where new jobs of a run would wait for ever."""
    if reason := control.never_starts(jobs):
        words = f"warning: it can never start as it is ({reason})"
        say(f"{words}: launcher cancel {shown(run_dir)}", err=True, colour="yellow")


_RUN_DIR = click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False, exists=True))


@click.command(cls=PassesOn)
@click.argument("recipe", required=False, metavar="RECIPE|SCRIPT")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]... [-- ...]")
@with_sbatch_options
@click.option(
    "--nproc",
    type=click.IntRange(1),
    help="Processes a node. [default: one per GPU, else 1; for a script 1]",
)
@click.option(
    "--spare-nodes",
    type=click.IntRange(0),
    metavar="N",
    default=0,
    help="Nodes on top, for starts without those that fail or are lost.",
)
@click.option("--exclude-slow", is_flag=True, help="Start again without nodes that were slow.")
@with_script_options
@click.option("--grid", multiple=True, metavar="KEY=V1,V2", help="One run for each combination.")
@click.option("--max-parallel", type=click.IntRange(1), help="Runs of a grid at the same time.")
@click.option("--profile", default="default", help="Site profile: a name or a TOML file.")
@click.option(
    "--template",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder with job.sbatch.j2 or node.sh.j2. [default: slurm/ beside the recipe]",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="[default: runs/RECIPE-TIME-ID]")
@click.option("--max-requeues", type=click.IntRange(0), default=100, show_default=True,
              help="Starts after time limits, and as many after lost nodes.")  # fmt: skip
@click.option("--max-failures", type=click.IntRange(0), default=3, show_default=True,
              help="Starts after failures.")  # fmt: skip
@click.option("--no-requeue", is_flag=True, help="End for good at the first end.")
@click.option("--chain", type=click.IntRange(2), metavar="N",
              help="N dependent jobs, where a site forbids to requeue.")  # fmt: skip
@TRACKING
@INIT_FROM
@click.option("--no-snapshot", is_flag=True, help="Run the code as it is when the job starts.")
@click.option("--no-checks", is_flag=True, help="Start without checking the nodes first.")
@click.option("--local", is_flag=True, help="Run the same scripts here, without SLURM.")
@click.option("--here", is_flag=True, help="Run in the allocation of `salloc` that this is in.")
@click.option(
    "--host", metavar="LOGIN", help="At another machine, by ssh: see the guide's cluster."
)
@click.option("--staged", is_flag=True, hidden=True, help="As `--host` calls it there.")
@click.option("--follow", is_flag=True, help="Print the batch log until the job ends.")
@click.option("--dry-run", is_flag=True, help="Print the scripts and where values come from.")
@JSON
@click.pass_context
def submit(
    ctx: click.Context, /, recipe: str | None, words: tuple[str, ...], **options: Any
) -> None:
    """Train RECIPE on a SLURM cluster, through preemption and time limits.

    The options come from the command line, else from the site profile. `--grid` makes an array of
    runs, one for each combination of values.

    Any other Python program is a SCRIPT, started as it is: what comes after -- is the program's.
    """
    from launcher.slurm import shown as slurm_shown  # noqa: PLC0415  # brings Jinja, which is not light
    from launcher.slurm import submit as submission  # noqa: PLC0415

    if options["staged"]:  # whoever has called this does both
        options |= {"host": None, "follow": False}
    if options["follow"] and (options["grid"] or is_asked()):
        raise BadInput("--follow prints the log of one run: it goes with neither --grid nor --json")
    asked = what(recipe, words, ctx.args, options["nproc"], script_options(options))
    refuse_for_script(asked, grid=options["grid"], init_from=options["init_from"])
    own = asked.words if asked.script else (*asked.words, *ctx.args)
    named = {one.name: options[one.name] for one in fields(Wishes)[3:]}
    wishes = Wishes(asked.word, own, _given(options), **named)
    plan = submission.plan(wishes, Program(asked.file, asked.script))
    if host := _host(plan, options):
        _submit_there(plan, host, ctx.meta[GIVEN], follow=options["follow"])
    for warning in plan.warnings:
        say(f"warning: {warning}", err=True, colour="yellow")
    if options["dry_run"]:
        submission.check(plan, queue=False)
        tell(**slurm_shown.as_json(plan))
        if not is_asked():
            say(slurm_shown.shown(plan))
        return
    in_foreground = options["local"] or options["here"]
    submission.check(plan, queue=not in_foreground)
    if options["local"]:
        alone = {"spare-nodes": wishes.spare_nodes, "exclude-slow": wishes.exclude_slow}
        local.check(plan.nodes, plan.request.gpus, [name for name, given in alone.items() if given])
    folder = submission.make(plan)
    if in_foreground:
        _run_in_foreground(plan, folder)
    jobs = submission.submit(plan, folder)
    where = shown(plan.request.run_dir)
    tell(jobs=[job.id for job in jobs], run_dir=str(plan.request.run_dir))
    say(f"job {', '.join(job.id for job in jobs)}: {where}")
    how = "status" if plan.wishes.grid else "logs --follow"
    say(f"follow it with: launcher {how} {where}")
    warn_if_stuck(jobs, plan.request.run_dir)
    if options["follow"]:
        sys.exit(0 if control.follow_run(plan.request.run_dir) == "completed" else 1)


def _host(plan: "Plan", options: Mapping[str, Any]) -> str | None:
    """Return the host to submit at: the one of --host, else the profile's; None for this machine.

    Raises BadInput for options that do not go together with it.
    """
    stays = [name for name in ("local", "here", "dry_run") if options[name]]
    if options["staged"] or (stays and not options["host"]):
        return None
    host: str | None = options["host"] or plan.request.profile.host
    for name in (*stays, *(one for one in ("init_from", "no_snapshot") if host and options[one])):
        hint = "the code goes there as it is now, and what else it needs has to be there"
        raise BadInput(f"--{name.replace('_', '-')} goes with no --host", hint=hint)
    return host


def _submit_there(plan: "Plan", host: str, words: Sequence[str], *, follow: bool) -> NoReturn:
    """Submit a run at another host, and say where it is."""
    from launcher.remote import place as places  # noqa: PLC0415  # only where there is a host
    from launcher.remote import submit as remote  # noqa: PLC0415

    run_dir = plan.request.run_dir
    with orderly(SystemExit(128 + signal.SIGTERM)):
        place = remote.submit(plan, host, words)
    tell(jobs=list(place.jobs), run_dir=str(run_dir), host=host, run_dir_there=place.path)
    say(f"job {', '.join(place.jobs)} at {host}: {shown(run_dir)}")
    how = "status" if plan.wishes.grid else "logs --follow"
    say(f"follow it with: launcher {how} {shown(run_dir)}")
    if follow:
        places.ask(place, ["logs", place.path, "--follow"])
        sys.exit(0 if places.rows_of([place])[0]["state"] == "completed" else 1)
    sys.exit(0)


def _given(options: Mapping[str, Any]) -> dict[str, str]:
    """Return sbatch's options; in an allocation those that it settles.

    Raises BadInput for what goes with no run there.
    """
    given = sbatch_of(options)
    if not options["here"]:
        return given
    for name in ("local", "grid", "chain", "no_requeue", "follow"):
        if options[name]:
            hint = "it is one run, in the foreground, and no queue is behind it"
            raise BadInput(f"--{name.replace('_', '-')} goes with no --here", hint=hint)
    return here.options(given, options["spare_nodes"], os.environ)


def run_here(run_dir: Path, folder: SlurmFolder) -> NoReturn:
    """Run the scripts of a run in the allocation that this process is in, and end as they do."""
    code = here.run(folder)
    tell_of(RunDir(run_dir))
    if code == Stopped.exit_code:
        say(f"it is to be continued; go on: launcher resubmit {shown(run_dir)} --here", err=True)
    sys.exit(code)


def _run_in_foreground(plan: "Plan", folder: SlurmFolder) -> NoReturn:
    """Run the scripts of a submission on this machine, or from here on, and end as they do."""
    if plan.wishes.here:
        run_here(plan.request.run_dir, folder)
    code = local.run(folder, plan.nodes, len(plan.points) if plan.wishes.grid else 0)
    if plan.wishes.grid:
        tell(run_dir=str(plan.request.run_dir))
    else:
        tell_of(plan.points[0].run)
    if code == Stopped.exit_code:
        say(f"stopped on request; go on: launcher resume {shown(plan.request.run_dir)}", err=True)
    sys.exit(code)


@click.group()
def job() -> None:
    """What job scripts call: begin, node, end, requeue."""


@contextmanager
def _kept(run_dir: Path) -> Iterator[None]:
    """Say in words that the disk of a run directory takes nothing."""
    try:
        yield
    except OSError as error:
        words = f"run directory `{run_dir}` cannot be written: {error.strerror}"
        raise RunDirError(words, hint="free space on its disk, then `launcher resubmit`") from error


@job.command()
@_RUN_DIR
@click.option("--place", is_flag=True, help="Print how many nodes to start on, and which.")
def begin(run_dir: Path, place: bool) -> None:
    """Count a start of the job; fails where it was started too often."""
    here, run = lifecycle.Here.read(os.environ), RunDir(run_dir.absolute())
    with _kept(run_dir):
        lifecycle.prepare(run, here)
    if job_requeue.goes_elsewhere(run, here.job, here.nodes):
        sys.exit(TAKEN)
    names = job_place.place(run, here.job, here.nodes) if place else []
    with _kept(run_dir):
        say(lifecycle.begin(run, here.on(names)), err=place)
    job_chain.leave_out(run, here.job, job_chain.HURRIED_S)
    if place:
        say(f"{len(names)} {','.join(names)}")


@job.command()
@_RUN_DIR
@click.option("--nproc", type=click.IntRange(1), required=True)
@click.option("--nnodes", type=click.IntRange(1), required=True)
@click.option("--node-rank", type=int, required=True)
@click.option("--rdzv-endpoint", required=True)
def node(run_dir: Path, nproc: int, nnodes: int, node_rank: int, rdzv_endpoint: str) -> None:
    """Run one node's processes to their end."""
    run = RunDir(run_dir.absolute())
    cpu = bool(run.read_config()["cpu"])
    nodes = Nodes(nproc, nnodes, node_rank, rdzv_endpoint, cpu)
    sys.exit(job_node.node(run, nodes, os.environ))


@job.command()
@_RUN_DIR
@click.option("--code", type=int, required=True, help="The exit code of srun.")
@click.option("--heard", default="", help="The last signal that the batch script got.")
@click.option("--again", is_flag=True, help="The script can start again on the nodes it has: 77.")
def end(run_dir: Path, code: int, heard: str, again: bool) -> None:
    """Say how it went and how the job goes on: by exit code 0, 75 to requeue, else a failure.

    The last line says where the time of all starts went. Prints the nodes that the next start must
    not get.
    """
    here, run = lifecycle.Here.read(os.environ), RunDir(run_dir.absolute())
    with _kept(run_dir):
        ended = lifecycle.end(run, here, code, heard, again=again)
    for words in (ended.message, times.said(run)):
        if words:
            say(words, err=True)
    if ended.exclude:
        say(ended.exclude)
    within_s = job_chain.HURRIED_S if heard else job_chain.UNHURRIED_S
    job_chain.leave_out(run, here.job, within_s)
    sys.exit(ended.code)


@job.command()
@_RUN_DIR
@click.option("--exclude", default="", help="Nodes that the next start must not get.")
def requeue(run_dir: Path, exclude: str) -> None:
    """Put the job back into the queue, however long SLURM takes to answer."""
    here = lifecycle.Here.read(os.environ)
    job_requeue.requeue(RunDir(run_dir.absolute()), here.job, exclude)
