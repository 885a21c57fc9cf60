"""What is asked before a run: is this machine fit (`doctor`), and what will it take (`plan`)?"""

import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from launcher.cli.answers import JSON, Answers, tell
from launcher.cli.options import sbatch_of, with_sbatch_options
from launcher.cli.say import say
from launcher.cli.words import TakesHyperparameters
from launcher.doctor.checks import Check
from launcher.doctor.doctor import examine
from launcher.errors import BadInput
from launcher.gpus import gpus
from launcher.launch.launch import Nodes
from launcher.launch.launch import check as check_nodes
from launcher.launch.planning import in_words, judged, memory_of, planned
from launcher.masks import clean
from launcher.processes import orderly
from launcher.recipe.file import find, outline
from launcher.recipe.hyperparameters import configure, split_overrides
from launcher.slurm import doctor as slurm_doctor
from launcher.slurm.profile import load


@click.command(cls=Answers)
@click.option("--nproc", type=click.IntRange(1), help="Processes. [default: one per GPU, else 2]")
@click.option("--cpu", is_flag=True, help="Check the CPU although there are GPUs.")
@click.option(
    "--run-dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("runs"),
    show_default=True,
    help="Where run directories are to be: its disk is checked.",
)
@JSON
@click.option("--slurm", is_flag=True, help="Check the nodes of a job, and wait for it.")
@click.option("--profile", default="default", help="Site profile, with --slurm.")
@with_sbatch_options
def doctor(
    nproc: int | None,
    cpu: bool,
    folder: Path,
    slurm: bool,
    profile: str,
    **options: Any,
) -> None:
    """Check that training works here: packages, disk, clock, GPUs, processes and their network.

    Fails when fewer processes come up than asked. Those of sbatch's options are for --slurm.
    """
    folder, sbatch = folder.absolute(), sbatch_of(options)
    with orderly(SystemExit(128 + signal.SIGTERM)):
        if slurm:
            site = load(profile, [Path.cwd() / "slurm" / "profiles"])
            found = slurm_doctor.examine(sbatch, site, nproc, folder)
        elif sbatch:
            raise BadInput(f"--{next(iter(sbatch))} is for --slurm")
        else:
            here = Nodes(nproc or (0 if cpu else gpus()) or 2, cpu=cpu)
            check_nodes(here)
            found = {socket.gethostname(): examine(here, folder)}
    ok = all(check.ok for checks in found.values() for check in checks)
    nodes = {node: [asdict(check) for check in checks] for node, checks in found.items()}
    tell(ok=ok, nodes=nodes)
    _show(found)
    raise SystemExit(0 if ok else 1)


def _show(found: Mapping[str, Sequence[Check]]) -> None:
    """Print a line a check, by node; what to do below what failed."""
    for node, checks in found.items():
        click.secho(clean(node), bold=True)
        for check in checks:
            word, colour = ("ok", "green") if check.ok else ("FAILED", "red")
            detail = clean(check.detail)
            click.echo(f"  {click.style(f'{word:<6}', fg=colour)}  {check.name:<13}  {detail}")
            if not check.ok:
                hint = click.style("hint:", fg="cyan")
                click.echo(f"  {'':<6}  {hint:<13}  {clean(check.remedy)}")


@click.command(cls=TakesHyperparameters)
@click.argument("recipe")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--nproc", type=click.IntRange(1), help="Processes. [default: one per GPU, else 1]")
@click.option("--memory", help="Of the device of each process, like 80GB: does it fit?")
@JSON
def plan(recipe: str, words: tuple[str, ...], nproc: int | None, memory: str | None) -> None:
    """Tell what RECIPE takes to train: memory, operations, steps, a checkpoint.

    Nothing is trained, and no GPU is needed. Sizes are those of each process, without `shard` and
    with it; data are opened for their length and one micro-batch.
    """
    most = memory_of(memory) if memory else None
    file = find(recipe)
    configured = configure(outline(file), str(file.path), split_overrides(words))
    found = planned(file, configured, nproc or gpus() or 1)
    found = judged(found, most) if most else found
    say(in_words(found))
    tell(error=None, hint=None, **found)
