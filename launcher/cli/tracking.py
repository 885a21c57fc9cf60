"""The commands about W&B: sync and sweep."""

import json
from pathlib import Path
from typing import Any

import click

from launcher.cli.say import say
from launcher.errors import BadInput
from launcher.launch.resume import check_is_run
from launcher.run.directory import RunDir
from launcher.run.listing import find_runs
from launcher.tracking.uploads import check_credentials, is_uploaded, run_agent, start_sweep
from launcher.tracking.uploads import sync as upload


@click.command()
@click.argument(
    "run_dirs",
    nargs=-1,
    metavar="[RUN_DIR]...",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@click.pass_context
def sync(ctx: click.Context, run_dirs: tuple[Path, ...], as_json: bool) -> None:
    """Upload runs to W&B: those given, else all below ./runs that are not there yet.

    A run is complete when the server says that it has every row; doing it again sends nothing.
    The exit code is 1 when any of them is not complete.
    """
    check_credentials()
    folders = [RunDir(path.absolute()) for path in run_dirs]
    for folder in folders:
        check_is_run(folder)
    if not folders:
        found = sorted(path.absolute() for path in find_runs(Path("runs")))
        folders = [run for run in map(RunDir, found) if not is_uploaded(run)]
    answers = []
    for folder in folders:
        answers.append({"run": str(folder.path), **_uploaded(folder)})
        if not as_json:
            say(_words(folder, answers[-1]))
    if as_json:
        say(json.dumps(answers))
    elif not folders:
        say("nothing to upload")
    if not all(answer["complete"] for answer in answers):
        ctx.exit(1)


def _uploaded(folder: RunDir) -> dict[str, Any]:
    """Upload one of several runs: what is wrong with it keeps no other from its turn."""
    try:
        return upload(folder)
    except BadInput as error:
        return {"complete": False, "error": error.message}


def _words(folder: RunDir, answer: dict[str, Any]) -> str:
    name = folder.path.name
    if answer["complete"]:
        return f"{name}: complete, {answer['sent']} rows sent now, {answer['url']}"
    return f"{name}: NOT complete: {answer.get('error', 'rows are missing on the server')}"


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--project", help="W&B project. [default: the file's, else WANDB_PROJECT]")
@click.option("--count", type=click.IntRange(1), help="Most trials to run here.")
def sweep(file: Path, project: str | None, count: int | None) -> None:
    """Start a W&B sweep from FILE, and run its trials on this machine.

    \b
    The file's command must be, with the recipe as `program`:
        command: [launcher, run, "${program}", "${args_no_hyphens}"]
    More machines join with the `wandb agent` line that is printed.
    """
    check_credentials()
    path = start_sweep(file, project)
    say(f"to join from another machine: wandb agent {path}")
    run_agent(path, count)
