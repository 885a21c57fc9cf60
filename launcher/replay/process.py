"""One process that makes a step of a run again: the only one, or one of several."""

import linecache
import os
import sys
import traceback
from bdb import BdbQuit
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch

from launcher.data.device import claim_gpu
from launcher.errors import BadInput, LauncherError, SampleFailed, TrainingFailed
from launcher.files import write_json
from launcher.leave import leave
from launcher.processes import without_world
from launcher.ranks.context import Context
from launcher.recipe.file import RecipeFile, load
from launcher.recipe.hyperparameters import configure
from launcher.replay.replay import Asked, replay
from launcher.run.checkpoint_files import Checkpoint
from launcher.run.directory import RunDir
from launcher.run.record import Record, step_of
from launcher.sharding.fitting import take_what_fits
from launcher.train.worker import ended

_FOREVER_S = 1e6  # somebody may be thinking in the debugger


def make_alone(told: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Make a step in this very process; returns what it came to, {} where the user has left.

    Raises TrainingFailed, with the step, for what the recipe raises; its traceback is printed.
    """
    for name in os.environ.keys() - without_world(os.environ).keys():
        del os.environ[name]
    torch.set_num_threads(told["threads"])
    try:
        return _made(told, source)
    except BdbQuit:
        return {}
    except BadInput:
        raise
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, LauncherError):
            trace = error.trace if isinstance(error, SampleFailed) else ""
        print(trace, end="", file=sys.stderr)
        what = f"{type(error).__name__}: {error}".removesuffix(": ")
        what = error.message if isinstance(error, LauncherError) else what
        raise TrainingFailed(f"{_where(error)}{what}") from error
    finally:
        Context.close()


def _where(error: Exception) -> str:
    step = step_of(error)
    return "" if step is None else f"step {step} failed: "


def _made(
    told: Mapping[str, Any], source: str, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Join the others, if there are any, and make the step; collective."""
    if not told["cpu"]:
        claim_gpu()  # the recipe's own lines may touch it when they are loaded
    file = RecipeFile(told["recipe"], Path(told["recipe_path"]), source)
    # What a debugger shows: the text as it was when the run was made, which is what runs.
    lines = source.splitlines(keepends=True)
    linecache.cache[str(file.path)] = (len(source), None, lines, str(file.path))
    recipe = configure(load(file), str(file.path), told["hyperparameters"])
    take_what_fits(recipe, told)
    context = Context(
        cpu=told["cpu"],
        mixed_precision=recipe.mixed_precision,
        find_unused_parameters=recipe.find_unused_parameters,
        expected_world=told["world_size"],
        patience_s=_FOREVER_S,
    )
    return replay(recipe, context, _asked(told), say)


def _asked(told: Mapping[str, Any]) -> Asked:
    asked = dict(told["replay"])
    if kept := asked["checkpoint"]:
        asked["checkpoint"] = Checkpoint(Path(kept["path"]), kept["step"], kept["epoch"], {}, 0)
    begins = told.get("init_from")
    return Asked(**asked, init_from=Path(begins) if begins and not kept else None)


def main(arguments: list[str]) -> NoReturn:
    """Make a step as one of several processes, and leave; never returns."""
    run = RunDir(Path(arguments[0]))
    told = run.read_config()
    record = Record.started(int(os.environ.get("RANK", "0")))
    shown = record.rank == told["replay"]["rank"]
    log = run.log(record.rank).open("a", encoding="utf-8", buffering=1)
    say = partial(print, file=os.fdopen(os.dup(1), "w"), flush=True)
    _give_terminal(log.fileno(), mine=shown)

    def make() -> None:
        try:
            result = _made(told, run.recipe.read_text(encoding="utf-8"), say)
        except BdbQuit:
            write_json(run.result, {})
            leave(1)  # the agent ends the others
        if record.rank == 0:
            write_json(run.result, result)

    ended(record, run, log, make)
    failed = record.state == "failed"
    leave(record.exit_code if failed else 0, None if failed else Context.close)


def _give_terminal(log: int, *, mine: bool) -> None:
    """Leave the terminal to one rank; the others read nothing, and what they say goes to a log."""
    sys.stdout.flush()
    sys.stderr.flush()
    if mine:
        os.dup2(1, 2)
        return
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (1, 2):
        os.dup2(log, number)
