"""The command line: which commands there are, and how an error of ours is shown.

A command is loaded when it is used, so that `launcher --help` needs nothing but click.
"""

from importlib import import_module
from typing import Any

import click

from launcher import __version__
from launcher.around import leave_script
from launcher.cli.say import say
from launcher.errors import LauncherError
from launcher.files import refused_by_disk
from launcher.tied import stay_tied

# Each command: the module that holds it, and its line in `launcher --help`.
COMMANDS = {
    "run": ("run", "Train RECIPE: a bundled name or the path of a file."),
    "debug": (
        "recipes",
        "Train a few batches of RECIPE in this process, on the CPU, and test a few.",
    ),
    "resume": ("run", "Continue the run in RUN_DIR from its newest valid checkpoint."),
    "test": ("run", "Test a checkpoint of RUN_DIR on every sample of the test set, once."),
    "checkpoints": (
        "runs",
        "List the checkpoints of RUN_DIR: step, epoch, test result, size, and validity.",
    ),
    "submit": ("slurm", "Train RECIPE on a SLURM cluster, through preemption and time limits."),
    "status": (
        "jobs",
        "Show how submitted runs are: those below ./runs, or the given ones.",
    ),
    "watch": ("jobs", "Show runs as they go on: progress, curves, speed, ranks, GPUs, last lines."),
    "logs": ("jobs", "Print the newest batch log of RUN_DIR, or the log of one rank."),
    "cancel": (
        "jobs",
        "Cancel all jobs of runs, running and waiting ones; what is saved stays.",
    ),
    "resubmit": (
        "jobs",
        "Submit the run in RUN_DIR again; it goes on from its newest checkpoint.",
    ),
    "pull": (
        "jobs",
        "Bring what `launcher report` needs of a run at another host: texts, and no checkpoint.",
    ),
    "doctor": (
        "doctor",
        "Check that training works here: packages, disk, clock, GPUs, processes and their network.",
    ),
    "sync": (
        "tracking",
        "Upload runs to W&B: those given, else all below ./runs that are not there yet.",
    ),
    "sweep": (
        "tracking",
        "Start a W&B sweep from FILE, and run its trials on this machine.",
    ),
    "runs": (
        "runs",
        "List the runs in FOLDER: state, step, metrics, age, and what they differ in.",
    ),
    "diff": (
        "runs",
        "Compare two runs: the first report that differs, and all that they differ in.",
    ),
    "report": ("runs", "Write one HTML page that shows RUN_DIR, or compares several."),
    "recipes": ("recipes", "List the bundled recipes, show one, or copy one to edit."),
    "plan": (
        "doctor",
        "Tell what RECIPE takes to train: memory, operations, steps, a checkpoint.",
    ),
    "guide": ("guide", "List the pages of the guide, or show the one about SUBJECT."),
}
# Where its subject goes on: the page of `launcher guide`.
PAGES = {
    **dict.fromkeys(("run", "debug", "recipes"), "recipes"),
    "plan": "sharding",
    **dict.fromkeys(("resume", "test", "checkpoints"), "resume"),
    **dict.fromkeys(
        ("submit", "status", "logs", "cancel", "resubmit", "pull", "doctor"), "cluster"
    ),
    **dict.fromkeys(("sync", "sweep"), "tracking"),
    **dict.fromkeys(("runs", "watch", "diff", "report"), "run-directory"),
}
# What the launcher itself calls, in job scripts.
HIDDEN = {"job": "slurm"}


class _Commands(click.Group):
    """Loads a command when it is used; shows an error of ours without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's form
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        module = COMMANDS[name][0] if name in COMMANDS else HIDDEN.get(name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(f"launcher.cli.{module}"), name)
        if name in PAGES:
            command.epilog = f"More: launcher guide {PAGES[name]}"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        stay_tied()
        leave_script()
        try:
            return super().invoke(ctx)
        except LauncherError as error:
            ctx.exit(_told(error))
        except OSError as error:
            if (refusal := refused_by_disk(error)) is None:
                raise
            ctx.exit(_told(refusal))


def _told(error: LauncherError) -> int:
    """Print an error; returns its exit code."""
    click.secho("error: ", fg="red", bold=True, nl=False, err=True)
    say(error.message, err=True)
    if error.hint:
        click.secho("hint: ", fg="cyan", nl=False, err=True)
        say(error.hint, err=True)
    return error.exit_code


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="launcher")
def main() -> None:
    """Train one recipe on a CPU, on several GPUs or machines, with the same numbers.

    \b
    launcher run digits                    train on this machine
    launcher run digits --nproc 2          the same numbers, from two processes
    launcher run my.py epochs=10           a recipe of your own, a hyperparameter changed
    launcher run train.py -- --lr 0.1      any other program, as it is: launcher guide scripts
    launcher debug my.py                   a few batches, in this process, with breakpoint()
    launcher recipes copy digits my.py     a file to start from
    launcher guide recipes                 how to write one; `launcher guide` lists all pages
    """
