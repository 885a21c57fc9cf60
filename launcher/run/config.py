"""config.json: everything that is needed to repeat a run, and the name of a new run directory."""

import platform
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from launcher.files import read_json
from launcher.recipe.base import Recipe
from launcher.recipe.file import RecipeFile
from launcher.run import wandb
from launcher.run.directory import RunDir

# What a session of a run notes of itself.
_SESSION = ("world_size", "nodes", "threads", "cpu", "hyperparameters")
_PACKAGES = ("launcher", "torch", "torchvision", "accelerate", "numpy", "wandb")


def describe(
    file: RecipeFile,
    recipe: Recipe,
    *,
    nproc: int = 1,
    nnodes: int = 1,
    cpu: bool = False,
    threads: int | None = None,
    tracking: Mapping[str, Any] | None = None,
    init_from: Path | None = None,
) -> dict[str, Any]:
    """Return the contents of config.json, for `nproc` processes on each of `nnodes` machines.

    `threads` are those of each process; None: not known yet. `tracking` is what
    `launcher.run.wandb.tracking` made; None: no tracking. `init_from` is a file of weights to start
    from.
    """
    began_with = {"init_from": str(init_from)} if init_from else {}
    return began_with | {
        "recipe": file.name,
        "recipe_path": str(file.path),
        "hyperparameters": recipe.hyperparameters(),
        "seed": recipe.seed,
        "world_size": nproc * nnodes,
        "nodes": nnodes,
        "cpu": cpu,
        "threads": threads,
        "tracking": tracking or wandb.tracking(file.name, "disabled"),
        **here_and_now(file.path),
    }


def here_and_now(path: Path) -> dict[str, Any]:
    """Return what else is needed to repeat a run whose recipe or script is at `path`."""
    return {
        "versions": versions(),
        "git": _git(path.parent),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "created": time.time(),
    }


def session_of(told: Mapping[str, Any]) -> dict[str, Any]:
    """Return with what a run goes on, for the list of its sessions."""
    return {name: told.get(name) for name in (*_SESSION, "versions")}


def note_beginning(run: RunDir, step: int) -> None:
    """Note the step that a session went on from: the first of several starts counts, or an earlier.

    That of a run's first session is 0. A disk that is full is no reason not to train.
    """
    told = read_json(run.config) or {}
    if sessions := told.get("resumed"):
        last = sessions[-1]
        if step < last.get("step", step + 1):
            with suppress(OSError):
                run.write_config(told | {"resumed": [*sessions[:-1], last | {"step": step}]})


def new_run_path(recipe_name: str) -> Path:
    """Return `runs/<recipe>-<time>-<short id>` below the current folder."""
    moment = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{recipe_name}-{moment}-{secrets.token_hex(2)}"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Return commit and dirtiness of the tree that holds the recipe, None outside git."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, check=True, timeout=30
        )
        return done.stdout.decode().strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
