"""Options that several commands have."""

from collections.abc import Callable
from pathlib import Path

import click

from launcher.run import wandb

RUN_DIR = click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False, exists=True))
NPROC = click.option("--nproc", type=click.IntRange(1), help="Processes. [default: as before]")
MAX_RESTARTS = click.option(
    "--max-restarts",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Start again so often, from the last checkpoint, when a process fails.",
)


TRACKING = click.option(
    "--tracking",
    type=click.Choice(wandb.MODES),
    help="Weights & Biases: online, offline (`launcher sync` uploads it later) or disabled. "
    "[default: WANDB_MODE, else online where there are credentials, else offline]",
)
INIT_FROM = click.option(
    "--init-from",
    type=click.Path(path_type=Path, exists=True),
    metavar="RUN_DIR|FILE",
    help="Start from the weights of a run, or of a file of safetensors: those that match.",
)


def machines(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for several machines without SLURM."""
    for option in (
        click.option("--rdzv-endpoint", metavar="HOST:PORT", help="A free port on machine 0."),
        click.option("--node-rank", type=int, default=0, help="Which of them this is, from 0."),
        click.option(
            "--nnodes", type=click.IntRange(1), default=1, help="Machines, without SLURM."
        ),
    ):
        command = option(command)
    return command
