"""Options that several commands have."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from launcher.run import wandb
from launcher.slurm.options import sbatch_options, value_of


class Finite(click.FloatRange):
    """A number in a range: `nan` would be in every one, and nothing is compared with it."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


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
PEAK_TFLOPS = click.option(
    "--peak-tflops",
    type=Finite(0, min_open=True),
    help="Dense TFLOP/s of a device, to tell FLOP/s as a share of it (MFU): peak_tflops=X.",
)
INIT_FROM = click.option(
    "--init-from",
    type=click.Path(path_type=Path, exists=True),
    metavar="RUN_DIR|FILE",
    help="Start from the weights of a run, or of a file of safetensors: those that match.",
)


# Options of sbatch that have a name of their own here; all others go through --sbatch.
SBATCH = {
    "nodes": "How many nodes.",
    "gpus-per-node": "GPUs of each node, and processes on it.",
    "time": "Time limit, for each start: minutes or H:MM:SS.",
    "partition": "Where to queue.",
    "account": "Who pays.",
    "qos": "Quality of service.",
    "constraint": "Features that nodes must have.",
    "mem": "Memory of each node.",
    "cpus-per-task": "Cores of each node. [default without GPUs: one for each process]",
    "exclude": "Nodes not to use.",
    "nice": "Wait behind others.",
    "mail-user": "Whom SLURM writes to.",
    "job-name": "[default: the recipe's name]",
}


def with_sbatch_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that end up as sbatch's or srun's; `sbatch_of` collects them."""
    command = click.option(
        "--sbatch", multiple=True, metavar="KEY=VALUE", help="Any other option of sbatch."
    )(command)
    for name, meaning in reversed(SBATCH.items()):
        command = click.option(f"--{name}", metavar="VALUE", help=meaning)(command)
    return command


def sbatch_of(options: Mapping[str, Any]) -> dict[str, str]:
    """Return sbatch's options among those of a command, without dashes."""
    named = {name: options[name.replace("-", "_")] for name in SBATCH}
    given = {name: value_of(name, value) for name, value in named.items() if value is not None}
    return given | sbatch_options(options["sbatch"])


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
